"""Which frames each pass of the sampler makes: 81 at a time, the first ones repeating the end of what is there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

TAKE_FRAMES = 81
"""Video frames that the model makes at once, as it was trained."""

OVERLAP_FRAMES = 9
"""Frames that a take repeats of what it continues: three latent frames."""

OVERLAPS = (OVERLAP_FRAMES, 5, 1, 0)
"""Possible overlaps, the longest first: those that fill latent frames. None where a scene begins."""


def overlap(made: int) -> int:
    """How many frames can be continued from when ``made`` frames of the scene are there."""
    return next(length for length in OVERLAPS if length <= made)


@dataclass(frozen=True)
class Take:
    """One pass of the sampler.

    Args:
        start, stop: the frames of the output that are kept.
        overlap: frames before ``start`` that it repeats.
    """

    start: int
    stop: int
    overlap: int

    @property
    def first(self) -> int:
        """The first of its :data:`TAKE_FRAMES` frames: the moment of its reference, and what its noise follows from."""
        return self.start - self.overlap


def takes(start: int, stop: int, scene: int, cuts: Sequence[int]) -> list[Take]:
    """The takes of one chunk: one, and one more for each scene that begins in it.

    Args:
        start, stop: the chunk's frames.
        scene: first frame of the scene that reaches into the chunk.
        cuts: first frames of the scenes that begin in it.
    """
    edges = sorted({start, *cuts, stop})
    found = []
    for first, last in itertools.pairwise(edges):
        scene = first if first in cuts else scene
        found.append(Take(first, last, overlap(first - scene)))
    return found
