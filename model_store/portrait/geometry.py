"""Small shapes that several parts of the engine draw with."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


def smoothstep(low: float, high: float, value: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 below ``low``, 1 above ``high``, a cubic between."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def coverage(outline: NDArray[np.floating], box: Box) -> NDArray[np.floating]:
    """Share of every pixel of ``box`` that lies inside a polygon: 0..1 ``[h, w]``, antialiased by 4 x 4 samples.

    Args:
        outline: ``[N, 2]`` corners in the frame's pixels.
        box: which pixels.
    """
    left, top, right, bottom = box
    fine = np.zeros((4 * (bottom - top), 4 * (right - left)), np.uint8)
    # The centre of pixel 0 is at 0 in the frame and at 1.5 among its four samples.
    corners = np.round(((outline - (left, top)) * 4 + 1.5) * 16).astype(np.int32)
    cv2.fillPoly(fine, [corners], 255, lineType=cv2.LINE_8, shift=4)
    mean = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    return mean.astype(np.float32) / 255


def blurred(value: NDArray[np.floating], sigma: float) -> NDArray[np.floating]:
    """Gaussian blur; a ``sigma`` too small to matter returns the value itself."""
    return cv2.GaussianBlur(value, (0, 0), sigma) if sigma > 0.2 else value
