"""The self-attention kernel: one program a tile of queries of one head, a running softmax over the keys it is given.

One body serves every variant, since they differ in constants only:

- products q k^T in 16 bits, int8 or fp8 (with a scale for each query row and each group of K_GROUP keys);
- products p v in 16 bits, or in fp8 from what ``quantise_v`` gives: V transposed, with an exponent for each group of keys;
- all keys, or for each block of Q_BLOCK queries an ascending list of blocks of K_BLOCK keys;
- tiles through the tensor memory accelerator's descriptors (sm_90) or through pointers (Ampere and Ada spill on descriptors).

Only the last block of keys is masked, and it comes first: lists are ascending, so the ragged end can stand nowhere else.
Floor: 4 * Lq * Lk * H * D operations (times the kept share of blocks) over the tensor cores' rate for the type; in 8 bits the
exponentials, Lq * Lk * H over the special function units' rate, weigh as much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any, no_type_check

import torch
from torch import Tensor

from kernels._operation import room
from kernels._softmax import LOG2_E, in_v_order, load_tile, softmax_start, softmax_weights, store_tile
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture
from kernels.reference import K_BLOCK, K_GROUP, Q_BLOCK
from kernels.settings import launch_settings

# The largest softmax weight becomes 2^8.8 = 446, just under fp8 e4m3's 448, to use its whole range.
_FP8_LIFT = 8.8


@dataclass(frozen=True)
class FlashInputs:
    """Operands of one launch; see the module for what each optional one selects.

    q [Lq, H*D]; k [Lk, H*D]; v [Lk, H*D], or [H*D, padded Lk] fp8; q_scale [H, Lq], k_scale and v_exponent
    [H, ceil(Lk / K_GROUP)], k_centre and v_centre [H*D], all fp32; block_list [H, ceil(Lq / Q_BLOCK), widest] and block_count
    [H, ceil(Lq / Q_BLOCK)] int32.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_scale: Tensor | None = None
    k_scale: Tensor | None = None
    k_centre: Tensor | None = None
    v_exponent: Tensor | None = None
    v_centre: Tensor | None = None
    block_list: Tensor | None = None
    block_count: Tensor | None = None


@jit
@no_type_check
def _rows_of(
    source, row, channel, rows, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, TMA: tl.constexpr
):
    tile = source.load([row, channel]) if TMA else load_tile(source + channel, row, rows, stride, HEAD_DIM, BLOCK, MASKED)
    return tile


