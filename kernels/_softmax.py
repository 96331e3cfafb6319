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
def attend(
    query,
    keys,
    values,
    state,
    factor,
    keys_left,
    MASKED: tl.constexpr,
):
    """One tile of keys and values [N, D] in 16 bits into the state (weighted sum, peak, total) of a running softmax.

    Weights are 2^(score * factor - peak), factor a positive number; with MASKED only the first keys_left keys count.
    """
    acc, peak, total = state
    scores = tl.dot(query, tl.trans(keys))
    weights, fade, peak, counted = softmax_weights(scores, peak, factor, keys_left, MASKED)
    acc = tl.dot(weights.to(values.dtype), values, acc * fade[:, None])
    return acc, peak, total * fade + counted


@jit
@no_type_check
def softmax_weights(
    scores,
    peak,
    factor,
    keys_left,
    MASKED: tl.constexpr,
    ROW_FACTOR: tl.constexpr = False,
    exponent=0.0,
    LIFT: tl.constexpr = 0.0,
):
    """Scores of a tile to weights 2^(score * factor + exponent - peak + LIFT).

    factor is a positive number, or one for each row (ROW_FACTOR). exponent is that of values in 8 bits, which the weights take
    upon them, and LIFT moves the largest weight up from 1 to use an 8-bit type's range; both are 0 for others.

    Returns the weights; by how much what was weighed before is to fade; the new peak; and the weights' sums, without the
    exponent but lifted, so that a quotient is neither.
    """
    scores = scores.to(tl.float32)
    if MASKED:
        scores = tl.where(tl.arange(0, scores.shape[1])[None, :] < keys_left, scores, float("-inf"))
    highest = tl.max(scores, 1) * factor
    if LIFT > 0:
        highest += exponent
    new_peak = tl.maximum(peak, highest)
    weights = tl.exp2(scores * (factor[:, None] if ROW_FACTOR else factor) - (new_peak - LIFT - exponent)[:, None])
    counted = tl.sum(weights, 1)
    if LIFT > 0:
        counted *= tl.exp2(-exponent)
    return weights, tl.exp2(peak - new_peak), new_peak, counted


@jit
@no_type_check
def in_v_order(weights):
    """Columns of weights [M, N] in the order of ``reference.V_ORDER``, in which each thread holds what it goes on to multiply."""
    by_thread = tl.reshape(weights, [weights.shape[0], weights.shape[1] // 16, 2, 4, 2])
    return tl.reshape(tl.permute(by_thread, (0, 1, 3, 2, 4)), weights.shape)


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
    """softmax(q k^T) v of one query tile over a short list of keys in 16 bits, in whole blocks and a smaller one for the rest."""
    state = softmax_start(BLOCK_M, HEAD_DIM)
    whole = keys // BLOCK_N * BLOCK_N
    # The rest comes first: after a loop it would keep Hopper's matrix instructions of the whole kernel from overlapping.
    if TAIL_N > 0:
        k_rest = load_tile(k, whole, keys, k_stride, HEAD_DIM, TAIL_N, True)
        v_rest = load_tile(v, whole, keys, v_stride, HEAD_DIM, TAIL_N, True)
        state = attend(q, k_rest, v_rest, state, factor, keys - whole, True)
    for start in range(0, whole, BLOCK_N):
        k_tile = load_tile(k, start, keys, k_stride, HEAD_DIM, BLOCK_N, False)
        v_tile = load_tile(v, start, keys, v_stride, HEAD_DIM, BLOCK_N, False)
        state = attend(q, k_tile, v_tile, state, factor, BLOCK_N, False)
    acc, _, total = state
    return acc * (1.0 / total)[:, None]
