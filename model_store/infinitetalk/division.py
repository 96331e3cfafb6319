"""How the forwards of a step are divided among processes: by the branches of guidance, by tokens, or by both.

Branches need no exchange while they are computed, but a step takes as many rounds as a group of processes has branches. Tokens
shorten every forward, at the cost of exchanges around each self-attention. Neither is always better: two GPUs take two branches
one each, but of three branches they compute one after another together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EXCHANGE = 0.05
"""What the exchanges of shared tokens cost, as a part of a whole forward. An assumption for GPUs joined by NVLink, never
measured: by bytes and FLOPs alone it is 0.01 there, and 0.1 over PCIe."""


@dataclass(frozen=True)
class Division:
    """``groups`` of ``share`` processes each: a group computes whole forwards, its processes share the tokens of each.

    Args:
        groups: how many branches are computed at a time.
        share: how many processes compute one forward.
    """

    groups: int
    share: int

    @property
    def processes(self) -> int:
        """Processes that have work."""
        return self.groups * self.share

    def group_of(self, rank: int) -> int | None:
        """The group of a process, ranks counted along the groups; None for one that has no work."""
        return rank // self.share if rank < self.processes else None


def divide(processes: int, branches: int, heads: int, tokens: int) -> Division:
    """The division that takes the least time.

    Args:
        processes: how many there are; not all need be used.
        branches: forwards of a step, 1 to 3.
        heads: attention heads of the model.
        tokens: of one latent frame.
    """
    every = divisions(processes, branches, heads, tokens)
    return min(every, key=lambda division: (_cost(division, branches), division.processes))


def divisions(processes: int, branches: int, heads: int, tokens: int) -> list[Division]:
    """All that can be computed; arguments as of :func:`divide`."""
    shares = [share for share in range(1, processes + 1) if heads % share == 0 and tokens % share == 0]
    return [Division(groups, share) for share in shares for groups in range(1, min(branches, processes // share) + 1)]


def _cost(division: Division, branches: int) -> float:
    """Time of a step, in forwards of one process."""
    forward = 1 / division.share + (EXCHANGE if division.share > 1 else 0)
    return math.ceil(branches / division.groups) * forward
