"""The judges of motion, stillness, joints and colour, on frames whose truth is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from model_store.engine import FPS, Picture
from service.evaluate.colour import ColourMeter
from service.evaluate.motion import MotionMeter, joint_ratios, least_in_windows
from tests.quality.faces import face

FACE = face()
FACE_WIDTH = 180
MOUTH = (200, 232)


@pytest.fixture(scope="module")
def scene() -> Picture:
    """Soft texture everywhere, 400x400, under the schematic face."""
    rough = np.random.default_rng(0).uniform(0, 255, (50, 50, 3)).astype(np.float32)
    return np.clip(cv2.resize(rough, (400, 400), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def shifted(picture: Picture, x: float) -> Picture:
    matrix = np.array([[1, 0, x], [0, 1, 0]], np.float64)
    return np.asarray(cv2.warpAffine(picture, matrix, (400, 400), borderMode=cv2.BORDER_REFLECT), np.uint8)


def mouth_only(picture: Picture, x: float) -> Picture:
    """The picture with only a disk around the mouth shifted."""
    disk = cv2.GaussianBlur(cv2.circle(np.zeros((400, 400), np.float32), MOUTH, 22, 1.0, -1), (0, 0), 4)[..., None]
    return (picture * (1 - disk) + shifted(picture, x) * disk).astype(np.uint8)


def watch(frames: list[Picture]) -> MotionMeter:
    meter = MotionMeter()
    for frame in frames:
        meter.add(frame, FACE)
    return meter


def test_motion_of_the_whole_frame_is_measured_in_face_widths(scene: Picture) -> None:
    meter = watch([shifted(scene, x) for x in (0, 1.8, 3.6, 5.4)])
    assert np.mean(meter.outside) == pytest.approx(100 * 1.8 / FACE_WIDTH, rel=0.2)
    assert np.mean(meter.inside) == pytest.approx(100 * 1.8 / FACE_WIDTH, rel=0.2)


def test_motion_of_the_mouth_alone_is_told_apart(scene: Picture) -> None:
    meter = watch([mouth_only(scene, x) for x in (0, 2, 4, 6)])
    assert np.mean(meter.inside) > 10 * np.mean(meter.outside)


def test_still_stretch_ignores_the_mouth_and_noise(scene: Picture) -> None:
    rng = np.random.default_rng(1)
    talking = [mouth_only(scene, 4 * np.sin(n)) for n in range(30)]
    noisy = [np.clip(frame + rng.normal(0, 1.5, frame.shape), 0, 255).astype(np.uint8) for frame in talking]
    assert watch(noisy).longest_still == pytest.approx(29 / FPS)


def test_drifting_slowly_is_not_still(scene: Picture) -> None:
    # 0.1 pixel a frame: 1.4% of the face's width in a second
    assert watch([shifted(scene, 0.1 * n) for n in range(60)]).longest_still < 0.7


def test_frozen_stretch_between_motion_is_found(scene: Picture) -> None:
    places = [*np.arange(0, 20, 1.0), *[20.0] * 30, *np.arange(20, 40, 1.0)]
    assert watch([shifted(scene, x) for x in places]).longest_still == pytest.approx(30 / FPS, abs=2 / FPS)


def test_least_of_the_windows() -> None:
    motion = np.concatenate([np.full(125, 0.5), np.full(125, 0.1), np.full(125, 0.9)])
    assert least_in_windows(motion) == pytest.approx(0.1)
    assert least_in_windows(np.full(30, 0.4)) == pytest.approx(0.4)


def test_jump_at_a_joint_shows() -> None:
    change = np.random.default_rng(0).uniform(1, 2, 287)
    calm, _ = joint_ratios(change, 24, 72)
    assert calm <= 1.0
    change[95] = 6.0  # between frames 95 and 96, the second joint
    jump, typical = joint_ratios(change, 24, 72)
    assert jump > 3
    assert typical < 1.4


def test_clip_of_one_chunk_has_no_joint() -> None:
    assert np.isnan(joint_ratios(np.ones(23), 24, 72)).all()


SMALL_FACE = 0.4 * FACE
GREY: Picture = np.full((160, 160, 3), 120, np.uint8)


def drift(*clip: tuple[Picture, int]) -> tuple[float, float]:
    """Of a clip that shows each frame for so many frames."""
    meter = ColourMeter()
    for frame, count in clip:
        for _ in range(count):
            meter.add(frame, SMALL_FACE)
    return meter.drift()


def test_colour_drift_of_face_and_background_are_told_apart() -> None:
    reddened = cv2.circle(GREY.copy(), (80, 76), 36, (150, 110, 110), -1)
    on_face, behind = drift((GREY, 5), (reddened, 5))
    assert on_face > 8
    assert behind < 0.5
    darkened = cv2.circle(np.full_like(GREY, 90), (80, 76), 52, (120, 120, 120), -1)
    on_face, behind = drift((GREY, 5), (darkened, 5))
    assert on_face < 0.5
    assert behind > 8


def test_colours_between_the_first_and_last_five_seconds_do_not_count_as_drift() -> None:
    assert drift((GREY, 5 * FPS), (np.full_like(GREY, 60), 30), (GREY, 5 * FPS)) == pytest.approx((0, 0), abs=1e-4)
