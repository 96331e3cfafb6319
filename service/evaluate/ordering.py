"""Do the lips follow the words? Judged by order: how often the mouth is more closed in a closure than in other speech.

Counting closures that "hit" within a window flatters (windows at wrong times hit almost as often). The probability of being
ordered right does not: it is 0.5 for any mouth that moves without regard to the words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS
from service.evaluate.timings import Timings

Curve = NDArray[np.float64]

MAX_LAG = 4
"""Frames to either side within which the best lag is sought (160 ms)."""

SHIFTS = (-1.3, -0.9, -0.5, 0.5, 0.9, 1.3)
"""Seconds by which times are moved to see what chance scores."""

MIN_FRAMES = 5
"""A class seen in fewer frames is not judged."""


@dataclass(frozen=True)
class Ordering:
    """How well the frames of one viseme stand apart from other speech.

    Args:
        probability: that a frame of the viseme and another spoken frame are ordered right, at the best lag; 0.5 is chance.
        lag: that lag in frames; positive when the mouth comes after the sound.
        shifted: the same probability, at the same lag, with the viseme's times moved by :data:`SHIFTS` (mean).
        frames: number of frames of the viseme.
    """

    probability: float
    lag: int
    shifted: float
    frames: int


def precedence(lower: Curve, higher: Curve) -> float:
    """Probability that a value of ``lower`` lies below one of ``higher``, ties counted half (Mann-Whitney's U, the AUC)."""
    ranked = np.sort(higher)
    above = len(ranked) - (np.searchsorted(ranked, lower, "left") + np.searchsorted(ranked, lower, "right")) / 2
    return float(above.mean() / len(ranked))


def ordering(opening: Curve, timings: Timings, viseme: str, *, opens: bool = False) -> Ordering | None:
    """Judge one viseme.

    Args:
        opening: of the mouth, ``[T]``; NaN where no face was seen.
        timings: what is spoken when.
        viseme: the class judged.
        opens: whether its frames should be more open, not more closed, than other spoken frames.

    Returns:
        None when there are fewer than :data:`MIN_FRAMES` frames of the viseme, or of other speech.
    """
    curve = -opening if opens else opening
    spoken = timings.spoken(len(curve))
    member = timings.frames(viseme, len(curve))
    scores = {lag: _score(curve, member, spoken, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    found = {lag: score for lag, score in scores.items() if score is not None}
    if not found:
        return None
    best = max(found, key=lambda lag: (found[lag], -abs(lag)))
    chance = [_score(curve, timings.frames(viseme, len(curve), shift), spoken, best) for shift in SHIFTS]
    known = [score for score in chance if score is not None]
    return Ordering(found[best], best, float(np.mean(known)) if known else float("nan"), int((member & spoken).sum()))


def _score(curve: Curve, member: NDArray[np.bool_], spoken: NDArray[np.bool_], lag: int) -> float | None:
    moved = np.full(len(curve), np.nan)
    if lag >= 0:
        moved[: len(curve) - lag] = curve[lag:]
    else:
        moved[-lag:] = curve[:lag]
    seen = spoken & np.isfinite(moved)
    inside, outside = moved[seen & member], moved[seen & ~member]
    if min(len(inside), len(outside)) < MIN_FRAMES:
        return None
    return precedence(inside, outside)


def milliseconds(lag: float) -> float:
    """Frames as milliseconds."""
    return 1000 * lag / FPS
