"""q and k in 8 bits for ``self_attention_eight_bit``, with norm and rotary on the way or without (arXiv:2410.02367).

    q ~ q8 * q_scale[head, query]            k - mean(k) ~ k8 * k_scale[head, group of K_GROUP keys]

A group's scale can be known only when all its rows are normed, a norm needs the whole row, and a group of rows is more than a
program can hold: so K is read twice and q once, and nothing is written in 16 bits. Bytes, with X = one [tokens, channels] bf16
tensor: q 1.5X and k 2.5X. Floor: those 4X over the memory's bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._rows import contiguous_channels, cut_row, largest, read_part, require_rows, to_eight_bits
from kernels._softmax import head_dim_obstacle, load_tile, store_tile
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.quantise import eight_bit_obstacle
from kernels.reference import K_GROUP
from kernels.rms_rope import rotated_part
from kernels.settings import launch_settings


class EightBitQK(NamedTuple):
    """q [Lq, H*D] and mean-free k [Lk, H*D], int8 or fp8; q_scale [H, Lq], k_scale [H, ceil(Lk / K_GROUP)], k_mean [H*D] fp32."""

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor
    k_mean: Tensor


def quantise_qk(q: Tensor, k: Tensor, num_heads: int, dtype: torch.dtype = torch.int8) -> EightBitQK:
    """q and k [L, H*D], normed and rotated, to 8 bits with K's mean over tokens taken away."""
    if runs_plain(q):
        return EightBitQK(*reference.quantise_qk(q, k, num_heads, dtype))
    return EightBitQK(*_quantise_qk_op(q, k, None, None, None, None, num_heads, 0.0, dtype))


def qk_norm_rope_quantised(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.int8,
) -> EightBitQK:
    """``quantise_qk`` of ``qk_norm_rope``, in fp32 between the two: q and k [L, H*D] of one length, tables [L, D/2]."""
    if runs_plain(q):
        rotated = reference.qk_norm_rope(q.float(), k.float(), q_weight, k_weight, cos, sin, num_heads, eps)
        return EightBitQK(*reference.quantise_qk(*rotated, num_heads, dtype))
    return EightBitQK(*_quantise_qk_op(q, k, q_weight, k_weight, cos, sin, num_heads, eps, dtype))


