"""Counting blinks: short dips of the eyes' openness below its level in the seconds around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS

Curve = NDArray[np.float64]

_LEVEL_SECONDS = 3.0
_CLOSING, _CLOSED = 0.9, 0.8
"""Share of the open level at which a blink begins and ends, and which it must fall below to count. The detector stays
well above the true openness of shut eyes, and trembles by 2% on open ones."""
_LONGEST_SECONDS = 0.7
"""Eyes shut longer than this are shut, not blinking."""
_SHORTEST_OPEN = 3
"""Frames for which eyes must be open between two blinks; the detector wavers where lids are quite shut."""


@dataclass(frozen=True)
class Blink:
    """One blink: its first frame, the frame after its last, and the frame of least openness."""

    start: int
    stop: int
    deepest: int


def find_blinks(openness: Curve) -> list[Blink]:
    """Blinks in the eyes' openness ``[T]`` (frames without a face, NaN, hold none).

    The open level is the running median of three seconds, so that squints and smiles are not taken for blinks.
    """
    half = round(_LEVEL_SECONDS * FPS / 2)
    padded = np.pad(openness, half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    seen = np.isfinite(openness)
    level = np.full(len(openness), np.nan)
    level[seen] = np.nanmedian(windows[seen], axis=1)
    with np.errstate(invalid="ignore"):
        share = openness / level
        closing = np.concatenate([[False], share < _CLOSING, [False]])
    edges = np.flatnonzero(np.diff(closing.astype(np.int8))).tolist()
    for opened, shut in list(zip(edges[1::2], edges[2::2], strict=False)):
        if shut - opened <= _SHORTEST_OPEN and np.isfinite(share[opened:shut]).all():
            edges.remove(opened)
            edges.remove(shut)
    return [
        Blink(int(start), int(stop), int(start + np.argmin(share[start:stop])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True)
        if share[start:stop].min() < _CLOSED and stop - start <= _LONGEST_SECONDS * FPS
    ]
