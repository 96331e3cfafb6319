"""Audio windows, checked by hand on vectors that are their own frame's number."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

from model_store.infinitetalk.audio_windows import frame_windows, latent_frames, latent_windows  # noqa: E402


def numbered(length: int) -> torch.Tensor:
    return torch.arange(length, dtype=torch.float32).view(-1, 1, 1)


def test_a_frame_hears_two_to_either_side_clamped_at_the_ends() -> None:
    windows = frame_windows(numbered(6), start=0, frames=9)
    assert windows.shape == (9, 5, 1, 1)
    assert windows[..., 0, 0].tolist() == [
        [0, 0, 0, 1, 2],
        [0, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [2, 3, 4, 5, 5],
        [3, 4, 5, 5, 5],
        [4, 5, 5, 5, 5],
        [5, 5, 5, 5, 5],
        [5, 5, 5, 5, 5],
    ]


def test_a_later_chunk_looks_back_into_the_one_before() -> None:
    assert frame_windows(numbered(200), start=72, frames=81)[0, :, 0, 0].tolist() == [70, 71, 72, 73, 74]


def test_a_latent_frame_hears_its_four_frames_and_two_to_either_side() -> None:
    first, later = latent_windows(frame_windows(numbered(20), start=0, frames=9).unsqueeze(0))
    assert first[0, :, :, 0, 0].tolist() == [[0, 0, 0, 1, 2]]
    # Latent frame 1 covers video frames 1..4: f0-2 would be -1, which is clamped to 0.
    assert later[0, :, :, 0, 0].tolist() == [[0, 0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9, 10]]


def test_several_people_are_regrouped_apart() -> None:
    windows = torch.stack([frame_windows(numbered(9), 0, 5), frame_windows(numbered(9) + 100, 0, 5)])
    first, later = latent_windows(windows)
    assert torch.equal(first[1] - first[0], torch.full_like(first[0], 100))
    assert torch.equal(later[1] - later[0], torch.full_like(later[0], 100))


def test_a_single_frame_has_no_later_ones() -> None:
    first, later = latent_windows(frame_windows(numbered(3), 0, 1).unsqueeze(0))
    assert first.shape == (1, 1, 5, 1, 1)
    assert later.shape == (1, 0, 8, 1, 1)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (81, 21)])
def test_latent_frames(frames: int, latents: int) -> None:
    assert latent_frames(frames) == latents


@pytest.mark.parametrize("frames", [0, 2, 80])
def test_frames_that_fill_no_latent_frame_are_refused(frames: int) -> None:
    with pytest.raises(ValueError, match="4n"):
        latent_frames(frames)
