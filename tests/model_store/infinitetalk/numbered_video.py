"""Videos whose every frame shows its own number, in black and white squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 16
_SQUARE = 16


def picture(number: int) -> NDArray[np.uint8]:
    bits = np.array([number >> bit & 1 for bit in range(BITS)], np.uint8).reshape(4, 4) * 219 + 16
    return np.repeat(np.repeat(bits, _SQUARE, 0), _SQUARE, 1)


def number_in(shown: NDArray[np.uint8]) -> int:
    squares = shown[_SQUARE // 2 :: _SQUARE, _SQUARE // 2 :: _SQUARE].mean(2) > 128
    return sum(1 << bit for bit, lit in enumerate(squares.reshape(-1)) if lit)


def write(path: Path, rate: Fraction, stretches: Sequence[tuple[float, float]], codec: str = "libx264") -> None:
    """Frames number / rate seconds into the video, those of the stretches (in seconds) only: the frame before a gap lasts."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = 4 * _SQUARE
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 250
        stream.time_base = 1 / rate
        stream.options = {"preset": "ultrafast", "crf": "30"} if codec == "libx264" else {}
        grey = np.full((2 * _SQUARE, 4 * _SQUARE), 128, np.uint8)
        for number in (n for begin, end in stretches for n in range(math.ceil(begin * rate), math.ceil(end * rate))):
            frame = av.VideoFrame.from_ndarray(np.concatenate([picture(number), grey]), format="yuv420p")
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