@jit
@no_type_check
def _prepared_row(
    x, weight, cos, sin, row, stride, pairs, width, eps, HEAD: tl.constexpr, TAIL: tl.constexpr, RAGGED: tl.constexpr
):
    """Both parts of a row (no TAIL: the head twice), normed and rotated if weights are given; one over its root mean square."""
    x += row * stride
    head = read_part(x, tl.arange(0, HEAD), width, False)
    tail = head
    if TAIL > 0:
        tail = read_part(x, HEAD + tl.arange(0, TAIL), width, RAGGED)
    rstd = 1.0
    if weight is not None:
        squares = tl.sum(head * head, 0)
        if TAIL > 0:
            squares += tl.sum(tail * tail, 0)
        rstd = tl.rsqrt(squares / width + eps)
        cos += row * pairs
        sin += row * pairs
        head = head * rstd * read_part(weight, tl.arange(0, HEAD), width, False)
        head = rotated_part(head, cos, sin, tl.arange(0, HEAD // 2), pairs, HEAD)
        if TAIL > 0:
            tail = tail * rstd * read_part(weight, HEAD + tl.arange(0, TAIL), width, RAGGED)
            tail = rotated_part(tail, cos, sin, HEAD // 2 + tl.arange(0, TAIL // 2), pairs, TAIL)
    return head, tail, rstd


@jit
@no_type_check
def _write_heads(values, scales, part, first, row, rows, width, PART: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Whole heads of a row, from channel ``first`` on, each with its own scale."""
    heads = tl.reshape(part, [PART // HEAD_DIM, HEAD_DIM])
    units = tl.maximum(tl.max(tl.abs(heads), 1), 1e-12) / largest(values.dtype.element_ty)
    channels = first + tl.reshape(tl.arange(0, PART), [PART // HEAD_DIM, HEAD_DIM])
    inside = channels < width
    tl.store(values + row * width + channels, to_eight_bits(heads / units[:, None], values.dtype.element_ty), mask=inside)
    index = first // HEAD_DIM + tl.arange(0, PART // HEAD_DIM)
    tl.store(scales + index * rows + row, units, mask=index * HEAD_DIM < width)


@jit
@no_type_check
def _rows_kernel(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    q_values,
    q_scales,
    k_rstd,
    k_sums,
    q_rows,
    k_rows,
    q_stride,
    k_stride,
    pairs,
    width,
    eps,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A chunk of rows: of q, finished; of k, their norms and the sums of their channels."""
    chunk = tl.program_id(0)
    first = chunk.to(tl.int64) * CHUNK
    if tl.program_id(1) == 0:
        for step in range(0, min(CHUNK, q_rows - first)):
            row = first + step
            head, tail, _ = _prepared_row(q, q_weight, cos, sin, row, q_stride, pairs, width, eps, HEAD, TAIL, RAGGED)
            _write_heads(q_values, q_scales, head, 0, row, q_rows, width, HEAD, HEAD_DIM)
            if TAIL > 0:
                _write_heads(q_values, q_scales, tail, HEAD, row, q_rows, width, TAIL, HEAD_DIM)
    elif first < k_rows:
        head_sum = tl.zeros([HEAD], tl.float32)
        tail_sum = tl.zeros([TAIL if TAIL > 0 else HEAD], tl.float32)
        for step in range(0, min(CHUNK, k_rows - first)):
            row = first + step
            head, tail, rstd = _prepared_row(k, k_weight, cos, sin, row, k_stride, pairs, width, eps, HEAD, TAIL, RAGGED)
            head_sum += head
            if TAIL > 0:
                tail_sum += tail
            if k_rstd is not None:
                tl.store(k_rstd + row, rstd)
        k_sums += chunk * width
        tl.store(k_sums + tl.arange(0, HEAD), head_sum)
        if TAIL > 0:
            columns = HEAD + tl.arange(0, TAIL)
            tl.store(k_sums + columns, tail_sum, mask=columns < width)


@jit
@no_type_check
def _keys_kernel(
    k, rstd, weight, cos, sin, mean, values, scales, rows, stride, width, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """A group of keys of one head: normed and rotated if rstd is given, centred, one scale for all."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    row = block * BLOCK
    channel = head * HEAD_DIM
    index = row + tl.arange(0, BLOCK)
    valid = (index < rows)[:, None]
    tile = load_tile(k + channel, row, rows, stride, HEAD_DIM, BLOCK, True).to(tl.float32)
    if rstd is not None:
        gain = tl.load(weight + channel + tl.arange(0, HEAD_DIM)).to(tl.float32)
        tile = tile * tl.load(rstd + index, mask=index < rows, other=0.0)[:, None] * gain[None, :]
        pointers = index[:, None] * (HEAD_DIM // 2) + tl.arange(0, HEAD_DIM // 2)[None, :]
        c = tl.load(cos + pointers, mask=valid, other=0.0).to(tl.float32)
        s = tl.load(sin + pointers, mask=valid, other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(tile, [BLOCK, HEAD_DIM // 2, 2]))
        tile = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), [BLOCK, HEAD_DIM])
    tile = tl.where(valid, tile - tl.load(mean + channel + tl.arange(0, HEAD_DIM))[None, :], 0.0)
    unit = tl.maximum(tl.max(tl.max(tl.abs(tile), 1), 0), 1e-12) / largest(values.dtype.element_ty)
    tl.store(scales + head * tl.num_programs(0) + block, unit)
    store_tile(values + channel, to_eight_bits(tile / unit, values.dtype.element_ty), row, rows, width, HEAD_DIM, BLOCK)


def _qk_rooms(q: Tensor, k: Tensor, num_heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def scales(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    groups = -(-k.shape[0] // K_GROUP)
    return room(q, dtype), scales(num_heads, q.shape[0]), room(k, dtype), scales(num_heads, groups), scales(k.shape[1])


def _fake_qk(q: Tensor, k: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_heads, dtype = rest[4], rest[6]
    assert isinstance(num_heads, int)
    assert isinstance(dtype, torch.dtype)
    return _qk_rooms(q, k, num_heads, dtype)


@operation("quantise_qk", fake=_fake_qk)
def _quantise_qk_op(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    obstacle = eight_bit_obstacle(q, dtype) or head_dim_obstacle(q.shape[-1], num_heads)
    if not use_triton("quantise_qk", q, obstacle=obstacle):
        if q_weight is not None and k_weight is not None and cos is not None and sin is not None:
            q, k = reference.qk_norm_rope(q.float(), k.float(), q_weight, k_weight, cos, sin, num_heads, eps)
        return reference.quantise_qk(q, k, num_heads, dtype)
    q, k = contiguous_channels(q), contiguous_channels(k)
    require_rows("q", q)
    require_rows("k", k)
    arch = architecture(q)
    assert arch is not None
    length, width = k.shape
    head_dim = width // num_heads
    tables = (None if cos is None else cos.contiguous(), None if sin is None else sin.contiguous())
    if cos is not None and (q.shape != k.shape or cos.shape != (q.shape[0], head_dim // 2)):
        raise ValueError(f"q, k and tables differ in length: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(cos.shape)}")
    q_values, q_scales, k_values, k_scales, _ = _qk_rooms(q, k, num_heads, dtype)
    settings = launch_settings("quantise_qk", arch)
    sums = torch.empty((-(-length // settings.block_m), width), dtype=torch.float32, device=q.device)
    rstd = None if cos is None else torch.empty((length,), dtype=torch.float32, device=q.device)
    launch(
        _rows_kernel,
        (-(-max(q.shape[0], length) // settings.block_m), 2),
        q,
        k,
        q_weight,
        k_weight,
        *tables,
        q_values,
        q_scales,
        rstd,
        sums,
        q.shape[0],
        length,
        q.stride(0),
        k.stride(0),
        head_dim // 2,
        width,
        eps,
        **cut_row(width),
        HEAD_DIM=head_dim,
        CHUNK=settings.block_m,
        num_warps=settings.num_warps,
    )
    mean = sums.sum(0) / length
    launch(
        _keys_kernel,
        (k_scales.shape[1], num_heads),
        k,
        rstd,
        k_weight,
        *tables,
        mean,
        k_values,
        k_scales,
        length,
        k.stride(0),
        width,
        HEAD_DIM=head_dim,
        BLOCK=K_GROUP,
        num_warps=launch_settings("quantise_tiles", arch).num_warps,
    )
    return q_values, q_scales, k_values, k_scales, mean
