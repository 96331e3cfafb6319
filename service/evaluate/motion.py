"""Does the whole frame live? Motion inside and outside the mouth, stillness, and jumps where chunks meet."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, Picture

Curve = NDArray[np.float64]
Points = NDArray[np.float64]

_FLOW_SIDE = 224
_STILL_SIDE = 96
_MOUTH = slice(48, 68)
_STILL_BELOW = 0.3
"""Mean grey levels (of 255) by which two pictures outside the mouth may differ and count as the same: above what encoding a
still picture leaves, on pictures reduced to 96 pixels, and far below a head's slowest drift."""

WINDOW_SECONDS = 5


class MotionMeter:
    """Watches frames go by; holds one reduced frame, and a few numbers for each frame."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._previous: NDArray[np.uint8] | None = None
        self._anchor: NDArray[np.float32] | None = None
        self._still = 0
        self._longest_still = 0
        self.inside: list[float] = []
        """Mean optical flow in the mouth region between each frame and the one before, in percent of the face's width."""
        self.outside: list[float] = []
        """The same for the rest of the frame."""
        self.change: list[float] = []
        """Mean absolute grey difference of the whole frame from the one before, in levels of 255."""

    @property
    def longest_still(self) -> float:
        """Seconds of the longest stretch in which nothing outside the mouth left its place."""
        return self._longest_still / FPS

    def add(self, frame: Picture, points: Points | None) -> None:
        """Watch the next frame; ``points`` are its 68 landmarks, if a face was seen."""
        scale = _FLOW_SIDE / min(frame.shape[:2])
        small = cv2.cvtColor(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        mouth = np.zeros(small.shape, np.uint8) if points is None else _mouth_region(points * scale, small.shape)
        if self._previous is not None:
            self.change.append(float(np.mean(cv2.absdiff(small, self._previous))))
            if points is None:
                self.inside.append(np.nan)
                self.outside.append(np.nan)
            else:
                size = np.hypot(*self._flow.calc(self._previous, small, None).transpose(2, 0, 1))
                percent = 100 / (scale * float(np.linalg.norm(points[16] - points[0])))
                self.inside.append(float(size[mouth > 0].mean() * percent))
                self.outside.append(float(size[mouth == 0].mean() * percent))
        self._previous = small
        self._watch_stillness(small, mouth)

    def _watch_stillness(self, small: NDArray[np.uint8], mouth: NDArray[np.uint8]) -> None:
        """Extend the still stretch while the picture stays what it was at the stretch's first frame; else begin another."""
        scale = _STILL_SIDE / min(small.shape)
        tiny = cv2.resize(small.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        rest = cv2.resize(mouth, (tiny.shape[1], tiny.shape[0]), interpolation=cv2.INTER_NEAREST) == 0
        if self._anchor is not None and float(np.abs(tiny - self._anchor)[rest].mean()) < _STILL_BELOW:
            self._still += 1
            self._longest_still = max(self._longest_still, self._still)
        else:
            self._anchor, self._still = tiny, 0


def least_in_windows(values: Curve) -> float:
    """The least mean over any of the consecutive windows of five seconds (one window when there is less); NaN values left out."""
    window = WINDOW_SECONDS * FPS
    count = max(1, len(values) // window)
    means = [float(np.nanmean(part)) for part in np.array_split(values, count) if np.isfinite(part).any()]
    return min(means, default=float("nan"))


def joint_ratios(change: Curve, first_chunk_frames: int, chunk_frames: int) -> tuple[float, float]:
    """Frame differences where chunks meet, beside those elsewhere: the ratio of the largest, and of the medians.

    Args:
        change: differences of frames 1, 2, ... from the frame before, ``[T - 1]``.
        first_chunk_frames, chunk_frames: frames in the first chunk, and in each after it.

    Returns:
        NaN twice when there is no joint; infinite where nothing else moves.
    """
    joints = np.arange(first_chunk_frames, len(change) + 1, chunk_frames) - 1
    elsewhere = np.delete(change, joints)
    if not len(joints) or not len(elsewhere):
        return float("nan"), float("nan")
    return (
        _ratio(float(change[joints].max()), float(elsewhere.max())),
        _ratio(float(np.median(change[joints])), float(np.median(elsewhere))),
    )


def _ratio(value: float, reference: float) -> float:
    if reference == 0:
        return float("inf") if value > 0 else 1.0
    return value / reference


def _mouth_region(points: Points, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The lips and what they pull along: an ellipse around them, down to the chin and up to the nose."""
    lips = points[_MOUTH]
    centre = (lips.min(0) + lips.max(0)) / 2
    across = points[54] - points[48]
    reach = float(np.linalg.norm(points[8] - points[33])) / 2
    middle = (centre + (points[8] + points[33]) / 2) / 2
    axes = (max(1, round(0.85 * float(np.linalg.norm(across)))), max(1, round(1.15 * reach)))
    mask = np.zeros(shape[:2], np.uint8)
    angle = float(np.degrees(np.arctan2(across[1], across[0])))
    cv2.ellipse(mask, (round(middle[0]), round(middle[1])), axes, angle, 0, 360, 255, -1)
    return mask
