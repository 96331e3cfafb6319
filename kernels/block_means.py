"""What a block of tokens is like: its mean token, and how much its tokens resemble one another.

    mean[h, b]       = mean over the block's tokens x of x[h]
    similarity[h, b] = mean over all pairs of its tokens of their cosine = |mean over its tokens of x[h] / |x[h]||^2

``select_blocks`` judges blocks by the first and believes it by the second (SpargeAttention, arXiv:2502.18137). One program a
block and head, the block in registers. Bytes: 1X, with X = the tokens in bf16; the floor is that over the memory's bandwidth.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation
from kernels._rows import contiguous_channels, require_rows
from kernels._softmax import head_dim_obstacle, load_tile
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.settings import launch_settings


def block_means(x: Tensor, num_heads: int, block: int) -> tuple[Tensor, Tensor]:
    """x [L, H*D] in blocks of so many tokens, the last one ragged -> mean [H, blocks, D] and similarity [H, blocks], fp32."""
    return reference.block_means(x, num_heads, block) if runs_plain(x) else _block_means_op(x, num_heads, block)


@jit
@no_type_check
def _block_means_kernel(x, means, similarities, rows, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(1)
    row = block * BLOCK
    entry = tl.program_id(0) * tl.num_programs(1) + block
    tile = load_tile(x + tl.program_id(0) * HEAD_DIM, row, rows, stride, HEAD_DIM, BLOCK, True).to(tl.float32)
    share = 1.0 / min(BLOCK, rows - row)
    tl.store(means + entry * HEAD_DIM + tl.arange(0, HEAD_DIM), tl.sum(tile, 0) * share)
    inverse = tl.rsqrt(tl.maximum(tl.sum(tile * tile, 1), 1e-24))
    direction = tl.sum(tile * inverse[:, None], 0) * share
    tl.store(similarities + entry, tl.sum(direction * direction, 0))


def _rooms(x: Tensor, num_heads: int, block: int) -> tuple[Tensor, Tensor]:
    blocks = -(-x.shape[0] // block)
    mean = torch.empty((num_heads, blocks, x.shape[1] // num_heads), dtype=torch.float32, device=x.device)
    return mean, torch.empty((num_heads, blocks), dtype=torch.float32, device=x.device)


@operation("block_means", fake=_rooms)
def _block_means_op(x: Tensor, num_heads: int, block: int) -> tuple[Tensor, Tensor]:
    if not use_triton("block_means", x, obstacle=head_dim_obstacle(x.shape[1], num_heads)):
        mean, similarity = reference.block_means(x, num_heads, block)
        return mean.float(), similarity.float()
    x = contiguous_channels(x)
    require_rows("x", x)
    arch = architecture(x)
    assert arch is not None
    mean, similarity = _rooms(x, num_heads, block)
    launch(
        _block_means_kernel,
        similarity.shape,
        x,
        mean,
        similarity,
        x.shape[0],
        x.stride(0),
        HEAD_DIM=x.shape[1] // num_heads,
        BLOCK=block,
        num_warps=launch_settings("block_means", arch).num_warps,
    )
    return mean, similarity
