"""Cuts of a source video, found around the frames of one chunk.

A cut is a frame that differs from the one before it both much and far more than its neighbours do, so that fast movement and
moving cameras are no cuts: the adaptive rule of PySceneDetect's ``AdaptiveDetector``, on small HSV pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from model_store.engine import Picture

SHORTEST_SCENE = 12
"""Frames from one cut to the next: what is shorter is a flash, and no new scene."""

_REACH = 2  # neighbours on either side that a change is compared with
_RATIO = 3.0
_LEAST_CHANGE = 15.0  # mean of the three channels' absolute change, of 255
_SMALL = (64, 36)


class SceneCuts:
    """Looks for cuts.

    Args:
        frame: the source's picture at a frame number of the output.
        frames: number of the output's frames.
    """

    def __init__(self, frame: Callable[[int], Picture], frames: int) -> None:
        self._frame, self._frames = frame, frames
        self._small: dict[int, NDArray[np.float32]] = {}

    def within(self, start: int, stop: int, scene: int) -> list[int]:
        """First frames of the scenes that begin in ``start..stop``.

        Args:
            start, stop: frames of a chunk; asked for in rising order.
            scene: first frame of the scene that reaches into it.
        """
        self._small = {number: small for number, small in self._small.items() if number >= start - _REACH - 1}
        changes = {number: self._change(number) for number in range(start - _REACH, stop + _REACH)}
        cuts = []
        for number in range(max(start, 1), stop):
            around = [changes[number + offset] for offset in range(-_REACH, _REACH + 1) if offset]
            far = changes[number] > _RATIO * max(sum(around) / len(around), 1.0)
            if changes[number] > _LEAST_CHANGE and far and number - scene >= SHORTEST_SCENE:
                cuts.append(number)
                scene = number
        return cuts

    def _change(self, number: int) -> float:
        """How much a frame differs from the one before."""
        if not 0 < number < self._frames:
            return 0.0
        return float(np.abs(self._picture(number) - self._picture(number - 1)).mean())

    def _picture(self, number: int) -> NDArray[np.float32]:
        if number not in self._small:
            small = cv2.resize(self._frame(number), _SMALL, interpolation=cv2.INTER_AREA)
            hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV).astype(np.float32)
            hsv[..., 0] *= hsv[..., 1:].min(-1) / 255  # the hue of grey and black is noise
            self._small[number] = hsv
        return self._small[number]
