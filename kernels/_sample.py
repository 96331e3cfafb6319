"""What a few rows tell of all: a centre to take away before quantising, and how far from it values reach.

    centre[h*D + d] = mean over the sample of x           peak[h] = max over the sample and d of |x - centre|

Any centre serves, since what is taken away is accounted for; the nearer to the mean, the finer the steps that are left. One
program a head, its sample in registers.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture
from kernels.reference import SAMPLE_ROWS
from kernels.settings import launch_settings


@jit
@no_type_check
def _sample_kernel(x, centre, peak, rows, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    head = tl.program_id(0)
    channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    row = tl.arange(0, BLOCK)
    # The sample spans the whole tensor, so its rows lie further apart than narrow offsets reach.
    pointers = x + row.to(tl.int64)[:, None] * stride + channels[None, :]
    tile = tl.load(pointers, mask=(row < rows)[:, None], other=0.0).to(tl.float32)
    mean = tl.sum(tile, 0) / rows
    tl.store(centre + channels, mean)
    reach = tl.where((row < rows)[:, None], tl.abs(tile - mean[None, :]), 0.0)
    tl.store(peak + head, tl.max(tl.max(reach, 1), 0))


def start_sample(x: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """centre [H*D] and peak [H] fp32 of a sample x [at most SAMPLE_ROWS, H*D]."""
    arch = architecture(x)
    assert arch is not None
    centre = torch.empty((x.shape[1],), dtype=torch.float32, device=x.device)
    peak = torch.empty((num_heads,), dtype=torch.float32, device=x.device)
    launch(
        _sample_kernel,
        (num_heads,),
        x,
        centre,
        peak,
        x.shape[0],
        x.stride(0),
        HEAD_DIM=x.shape[1] // num_heads,
        BLOCK=SAMPLE_ROWS,
        num_warps=launch_settings("sample", arch).num_warps,
    )
    return centre, peak
