"""Steps whose blocks are not run: what they added at an earlier step is added again (TeaCache, arXiv:2411.19108).

TeaCache skips while the first modulation has changed little. That modulation depends on the time alone, so which steps are
skipped is known before the first one, and is the same for every branch of guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

ALWAYS_RUN = 5
"""The first steps, which lay out the picture, are never skipped."""

CHANGE: Mapping[str, tuple[float, ...]] = {
    "480": (2.57151496e5, -3.54229917e4, 1.40286849e3, -1.35890334e1, 1.32517977e-1),
    "720": (8.10705460e3, 2.13393892e3, -3.72934672e2, 1.66203073e1, -4.17769401e-2),
}
"""Polynomials, highest power first, from the modulation's relative change to the output's, fitted by TeaCache's authors for
Wan2.1 image to video at both resolutions."""


@dataclass
class KeptBlocks:
    """What all blocks together added to the residual stream, ``[N, dim]``, the last time they ran."""

    added: Tensor | None = None


def skipped_steps(
    times: Sequence[float], modulation: Callable[[float], Tensor], resolution: str, threshold: float
) -> frozenset[int]:
    """Indices of the steps that skip the blocks.

    Args:
        times: of the steps, without the final 0.
        modulation: the transformer's time modulation at a time.
        resolution: a key of :data:`CHANGE`.
        threshold: how much estimated change may gather before the blocks run again; 0 skips nothing, 0.2 is usual.
    """
    skipped: set[int] = set()
    gathered = 0.0
    before = modulation(times[0])
    for step, time in enumerate(times[1:], start=1):
        now = modulation(time)
        change = ((now - before).abs().mean() / before.abs().mean()).item()
        before = now
        if step < ALWAYS_RUN:
            continue
        gathered += float(np.polyval(CHANGE[resolution], change))
        if gathered < threshold:
            skipped.add(step)
        else:
            gathered = 0.0
    return frozenset(skipped)
