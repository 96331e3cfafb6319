"""What is heard: loudness at every frame, and how far the mouth runs ahead of it or behind."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_store.engine import SAMPLES_PER_FRAME, Speech

Curve = NDArray[np.float64]

_FLOOR = -60.0
_WIDEST_LAG = 10


def loudness(speech: Speech, count: int) -> Curve:
    """Loudness of each of ``count`` frames in dB (RMS of its 40 ms; -60 at least), ``[count]``."""
    levels = np.empty(count)
    for frame in range(count):
        window = speech.read(frame * SAMPLES_PER_FRAME, (frame + 1) * SAMPLES_PER_FRAME)
        levels[frame] = 10 * np.log10(max(float(np.mean(np.square(window, dtype=np.float64))), 1e-12))
    return np.maximum(levels, _FLOOR)


def sound_lag(opening: Curve, level: Curve) -> tuple[int, float]:
    """The lag, in frames, at which opening follows loudness best, and their correlation there.

    Positive when the mouth comes after the sound; sought within ten frames to either side. (0, 0.0) when either never changes.
    """
    best, correlation = 0, 0.0
    for lag in sorted(range(-_WIDEST_LAG, _WIDEST_LAG + 1), key=abs):
        a, b = (opening[lag:], level[: len(level) - lag]) if lag >= 0 else (opening[:lag], level[-lag:])
        seen = np.isfinite(a)
        a, b = a[seen], b[seen]
        if len(a) < 3 or a.std() == 0 or b.std() == 0:
            continue
        value = float(np.corrcoef(a, b)[0, 1])
        if value > correlation:
            best, correlation = lag, value
    return best, correlation
