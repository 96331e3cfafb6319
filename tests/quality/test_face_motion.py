"""The judges of blinks, head pose and trembling, on landmarks whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from model_store.engine import FPS
from service.evaluate.blinks import find_blinks
from service.evaluate.landmarks import eye_openness, jitter
from service.evaluate.pose import head_pose
from tests.quality.faces import EYE_DISTANCE, face, seen_from


def openness_with_blinks(*starts: int, frames: int = 500, length: int = 5, depth: float = 0.3) -> np.ndarray:
    openness = 0.3 + 0.01 * np.random.default_rng(0).normal(size=frames)
    for start in starts:
        openness[start : start + length] *= depth
    return openness


def test_eye_aspect_ratio_of_the_landmarks() -> None:
    tracks = np.array([face(eyes=0.3), face(eyes=0.1)])
    assert eye_openness(tracks) == pytest.approx([0.3, 0.1])


def test_blinks_are_counted_where_they_are() -> None:
    found = find_blinks(openness_with_blinks(40, 200, 210, 440))
    assert [blink.start for blink in found] == [40, 200, 210, 440]
    assert all(blink.start <= blink.deepest < blink.stop for blink in found)


def test_a_waver_within_a_blink_does_not_make_two() -> None:
    openness = openness_with_blinks(100, 107)
    assert [(blink.start, blink.stop) for blink in find_blinks(openness)] == [(100, 112)]


def test_narrowed_eyes_are_no_blinks() -> None:
    openness = openness_with_blinks(100)
    openness[250:] *= 0.7  # a smile that stays
    assert [blink.start for blink in find_blinks(openness)] == [100]


def test_slight_dips_are_no_blinks() -> None:
    assert find_blinks(openness_with_blinks(100, depth=0.87)) == []


def test_eyes_shut_for_a_second_are_no_blink() -> None:
    assert find_blinks(openness_with_blinks(100, length=FPS)) == []


def test_unseen_frames_are_no_blinks() -> None:
    openness = openness_with_blinks(300)
    openness[100:110] = np.nan
    assert [blink.start for blink in find_blinks(openness)] == [300]


@pytest.mark.parametrize(("yaw", "pitch", "roll"), [(0, 0, 0), (12, 0, 0), (0, -9, 0), (0, 0, 15), (-20, 6, -8)])
def test_pose_of_a_projected_face(yaw: float, pitch: float, roll: float) -> None:
    found = head_pose(seen_from(yaw, pitch, roll)[None], 640, 480)[0]
    assert found == pytest.approx([yaw, pitch, roll], abs=0.1)


def test_pose_of_turning_right_nodding_down_and_tilting_clockwise_is_positive() -> None:
    right, down, clockwise = seen_from(10, 0, 0), seen_from(0, 10, 0), seen_from(0, 0, 10)
    nose, between_eyes = 30, 27
    assert right[nose, 0] > right[between_eyes, 0]
    assert np.ptp(down[[nose, between_eyes], 1]) > np.ptp(seen_from(0, 0, 0)[[nose, between_eyes], 1])
    assert clockwise[45, 1] > clockwise[36, 1]


def test_pose_is_unknown_where_no_face_is() -> None:
    assert np.isnan(head_pose(np.full((1, 68, 2), np.nan), 640, 480)).all()


def test_jitter_measures_trembling_and_not_slow_motion() -> None:
    time = np.arange(250) / FPS
    sway = np.stack([20 * np.sin(2 * time), 8 * np.sin(3 * time)], 1)[:, None]
    smooth = face() + sway
    noise = np.random.default_rng(0).normal(size=smooth.shape)
    assert jitter(smooth) < 0.05
    small, large = jitter(smooth + 0.002 * EYE_DISTANCE * noise), jitter(smooth + 0.006 * EYE_DISTANCE * noise)
    assert large == pytest.approx(3 * small, rel=0.05)
    # White noise of 0.2% in x and in y, seen through second differences (a gain of sqrt 6, less what the fit takes away).
    assert small == pytest.approx(0.2 * np.sqrt(2 * 6), rel=0.25)


def test_jitter_leaves_out_frames_without_a_face() -> None:
    tracks = face() + np.zeros((100, 1, 1))
    tracks[40:45] = np.nan
    assert jitter(tracks) == pytest.approx(0, abs=1e-9)
