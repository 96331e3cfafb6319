"""Positions and times as numbers: the rotary tables of the video tokens and the sinusoid of the time step."""

from __future__ import annotations

import torch
from torch import Tensor

ROTARY_THETA = 10_000.0
TIME_PERIOD = 10_000.0


def rotary_tables(grid: tuple[int, int, int], head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 3-D rotary embedding (RoFormer, arXiv:2104.09864, one axis after another).

    The ``head_dim / 2`` complex pairs are split over time, height and width; each axis has its own exponents
    ``theta^(-i/n)``, i = 0..n-1, over its own n pairs. Angles are computed in float64.

    Args:
        grid: tokens along time, height and width ``(T, H, W)``; positions count from 0.
        head_dim: even; a third (rounded down to pairs) each for height and width, the rest for time (128: 22, 21, 21 pairs).

    Returns:
        cos, sin: float32 ``[T*H*W, head_dim/2]``, tokens in row-major order of ``grid``.
    """
    per_side = head_dim // 6
    pairs = (head_dim // 2 - 2 * per_side, per_side, per_side)
    angles = []
    for axis, (length, count) in enumerate(zip(grid, pairs, strict=True)):
        frequencies = ROTARY_THETA ** -(torch.arange(count, dtype=torch.float64) / count)
        shape = [1, 1, 1, count]
        shape[axis] = length
        angles.append(torch.outer(torch.arange(length, dtype=torch.float64), frequencies).view(shape).expand(*grid, count))
    table = torch.cat(angles, dim=-1).flatten(0, 2)
    return table.cos().float(), table.sin().float()


def time_sinusoid(timestep: float, dim: int) -> Tensor:
    """``[cos | sin]`` of ``t * 10000^(-i/(dim/2))``, computed in float64 (Attention Is All You Need, arXiv:1706.03762).

    Args:
        timestep: 0..1000, 1000 is pure noise.
        dim: even.

    Returns:
        float32 ``[dim]``.
    """
    half = dim // 2
    angles = timestep * TIME_PERIOD ** -(torch.arange(half, dtype=torch.float64) / half)
    return torch.cat((angles.cos(), angles.sin())).float()
