"""Requests to the tiny random engine, and references that tell what was asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_store.engine import SAMPLES_PER_FRAME, PerformanceRequest, Picture, Plan

_RANDOM = np.random.default_rng(5)
_SOUND = (0.1 * _RANDOM.standard_normal(96_001) * np.sin(np.arange(96_001) * 0.0007)).astype(np.float32)

TINY = {"variant": "tiny-random", "steps": 1, "audio_guidance": 1}


@dataclass(frozen=True)
class LongSpeech:
    """Speech of any length that is made up as it is read, and says how much was asked for at once."""

    samples: int
    asked: list[int] = field(default_factory=list)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        self.asked.append(stop - start)
        place = np.arange(start, stop)
        return np.where((place >= 0) & (place < self.samples), _SOUND[place % len(_SOUND)], 0).astype(np.float32)


@dataclass(frozen=True)
class Film:
    """A source video: a plain colour for every scene, a soft pattern in it, and the times that were asked for."""

    cuts: tuple[float, ...] = ()
    seconds: float = 1e6
    asked: list[float] = field(default_factory=list)

    def frame_at(self, seconds: float) -> Picture:
        self.asked.append(seconds)
        scene = sum(seconds >= cut for cut in self.cuts)
        colour = np.random.default_rng(scene).integers(40, 216, 3)
        pattern = 20 * np.sin(np.arange(64) / 9 + seconds)
        picture = colour + pattern[:, None, None] + pattern[None, :, None]
        return np.clip(picture, 0, 255).astype(np.uint8)


def request(frames: int, reference: Any = None, **options: Any) -> PerformanceRequest:
    if reference is None:
        reference = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    speech = LongSpeech(frames * SAMPLES_PER_FRAME)
    return PerformanceRequest(reference, speech, 128, 128, seed=3, options=TINY | options)


def plan(frames: int) -> Plan:
    return Plan(128, 128, frames, 72, 81)
