"""How much each query attends to each class of keys (whose face is here), without ever storing the attention map.

    map[c, n] = mean over heads of sum over keys s under mask c of softmax(q[n] k^T / sqrt(D))[s], divided by mask c's count

It is attention whose values are the class masks: one more column of the same running softmax for each class. One program owns
a tile of queries and walks every head and key, so the mean over heads needs no atomics and the result is the same in every
run. Floor: the scores' arithmetic, 2 * N * S * H * D operations over the tensor cores' rate.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation
from kernels._softmax import LOG2_E, attend, head_dim_obstacle, load_tile, rows_obstacle, softmax_start
from kernels._triton import jit, launch, tl
from kernels.dispatch import Option, architecture, choose, runs_plain, triton_obstacle
from kernels.settings import launch_settings

# The tensor cores take 16 columns at least; classes beyond the masks given are zero columns.
MOST_CLASSES = 16


def class_attention_map(q: Tensor, k: Tensor, masks: Tensor, num_heads: int) -> Tensor:
    """q [N, H*D], k [S, H*D], masks [C, S] of 0 and 1 (any dtype, C <= 16) -> [C, N] fp32; an empty mask gives zero."""
    if masks.shape[0] > MOST_CLASSES:
        raise ValueError(f"{masks.shape[0]} classes are more than {MOST_CLASSES}")
    if runs_plain(q):
        return reference.class_attention_map(q, k, masks, num_heads)
    return _class_map_op(q, k, masks, num_heads)


@jit
@no_type_check
def _class_map_kernel(
    q,
    k,
    classes,
    out,
    queries,
    keys,
    q_stride,
    k_stride,
    factor,
    share,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CLASSES: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M
    mean = tl.zeros([BLOCK_M, CLASSES], tl.float32)
    last = (keys - 1) // BLOCK_N * BLOCK_N
    for head in range(0, num_heads):
        query = load_tile(q + head * HEAD_DIM, row, queries, q_stride, HEAD_DIM, BLOCK_M, True)
        state = softmax_start(BLOCK_M, CLASSES)
        k_tile = load_tile(k + head * HEAD_DIM, last, keys, k_stride, HEAD_DIM, BLOCK_N, True)
        values = load_tile(classes, last, keys, CLASSES, CLASSES, BLOCK_N, True)
        state = attend(query, k_tile, values, state, factor, keys - last, True)
        for start in range(0, last, BLOCK_N):
            k_tile = load_tile(k + head * HEAD_DIM, start, keys, k_stride, HEAD_DIM, BLOCK_N, False)
            values = load_tile(classes, start, keys, CLASSES, CLASSES, BLOCK_N, False)
            state = attend(query, k_tile, values, state, factor, BLOCK_N, False)
        acc, _, total = state
        mean += acc * (1.0 / total)[:, None]
    column = tl.arange(0, CLASSES)
    each = tl.load(share + column)
    index = row + tl.arange(0, BLOCK_M)
    tl.store(out + column[None, :] * queries + index[:, None], mean * each[None, :], mask=index[:, None] < queries)


@operation(
    "class_attention_map",
    fake=lambda q, k, masks, _: torch.empty((masks.shape[0], q.shape[0]), dtype=torch.float32, device=q.device),
)
def _class_map_op(q: Tensor, k: Tensor, masks: Tensor, num_heads: int) -> Tensor:
    obstacle = triton_obstacle("class_attention_map", q, (torch.bfloat16, torch.float16))
    obstacle = obstacle or head_dim_obstacle(q.shape[-1], num_heads) or rows_obstacle(q, k)
    options = (
        Option("triton", "the map is never stored", obstacle),
        Option("reference", "plain torch serves everything"),
    )
    if choose("class_attention_map", options) == "reference":
        return reference.class_attention_map(q, k, masks, num_heads).float()
    arch = architecture(q)
    assert arch is not None
    settings = launch_settings("class_attention_map", arch)
    count, keys = masks.shape
    classes = torch.zeros((keys, MOST_CLASSES), dtype=torch.float16, device=q.device)
    classes[:, :count] = masks.t()
    share = 1 / (classes.float().sum(0).clamp(min=1) * num_heads)
    out = torch.empty((MOST_CLASSES, q.shape[0]), dtype=torch.float32, device=q.device)
    head_dim = q.shape[1] // num_heads
    launch(
        _class_map_kernel,
        (-(-q.shape[0] // settings.block_m),),
        q,
        k,
        classes,
        out,
        q.shape[0],
        keys,
        q.stride(0),
        k.stride(0),
        head_dim**-0.5 * LOG2_E,
        share,
        num_heads,
        HEAD_DIM=head_dim,
        BLOCK_M=settings.block_m,
        BLOCK_N=settings.block_n,
        CLASSES=MOST_CLASSES,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return out[:count].clone()
