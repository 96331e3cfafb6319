"""Does the picture keep its colours from the first seconds to the last?"""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, Picture

Points = NDArray[np.float64]
Colours = NDArray[np.float64]

_CHEEKS_AND_NOSE = (1, 2, 3, 31, 33, 35, 13, 14, 15, 28)
_SIDE = 120
_SECONDS = 5
_AWAY = 1.2
"""Face widths from the face's middle at which the background begins."""
_LEAST_BACKGROUND = 0.05
"""Share of the frame that must be background for its colour to be judged."""

_NOTHING: Colours = np.full(3, np.nan)


class ColourMeter:
    """Watches the colours (CIE L*a*b*) of the cheeks and nose, and of what lies beyond the face; holds 250 reduced frames."""

    def __init__(self) -> None:
        self._away: NDArray[np.bool_] | None = None
        self._face: list[Colours] = []
        self._first: list[Colours] = []
        self._last: deque[Colours] = deque(maxlen=_SECONDS * FPS)

    def add(self, frame: Picture, points: Points | None) -> None:
        """Watch the next frame; ``points`` are its 68 landmarks, if a face was seen."""
        scale = _SIDE / min(frame.shape[:2])
        small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        if points is not None and self._away is None:
            self._away = _beyond(points * scale, lab.shape)
        cheeks = None if points is None else _cheeks(points * scale, lab.shape)
        self._face.append(np.asarray(lab[cheeks].mean(0), np.float64) if cheeks is not None and cheeks.any() else _NOTHING)
        if len(self._first) < _SECONDS * FPS:
            self._first.append(lab)
        self._last.append(lab)

    def drift(self) -> tuple[float, float]:
        """Difference (CIE 1976 ΔE) between the first and the last five seconds: of the face, of the background.

        The background's is the median over its places of the change in each place, so that hair and shoulders that moved there
        count little. Of a clip shorter than ten seconds, halves are compared. NaN where there is nothing to compare.
        """
        span = max(1, min(_SECONDS * FPS, len(self._face) // 2))
        face = np.array(self._face)
        background = float("nan")
        if self._away is not None and self._away.mean() >= _LEAST_BACKGROUND:
            change = np.mean(list(self._last)[-span:], axis=0) - np.mean(self._first[:span], axis=0)
            background = float(np.linalg.norm(np.median(change[self._away], axis=0)))
        return _distance(face[:span], face[-span:]), background


def _cheeks(points: Points, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(points[_CHEEKS_AND_NOSE, :]).astype(np.int32)), 255)
    return np.asarray(mask > 0)


def _beyond(points: Points, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = np.hypot(columns - points[30, 0], rows - points[30, 1])
    return np.asarray(distance > _AWAY * np.linalg.norm(points[16] - points[0]))


def _distance(first: Colours, last: Colours) -> float:
    first, last = first[np.isfinite(first).all(1)], last[np.isfinite(last).all(1)]
    if not len(first) or not len(last):
        return float("nan")
    return float(np.linalg.norm(first.mean(0) - last.mean(0)))
