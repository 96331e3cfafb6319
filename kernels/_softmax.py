"""The step that every attention kernel repeats: one tile of keys into a running softmax (FlashAttention, arXiv:2205.14135)."""

from __future__ import annotations

from typing import no_type_check

from torch import Tensor

from kernels._triton import jit, tl

LOG2_E = 1.4426950408889634  # exp(x) = exp2(x * log2 e), and exp2 is the hardware's


def head_dim_obstacle(width: int, num_heads: int) -> str | None:
    """Why the attention kernels cannot take heads of this size, or None."""
    head_dim = width // num_heads
    if width % num_heads:
        raise ValueError(f"{width} channels do not split into {num_heads} heads")
    return None if head_dim in (32, 64, 128) else f"head_dim {head_dim} is none of 32, 64, 128"


def rows_obstacle(*tensors: Tensor) -> str | None:
    """Why pointers of the attention kernels cannot address these tensors, or None."""
    return None if all(x.stride(-1) == 1 for x in tensors) else "channels are not contiguous"


def tail_block(keys: int, block: int) -> int:
    """The power of two, 16 or more, that covers the keys left after whole blocks; 0 when none are left."""
    rest = keys % block
    return max(16, 1 << (rest - 1).bit_length()) if rest else 0


@jit
@no_type_check
def softmax_start(ROWS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """An empty softmax: weighted sum, largest exponent and total weight of each row."""
    return (
        tl.zeros([ROWS, HEAD_DIM], tl.float32),
        tl.full([ROWS], float("-inf"), tl.float32),
        tl.zeros([ROWS], tl.float32),
    )


@jit
@no_type_check
def softmax_weights(
    scores, acc, peak, total, factor, columns_left, MASKED: tl.constexpr, ROW_FACTOR: tl.constexpr, LIFT: tl.constexpr
):
    """Scores of one tile to weights 2^(score * factor - peak + LIFT); what ran before is rescaled to the new peak.

    factor is a positive number, or one for each row (ROW_FACTOR). LIFT moves the largest weight up from 1 to use an 8-bit
    type's range; total is lifted with it, so the quotient is not.
    """
    scores = scores.to(tl.float32)
    if MASKED:
        scores = tl.where(tl.arange(0, scores.shape[1])[None, :] < columns_left, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
    weights = tl.exp2(scores * (factor[:, None] if ROW_FACTOR else factor) - (new_peak - LIFT)[:, None])
    fade = tl.exp2(peak - new_peak)
    total = total * fade + tl.sum(weights, 1)
    acc = acc * fade[:, None]
    return weights, acc, new_peak, total


@jit
@no_type_check
def tile_pointers(pointer, row, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers of rows row..row+BLOCK of one head: a wide scalar base and narrow offsets, which stay the same in a loop."""
    base = pointer + (tl.full([], 0, tl.int64) + row) * stride
    return base + (tl.arange(0, BLOCK)[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :])


@jit
@no_type_check
def load_tile(pointer, row, rows, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Rows row..row+BLOCK of one head [rows, HEAD_DIM]; with MASKED, rows past the end are zero."""
    pointers = tile_pointers(pointer, row, stride, HEAD_DIM, BLOCK)
    if MASKED:
        return tl.load(pointers, mask=(tl.arange(0, BLOCK) < rows - row)[:, None], other=0.0)
    return tl.load(pointers)


@jit
@no_type_check
def store_tile(pointer, values, row, rows, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Write rows row..row+BLOCK of one head, those before ``rows``."""
    mask = (tl.arange(0, BLOCK) < rows - row)[:, None]
    tl.store(tile_pointers(pointer, row, stride, HEAD_DIM, BLOCK), values.to(pointer.dtype.element_ty), mask=mask)


@jit
@no_type_check
def attend_all(
    q,
    k,
    v,
    k_stride,
    v_stride,
    keys,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
):
    """softmax(q k^T) v of one query tile over a short list of keys in 16 bits, whole blocks then a smaller one for the rest."""
    acc, peak, total = softmax_start(BLOCK_M, HEAD_DIM)
    whole = keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        k_tile = load_tile(k, start, keys, k_stride, HEAD_DIM, BLOCK_N, False)
        v_tile = load_tile(v, start, keys, v_stride, HEAD_DIM, BLOCK_N, False)
        scores = tl.dot(q, tl.trans(k_tile))
        weights, acc, peak, total = softmax_weights(scores, acc, peak, total, factor, 0, False, False, 0.0)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
    if TAIL_N > 0:
        k_tile = load_tile(k, whole, keys, k_stride, HEAD_DIM, TAIL_N, True)
        v_tile = load_tile(v, whole, keys, v_stride, HEAD_DIM, TAIL_N, True)
        scores = tl.dot(q, tl.trans(k_tile))
        weights, acc, peak, total = softmax_weights(scores, acc, peak, total, factor, keys - whole, True, False, 0.0)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc)
    return acc / total[:, None]
