"""Sizes the model was trained at, and how a picture of another size goes in and comes out whole.

The user's frame is placed in the middle of the trained size that is closest in shape. What the trained size shows beyond it
is taken from the picture where the picture goes on, and mirrored where it ends; the output is cut back to the user's frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from model_store.engine import Frames, Picture

SIZES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "480": (
        (320, 1216), (384, 1024), (448, 896), (512, 768), (576, 704), (640, 640), (704, 576), (768, 512),
        (832, 448), (896, 448), (960, 384), (1088, 384), (1152, 320), (1216, 320), (1280, 320),
    ),
    "720": (
        (448, 2048), (512, 1792), (576, 1600), (640, 1408), (704, 1280), (768, 1216), (832, 1088), (896, 1024),
        (960, 960), (1024, 896), (1088, 832), (1152, 768), (1216, 768), (1280, 704), (1344, 704), (1408, 640),
        (1472, 640), (1536, 576), (1664, 576), (1856, 512), (1920, 512),
    ),
    "tiny": ((32, 48), (32, 32), (48, 32)),
}  # fmt: skip
"""Height and width of every trained size, by resolution class; ``tiny`` is for random weights only."""

_LARGEST_480 = 480
_SHAPE_TOLERANCE = 1e-9


def resolution_class(width: int, height: int) -> str:
    """``480`` for outputs whose short side is at most 480, ``720`` above; 1080p is enlarged from 720."""
    return "480" if min(width, height) <= _LARGEST_480 else "720"


def closest_size(width: int, height: int, resolution: str) -> tuple[int, int]:
    """The trained (height, width) of the closest shape: the same ratio up or down is equally far."""
    return min(SIZES[resolution], key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


@dataclass(frozen=True)
class Window:
    """What of a picture the model sees, and what of a generated frame is the user's.

    Args:
        left, top, width, height: the window in fractions of the picture's sides; it may reach beyond 0 and 1.
        inner: the user's frame in fractions of the window's sides: left, top, width, height.
    """

    left: float
    top: float
    width: float
    height: float
    inner: tuple[float, float, float, float]


def window(picture: tuple[int, int], output: tuple[int, int], size: tuple[int, int], centre: tuple[float, float]) -> Window:
    """Where the model looks.

    Args:
        picture: width and height of the reference.
        output: width and height of the user's frame.
        size: height and width that the model works at.
        centre: what the user's frame should be centred on, where the shapes differ, in fractions of the picture.
    """
    own, wanted, trained = picture[0] / picture[1], output[0] / output[1], size[1] / size[0]
    # The user's frame covers the picture as far as its shape allows.
    user_width, user_height = min(1.0, wanted / own), min(1.0, own / wanted)
    left = min(max(centre[0] - user_width / 2, 0.0), 1 - user_width)
    top = min(max(centre[1] - user_height / 2, 0.0), 1 - user_height)
    wider, taller = max(1.0, trained / wanted), max(1.0, wanted / trained)
    width, height = user_width * wider, user_height * taller
    # Beyond it the window goes to where the picture goes on, before it goes over the edge.
    outer_left, outer_top = _around(left, user_width, width), _around(top, user_height, height)
    inner = ((left - outer_left) / width, (top - outer_top) / height, 1 / wider, 1 / taller)
    return Window(outer_left, outer_top, width, height, inner)


def _around(start: float, length: float, outer: float) -> float:
    """Start of a stretch of length ``outer`` around one: inside 0..1 where that is possible, else as far over as needed."""
    centred = start - (outer - length) / 2
    if outer >= 1:
        return min(max((1 - outer) / 2, start + length - outer), start)
    return min(max(centred, 0.0), 1 - outer)


def look(picture: Picture, through: Window, size: tuple[int, int]) -> Picture:
    """The picture through the window, RGB uint8 ``[H, W, 3]`` at ``size`` (height, width)."""
    own_height, own_width = picture.shape[:2]
    scale_x, scale_y = size[1] / (through.width * own_width), size[0] / (through.height * own_height)
    # Averaging first, since sampling would skip pixels of a much larger picture.
    shrunk = (max(2, round(own_width * min(1.0, scale_x))), max(2, round(own_height * min(1.0, scale_y))))
    if shrunk != (own_width, own_height):
        picture = cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    step_x, step_y = through.width * shrunk[0] / size[1], through.height * shrunk[1] / size[0]
    x = (through.left * shrunk[0] + (np.arange(size[1]) + 0.5) * step_x - 0.5).astype(np.float32)
    y = (through.top * shrunk[1] + (np.arange(size[0]) + 0.5) * step_y - 0.5).astype(np.float32)
    map_x, map_y = np.meshgrid(x, y)
    return cv2.remap(picture, map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.uint8, copy=False)


def give_back(frames: Frames, through: Window, width: int, height: int) -> Frames:
    """The user's own frame of every generated one, ``[T, h, w, 3]`` -> ``[T, height, width, 3]``."""
    own_height, own_width = frames.shape[1:3]
    left, top, inner_width, inner_height = through.inner
    whole = abs(inner_width - 1) < _SHAPE_TOLERANCE and abs(inner_height - 1) < _SHAPE_TOLERANCE
    if whole and (own_width, own_height) == (width, height):
        return frames
    x, y = round(left * own_width), round(top * own_height)
    crop = frames[:, y : y + round(inner_height * own_height), x : x + round(inner_width * own_width)]
    method = cv2.INTER_AREA if width < crop.shape[2] else cv2.INTER_LANCZOS4
    result = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, out in zip(crop, result, strict=True):
        cv2.resize(frame, (width, height), dst=out, interpolation=method)
    return result
