"""A picture made to speak crudely, whose opening is known: the judge is judged by it, not by any engine."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture

_INSIDE = np.array([45, 18, 18], np.float32)


class Puppet:
    """Moves the lips of a picture apart along its own lip line, over a dark hole; moves the whole picture as the head.

    Args:
        picture: RGB ``[H, W, 3]``.
        points: its 68 landmarks.
    """

    def __init__(self, picture: Picture, points: NDArray[np.float64]) -> None:
        self._picture = picture
        self._nose = float(points[30, 0]), float(points[30, 1])
        self.mouth_width = float(np.linalg.norm(points[54] - points[48]))
        eyes = points[42:48].mean(0) - points[36:42].mean(0)
        self._along = eyes / np.linalg.norm(eyes)
        self._columns, self._rows = np.meshgrid(*(np.arange(side, dtype=np.float32) for side in picture.shape[1::-1]))
        centre = (points[60] + points[64]) / 2
        turn = np.array([self._along, [-self._along[1], self._along[0]]])
        x, y = self._columns - centre[0], self._rows - centre[1]
        lips = (points[60:68] - centre) @ turn.T
        self._u = turn[0, 0] * x + turn[0, 1] * y
        upper = np.interp(self._u, lips[:5, 0], lips[:5, 1])
        lower = np.interp(self._u, lips[[0, 7, 6, 5, 4], 0], lips[[0, 7, 6, 5, 4], 1])
        self._v = turn[1, 0] * x + turn[1, 1] * y - (upper + lower) / 2

    def frame(self, gap: float, *, roll: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Picture:
        """The lips ``gap`` mouth widths apart, the picture rolled clockwise by degrees and moved by pixels."""
        opening = gap * self.mouth_width
        profile = np.clip(1 - (2 * self._u / self.mouth_width) ** 2, 0, None)
        jaw = np.exp(-((self._u / (1.2 * self.mouth_width)) ** 2)) * (self._v > 0.05 * self.mouth_width)
        up, down = 0.25 * opening * profile, 0.75 * opening * profile
        below = -0.75 * opening * np.maximum(profile, jaw) * np.exp(-np.clip(self._v - down, 0, None) / (1.2 * self.mouth_width))
        above = up * np.exp(-np.clip(-self._v - up, 0, None) / (0.4 * self.mouth_width))
        move = np.where(self._v > 0, below, above)
        pulled = cv2.remap(
            self._picture,
            (self._columns - self._along[1] * move).astype(np.float32),
            (self._rows + self._along[0] * move).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        hole = ((self._v > -up) & (self._v < down) & (profile > 0)).astype(np.float32)
        hole = cv2.GaussianBlur(hole, (3, 3), 0)[..., None]
        face = (pulled * (1 - hole) + _INSIDE * hole).astype(np.uint8)
        matrix = cv2.getRotationMatrix2D(self._nose, -roll, 1)
        matrix[:, 2] += shift
        size = (face.shape[1], face.shape[0])
        return np.asarray(cv2.warpAffine(face, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)
