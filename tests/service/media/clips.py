"""Clips whose picture flashes when their sound clicks, and what is found when they are played back."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, Frames

SIDE = 64
CHUNK = 72
BRIGHT = 128


def flashes(first: int, last: int, marks: set[int]) -> Frames:
    """Frames ``first..last``: dark, with a slowly moving bar, and white at the marks."""
    frames = np.full((last - first, SIDE, SIDE, 3), 30, np.uint8)
    for number in range(first, last):
        if number in marks:
            frames[number - first] = 255
        else:
            frames[number - first, :, number % SIDE] = 60
    return frames


def clicks(rate: int, samples: int, marks: set[int]) -> NDArray[np.float64]:
    """Sound ``[1, samples]`` with 10 ms of noise at the time of every marked frame."""
    sound = np.zeros((1, samples))
    burst = 0.7 * np.sign(np.sin(np.arange(rate // 100) * 2 * np.pi * 1500 / rate))
    for mark in marks:
        place = mark * rate // FPS
        sound[0, place : place + len(burst)] = burst[: max(0, samples - place)]
    return sound


def spans(frames: int) -> Iterator[tuple[int, int, int]]:
    """Index, first frame and the frame after the last of every chunk."""
    for index, first in enumerate(range(0, frames, CHUNK)):
        yield index, first, min(frames, first + CHUNK)


def seen(source: str) -> list[float]:
    """Times of the white frames."""
    with av.open(source) as container:
        container.streams.video[0].thread_type = "AUTO"
        return [
            float(frame.pts * frame.time_base)
            for frame in container.decode(video=0)
            if np.asarray(frame.planes[0]).reshape(-1, frame.planes[0].line_size)[:, :SIDE].mean() > BRIGHT
        ]


def heard(source: str) -> list[float]:
    """Times at which clicks begin."""
    times: list[float] = []
    with av.open(source) as container:
        for frame in container.decode(audio=0):
            loud = np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.2)
            for place in loud:
                time = float(frame.pts * frame.time_base + Fraction(int(place), frame.sample_rate))
                if not times or time - times[-1] > 0.1:
                    times.append(time)
    return times
