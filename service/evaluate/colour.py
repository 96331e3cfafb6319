"""Does the picture keep its colours from the first seconds to the last?"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, Picture

Points = NDArray[np.float64]
Colours = NDArray[np.float64]

_CHEEKS_AND_NOSE = (1, 2, 3, 31, 33, 35, 13, 14, 15, 28)
_SIDE = 160
_SECONDS = 5
_AWAY = 1.2
"""Face widths from the face's middle at which the background begins."""

NOTHING: Colours = np.full((2, 3), np.nan)


def mean_colours(frame: Picture, points: Points | None) -> Colours:
    """Mean CIE L*a*b* of the cheeks and nose, and of what lies well beyond the face: ``[2, 3]``, NaN where there is none."""
    if points is None:
        return NOTHING
    scale = _SIDE / min(frame.shape[:2])
    small = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    face = np.zeros(small.shape[:2], np.uint8)
    hull = cv2.convexHull(np.round(points[_CHEEKS_AND_NOSE, :] * scale).astype(np.int32))
    cv2.fillConvexPoly(face, hull, 255)
    middle = points[30] * scale
    rows, columns = np.ogrid[: small.shape[0], : small.shape[1]]
    away = np.hypot(columns - middle[0], rows - middle[1]) > _AWAY * scale * np.linalg.norm(points[16] - points[0])
    return np.array([lab[mask].mean(0) if mask.any() else NOTHING[0] for mask in (face > 0, away)])


def colour_drift(colours: Colours) -> tuple[float, float]:
    """Difference (CIE 1976 ΔE) between the mean colours of the first and the last five seconds: of the face, of the background.

    Args:
        colours: :func:`mean_colours` of every frame, ``[T, 2, 3]``. Of a clip shorter than ten seconds, halves are compared.
    """
    span = max(1, min(_SECONDS * FPS, len(colours) // 2))
    return _distance(colours[:span, 0], colours[-span:, 0]), _distance(colours[:span, 1], colours[-span:, 1])


def _distance(first: Colours, last: Colours) -> float:
    first, last = first[np.isfinite(first).all(1)], last[np.isfinite(last).all(1)]
    if not len(first) or not len(last):
        return float("nan")
    return float(np.linalg.norm(first.mean(0) - last.mean(0)))
