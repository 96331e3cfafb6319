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


class Grid:
    """Coarse nodes over a box, placed so that ``cv2.resize`` is exact bilinear interpolation between them.

    Args:
        box: the pixels covered.
        step: distance between nodes, in pixels.
        origin: the frame's pixel that sampling maps call (0, 0): the corner of the picture that is sampled.
    """

    def __init__(self, box: Box, step: int, origin: tuple[int, int] = (0, 0)) -> None:
        self.box = box
        left, top, right, bottom = box
        self._step = step
        self._size = (right - left, bottom - top)
        columns, rows = -(-self._size[0] // step) + 1, -(-self._size[1] // step) + 1
        # resize puts the centre of node i at (i + 0.5) * step - 0.5.
        x = (np.arange(columns, dtype=np.float32) + 0.5) * step - 0.5 + left
        y = (np.arange(rows, dtype=np.float32) + 0.5) * step - 0.5 + top
        self.nodes = np.stack(np.meshgrid(x, y), -1).astype(np.float32)
        """``[rows, columns, 2]`` positions as (x, y) in the frame's pixels."""
        x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)
        self.pixels = np.stack(np.meshgrid(x, y), -1).astype(np.float32)
        self._base = self.pixels - np.asarray(origin, np.float32)

    def index(self, positions: NDArray[np.floating]) -> NDArray[np.floating]:
        """Places of ``[..., 2]`` positions among the nodes, for sampling a field with ``cv2.remap``."""
        return (positions - self.nodes[0, 0]) / np.float32(self._step)

    def look(self, offsets: NDArray[np.floating]) -> NDArray[np.floating]:
        """A sampling map ``[h, w, 2]`` from displacements ``[rows, columns, 2]`` at the nodes."""
        rows, columns = offsets.shape[:2]
        width, height = self._size
        full = cv2.resize(offsets, (columns * self._step, rows * self._step), interpolation=cv2.INTER_LINEAR)
        return cv2.add(full[:height, :width], self._base)
