"""Pictures into the model's sizes and back to the user's, and colours held to the reference."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.infinitetalk.sizes import SIZES, closest_size, give_back, look, resolution_class, window

SIDES = st.integers(64, 1100).map(lambda half: 2 * half)


def ramp(width: int, height: int) -> np.ndarray:
    """A picture whose pixels tell where they are: red across, green down."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.rint(np.stack([255 * x, 255 * y, 0 * x + 90], -1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "wanted"),
    [
        (1280, 720, (704, 1344)),
        (720, 1280, (1280, 704)),
        (480, 480, (640, 640)),
        (854, 480, (448, 896)),
        (1080, 1920, (1280, 704)),
    ],
)
def test_the_trained_size_of_the_closest_shape_is_taken(width: int, height: int, wanted: tuple[int, int]) -> None:
    chosen = closest_size(width, height, resolution_class(width, height))
    distances = {size: abs(np.log(size[1] / size[0]) - np.log(width / height)) for size in SIZES[resolution_class(width, height)]}
    assert distances[chosen] == min(distances.values())
    assert abs(distances[chosen] - distances.get(wanted, distances[chosen])) < 0.06


@settings(max_examples=25, deadline=None)
@given(SIDES, SIDES, st.integers(100, 400), st.integers(100, 400))
def test_the_users_frame_comes_back_as_it_was(width: int, height: int, own_width: int, own_height: int) -> None:
    """Into the model's size and out again is the crop that the user's shape asks for, in its place."""
    if not 0.25 <= width / height <= 4 or not 0.25 <= own_width / own_height <= 4:
        return
    size = closest_size(width, height, "480")
    picture = ramp(own_width, own_height)
    through = window((own_width, own_height), (width, height), size, (0.5, 0.5))
    back = give_back(look(picture, through, size)[None], through, width, height)[0]
    assert back.shape == (height, width, 3)
    share_x, share_y = min(1.0, width / height * own_height / own_width), min(1.0, own_width / own_height * height / width)
    corner = back[0, 0, :2] / 255, back[-1, -1, :2] / 255
    wanted = np.array([(1 - share_x) / 2, (1 - share_y) / 2]), np.array([(1 + share_x) / 2, (1 + share_y) / 2])
    pixel = 2.5 / min(*size, own_width, own_height)
    assert np.abs(corner[0] - wanted[0]).max() < 0.02 + pixel
    assert np.abs(corner[1] - wanted[1]).max() < 0.02 + pixel
    middle = back[height // 2, width // 2, :2] / 255
    assert np.abs(middle - 0.5).max() < 0.02 + pixel


def test_the_crop_is_around_what_it_is_told_and_the_margin_is_real_picture() -> None:
    picture = ramp(600, 200)
    through = window((600, 200), (400, 400), (32, 48), (0.2, 0.5))
    seen = look(picture, through, (32, 48))
    back = give_back(seen[None], through, 400, 400)[0]
    assert back[200, 200, 0] / 255 == pytest.approx(0.2, abs=0.02)
    assert np.all(np.diff(seen[16, :, 0].astype(int)) > 0), "beyond the user's frame the picture goes on, unmirrored"


def test_1080p_is_enlarged_from_720() -> None:
    assert resolution_class(1920, 1080) == "720"
    size = closest_size(1920, 1080, "720")
    through = window((1920, 1080), (1920, 1080), size, (0.5, 0.5))
    assert give_back(np.zeros((2, *size, 3), np.uint8), through, 1920, 1080).shape == (2, 1080, 1920, 3)


torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

from model_store.infinitetalk.colour import ColourCorrection, from_lab, to_lab  # noqa: E402


def test_lab_is_that_of_opencv_and_turns_back() -> None:
    rgb = np.random.default_rng(0).random((20, 30, 3), np.float32)
    wanted = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    got = to_lab(torch.from_numpy(rgb).permute(2, 0, 1)).permute(1, 2, 0)
    assert np.abs(got.numpy() - wanted).max() < 0.5  # OpenCV interpolates in tables
    assert to_lab(torch.eye(3)).T.numpy() == pytest.approx(
        np.array([[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86]]), abs=0.05
    )
    assert np.abs(from_lab(got.permute(2, 0, 1)).permute(1, 2, 0).numpy() - rgb).max() < 1e-3


def test_a_drifted_frame_gets_its_colours_back() -> None:
    scene = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(1)) * 0.8 - 0.4
    drifted = torch.stack([scene, scene * 0.7 + torch.tensor([0.2, 0.0, -0.1]).view(3, 1, 1)], dim=1)
    fixed = ColourCorrection.towards(scene).apply(drifted)
    assert (fixed[:, 0] - scene).abs().max() < 0.01, "a frame that has the colours already changes nothing"
    wanted, before, after = (to_lab(x / 2 + 0.5).mean((-2, -1)) for x in (scene, drifted[:, 1], fixed[:, 1]))
    assert (after - wanted).abs().max() < 0.5
    assert (before - wanted).abs().max() > 5


def test_a_flat_frame_stays_a_picture() -> None:
    flat = torch.full((3, 2, 8, 8), 0.25)
    fixed = ColourCorrection.towards(torch.rand(3, 8, 8) * 2 - 1).apply(flat)
    assert fixed.isfinite().all()
    assert fixed.abs().max() <= 1