@jit
@no_type_check
def _numbers_of(scales, start, GROUP: tl.constexpr, EIGHT_BIT_QK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The scale of the keys, and the exponent of the values, from ``start`` on; 1 and 0 where they have none."""
    k_scale, v_exponent = scales
    scale = tl.load(k_scale + start // GROUP) if EIGHT_BIT_QK else 1.0
    exponent = tl.load(v_exponent + start // GROUP) if TRANSPOSED else 0.0
    return scale, exponent


@jit
@no_type_check
def _start_of(step, block_list, PIECES: tl.constexpr, BLOCK_N: tl.constexpr):
    """The first key of a step."""
    if block_list is not None:
        step = tl.load(block_list + step // PIECES) * PIECES + step % PIECES
    return step * BLOCK_N


@jit
@no_type_check
def _step(
    query,
    operands,
    start,
    numbers,
    place,
    factor,
    state,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    EIGHT_BIT_QK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DEFERRED: tl.constexpr,
    TMA: tl.constexpr,
    LIFT: tl.constexpr,
):
    """The keys from ``start`` on, BLOCK_N of them, into the state.

    DEFERRED, a step adds up the product of the one before, after asking for its own scores: Hopper's tensor cores go from one
    product to the next, and the sums are theirs to wait for, not the other way round.
    """
    k, v = operands
    scale, exponent = numbers
    channel, k_len, k_stride, v_stride = place
    k_tile = _rows_of(k, start, channel, k_len, k_stride, HEAD_DIM, BLOCK_N, MASKED, TMA)
    if EIGHT_BIT_QK:
        factor = factor * scale
    if TRANSPOSED:
        v_tile = v.load([channel, start]) if TMA else load_tile(v + start, channel, 0, v_stride, BLOCK_N, HEAD_DIM, False)
    else:
        v_tile = _rows_of(v, start, channel, k_len, v_stride, HEAD_DIM, BLOCK_N, MASKED, TMA)
    scores = tl.dot(query, tl.trans(k_tile))
    if DEFERRED:
        acc, peak, total, product, fade = state
        acc = acc * fade[:, None] + product
    else:
        acc, peak, total = state
    weights, fade, peak, counted = softmax_weights(scores, peak, factor, k_len - start, MASKED, EIGHT_BIT_QK, exponent, LIFT)
    total = total * fade + counted
    weights = weights.to(v_tile.dtype)
    if TRANSPOSED:
        # fp8 sums carry 22 bits on Hopper and Ada, so each tile's are added up in fp32; said to the product instead
        # (max_num_imprecise_acc), ptxas runs its instructions one by one.
        product = tl.dot(in_v_order(weights), tl.trans(v_tile))
        state = (acc, peak, total, product, fade) if DEFERRED else (acc * fade[:, None] + product, peak, total)
    else:
        state = (tl.dot(weights, v_tile, acc * fade[:, None]), peak, total)
    return state


@jit
@no_type_check
def _flash_kernel(
    q,
    k,
    v,
    out,
    lse,
    q_scale,
    k_scale,
    k_centre,
    v_exponent,
    v_centre,
    block_list,
    block_count,
    q_len,
    k_len,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    widest,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP: tl.constexpr,
    LIST_ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    EIGHT_BIT_QK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DEFERRED: tl.constexpr,
    TMA: tl.constexpr,
    LIFT: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M
    head = tl.program_id(1)
    channel = head * HEAD_DIM
    query = _rows_of(q, row, channel, q_len, q_stride, HEAD_DIM, BLOCK_M, True, TMA)
    if EIGHT_BIT_QK:
        index = row + tl.arange(0, BLOCK_M)
        factor = factor * tl.load(q_scale + head * q_len + index, mask=index < q_len, other=1.0)
        k_scale += head * tl.cdiv(k_len, GROUP)
        # What K's centre would have added to the scores, the same for all keys of a query; here, where registers are free.
        removed = tl.load(k_centre + channel + tl.arange(0, HEAD_DIM))
        centre = tl.sum(query.to(tl.float32) * removed[None, :], 1) * factor * 0.6931471805599453
    if TRANSPOSED:
        v_exponent += head * tl.cdiv(k_len, GROUP)
    # ``before`` tiles of keys, and the last one, which alone may be ragged.
    if block_list is not None:
        entry = head * tl.cdiv(q_len, LIST_ROWS) + row // LIST_ROWS
        block_list += entry.to(tl.int64) * widest
        count = tl.load(block_count + entry)
        block = tl.load(block_list + count - 1)
        pieces = min(PIECES, tl.cdiv(k_len - block * (PIECES * BLOCK_N), BLOCK_N))
        before = count * PIECES - PIECES + pieces - 1
        start = (block * PIECES + pieces - 1) * BLOCK_N
    else:
        before = tl.cdiv(k_len, BLOCK_N) - 1
        start = before * BLOCK_N

    operands, scales = (k, v), (k_scale, v_exponent)
    place = (channel, k_len, k_stride, v_stride)
    state = softmax_start(BLOCK_M, HEAD_DIM)
    if DEFERRED:
        acc, peak, total = state
        state = (acc, peak, total, acc, tl.full([BLOCK_M], 1.0, tl.float32))
    # The masked step comes first: behind the loop it would keep the matrix instructions of the whole kernel from overlapping
    # on Hopper (ptxas C7515).
    numbers = _numbers_of(scales, start, GROUP, EIGHT_BIT_QK, TRANSPOSED)
    state = _step(
        query,
        operands,
        start,
        numbers,
        place,
        factor,
        state,
        HEAD_DIM,
        BLOCK_N,
        True,
        EIGHT_BIT_QK,
        TRANSPOSED,
        DEFERRED,
        TMA,
        LIFT,
    )
    # Each step's numbers are fetched a step ahead, by hand: left to the compiler they go through shared memory, and all warps
    # wait for one another once more in each step.
    numbers = _numbers_of(scales, _start_of(0, block_list, PIECES, BLOCK_N), GROUP, EIGHT_BIT_QK, TRANSPOSED)
    for step in range(0, before):
        start = _start_of(step, block_list, PIECES, BLOCK_N)
        following = _numbers_of(
            scales, _start_of(min(step + 1, before), block_list, PIECES, BLOCK_N), GROUP, EIGHT_BIT_QK, TRANSPOSED
        )
        state = _step(
            query,
            operands,
            start,
            numbers,
            place,
            factor,
            state,
            HEAD_DIM,
            BLOCK_N,
            False,
            EIGHT_BIT_QK,
            TRANSPOSED,
            DEFERRED,
            TMA,
            LIFT,
        )
        numbers = following

    if DEFERRED:
        acc, peak, total, product, fade = state
        acc = acc * fade[:, None] + product
    else:
        acc, peak, total = state
    mixed = acc * (1.0 / total)[:, None]
    if TRANSPOSED:
        # The weights of a row sum to one, so what was taken from all values comes back whole.
        mixed += tl.load(v_centre + channel + tl.arange(0, HEAD_DIM))[None, :]
    store_tile(out + channel, mixed, row, q_len, out_stride, HEAD_DIM, BLOCK_M)
    index = row + tl.arange(0, BLOCK_M)
    natural = (peak + tl.log2(total) - LIFT) * 0.6931471805599453
    if EIGHT_BIT_QK:
        natural += centre
    tl.store(lse + head * q_len + index, natural, mask=index < q_len)


def start_flash(
    setting: str, inputs: FlashInputs, num_heads: int, scale: float | None, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Run the kernel with the settings named -> the output [Lq, H*D] and the natural log-sum-exp of its scores [H, Lq] fp32."""
    arch = architecture(inputs.q)
    assert arch is not None
    settings = launch_settings(setting, arch)
    q_len, width = inputs.q.shape
    k_len = inputs.k.shape[0]
    head_dim = width // num_heads
    scale = head_dim**-0.5 if scale is None else scale
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"the scale of scores must be positive, not {scale}")
    if k_len == 0:
        raise ValueError("attention over no keys has no answer")
    out, lse = room(inputs.q, out_dtype), empty_lse(inputs.q, num_heads)
    if q_len == 0:
        return out, lse
    transposed = inputs.v_exponent is not None
    operands: tuple[Any, Any, Any] = (inputs.q, inputs.k, inputs.v)
    if settings.tma:
        keys_tile, values_tile = [settings.block_n, head_dim], [head_dim, settings.block_n]
        operands = (
            _describe(inputs.q, [settings.block_m, head_dim]),
            _describe(inputs.k, keys_tile),
            _describe(inputs.v, values_tile if transposed else keys_tile),
        )
    launch(
        _flash_kernel,
        (-(-q_len // settings.block_m), num_heads),
        *operands,
        out,
        lse,
        inputs.q_scale,
        inputs.k_scale,
        inputs.k_centre,
        inputs.v_exponent,
        inputs.v_centre,
        inputs.block_list,
        inputs.block_count,
        q_len,
        k_len,
        inputs.q.stride(0),
        inputs.k.stride(0),
        inputs.v.stride(0),
        out.stride(0),
        0 if inputs.block_list is None else inputs.block_list.shape[2],
        scale * LOG2_E,
        HEAD_DIM=head_dim,
        BLOCK_M=settings.block_m,
        BLOCK_N=settings.block_n,
        GROUP=K_GROUP,
        LIST_ROWS=Q_BLOCK,
        PIECES=1 if inputs.block_list is None else K_BLOCK // settings.block_n,
        EIGHT_BIT_QK=inputs.q_scale is not None,
        TRANSPOSED=transposed,
        DEFERRED=transposed and arch == "sm_90",
        TMA=settings.tma,
        LIFT=_FP8_LIFT if transposed else 0.0,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return out, lse


def _describe(x: Tensor, tile: list[int]) -> Any:
    """A descriptor of x, or of a copy: they need a 16-byte aligned start and rows that lie multiples of 16 bytes apart.

    A copy costs two passes over memory; the same tile through pointers spills on sm_90.
    """
    if x.data_ptr() % 16 or x.stride(0) * x.element_size() % 16 or x.stride(0) < x.shape[1]:
        x = x.clone(memory_format=torch.contiguous_format)
    descriptor = import_module("triton.tools.tensor_descriptor").TensorDescriptor
    return descriptor(x, list(x.shape), list(x.stride()), tile)


def empty_lse(q: Tensor, num_heads: int) -> Tensor:
    """Room for the log-sum-exp of every head and query."""
    return torch.empty((num_heads, q.shape[0]), dtype=torch.float32, device=q.device)
