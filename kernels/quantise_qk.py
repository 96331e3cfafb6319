"""q and k in 8 bits for ``self_attention_eight_bit``, with norm and rotary on the way or without (arXiv:2410.02367).

    q ~ q8 * q_scale[head, query]            k - centre ~ k8 * k_scale[head, group of K_GROUP keys]

What is taken from all keys alike moves all scores of a query by the same number, which softmax does not see; the nearer to
their mean, the finer the steps that are left for what differs (SageAttention).

A group of keys shares a scale, but a norm needs the whole row, and a group of rows is more than a program can hold. So a few
hundred rows are looked at first; they tell the centre, and a scale for each head with some room above. All rows then are read
once, one program a row, and every key is written in that scale beside how far it reaches. Last, groups that reach further than
there is room are done again in a scale of their own: nothing is ever cut off. Bytes, with X = one [tokens, channels] bf16 tensor:
q 1.5X, k 1.5X; floor: those over the memory's bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._rows import contiguous_channels, cut_row, read_part, require_rows, scale_of, to_eight_bits, write_part
from kernels._sample import start_sample
from kernels._softmax import head_dim_obstacle, load_tile, store_tile
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.quantise import eight_bit_obstacle
from kernels.reference import K_GROUP
from kernels.rms_rope import start_rms_rope, turned_row
from kernels.settings import launch_settings


class EightBitQK(NamedTuple):
    """q [Lq, H*D] and centred k [Lk, H*D], int8 or fp8; q_scale [H, Lq], k_scale [H, ceil(Lk / K_GROUP)], k_centre [H*D] fp32."""

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor
    k_centre: Tensor


def quantise_qk(q: Tensor, k: Tensor, num_heads: int, dtype: torch.dtype = torch.int8) -> EightBitQK:
    """q and k [L, H*D], normed and rotated, to 8 bits with K centred."""
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
    """``quantise_qk`` of ``qk_norm_rope_``, in fp32 between the two: q and k [L, H*D] of one length, tables [L, D/2]."""
    if runs_plain(q):
        rotated = reference.qk_norm_rope(q.float(), k.float(), q_weight, k_weight, cos, sin, num_heads, eps)
        return EightBitQK(*reference.quantise_qk(*rotated, num_heads, dtype))
    return EightBitQK(*_quantise_qk_op(q, k, q_weight, k_weight, cos, sin, num_heads, eps, dtype))


@jit
@no_type_check
def _write_heads(
    values,
    scales,
    limits,
    part,
    first,
    row,
    rows,
    width,
    PART: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Whole heads of a row, from channel ``first`` on: each in its own scale; or, if limits are given, in theirs, and what is
    kept beside it is how far each reaches."""
    heads = tl.reshape(part, [PART // HEAD_DIM, HEAD_DIM])
    index = first // HEAD_DIM + tl.arange(0, PART // HEAD_DIM)
    peaks = tl.max(tl.abs(heads), 1)
    units, inverses = scale_of(peaks, values.dtype.element_ty)
    if limits is not None:
        units = peaks
        _, inverses = scale_of(tl.load(limits + index, mask=index * HEAD_DIM < width, other=1.0), values.dtype.element_ty)
    # Back to the row's own shape, in which each thread holds neighbours, for the widest stores.
    each = tl.reshape(tl.broadcast_to(inverses[:, None], [PART // HEAD_DIM, HEAD_DIM]), [PART])
    part = to_eight_bits(part * each, values.dtype.element_ty)
    write_part(values + row * width, first + tl.arange(0, PART), part, width, RAGGED)
    tl.store(scales + index * rows + row, units, mask=index * HEAD_DIM < width)


@jit
@no_type_check
def _one_row(
    x,
    weight,
    cos,
    sin,
    rstd,
    centre,
    limits,
    values,
    scales,
    row,
    rows,
    width,
    eps,
    PAIRS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """A row normed and rotated, if there are weights, centred, if there is a centre, and written."""
    if cos is not None:
        cos += row * PAIRS
        sin += row * PAIRS
    head, tail, one_over = turned_row(x, weight, cos, sin, width, eps, PAIRS, HEAD, TAIL, RAGGED)
    if centre is not None:
        if weight is not None:
            tl.store(rstd + row, one_over)
        head = head - read_part(centre, tl.arange(0, HEAD), width, False)
        if TAIL > 0:
            tail = tail - read_part(centre, HEAD + tl.arange(0, TAIL), width, RAGGED)
    _write_heads(values, scales, limits, head, 0, row, rows, width, HEAD, HEAD_DIM, False)
    if TAIL > 0:
        _write_heads(values, scales, limits, tail, HEAD, row, rows, width, TAIL, HEAD_DIM, RAGGED)


@jit
@no_type_check
def _rows_kernel(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    rstd,
    centre,
    limits,
    q_values,
    q_scales,
    k_values,
    k_peaks,
    q_rows,
    k_rows,
    q_stride,
    k_stride,
    width,
    eps,
    PAIRS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if tl.program_id(1) == 0:
        if row < q_rows:
            _one_row(
                q + row * q_stride,
                q_weight,
                cos,
                sin,
                None,
                None,
                None,
                q_values,
                q_scales,
                row,
                q_rows,
                width,
                eps,
                PAIRS,
                HEAD,
                TAIL,
                RAGGED,
                HEAD_DIM,
            )
    elif row < k_rows:
        _one_row(
            k + row * k_stride,
            k_weight,
            cos,
            sin,
            rstd,
            centre,
            limits,
            k_values,
            k_peaks,
            row,
            k_rows,
            width,
            eps,
            PAIRS,
            HEAD,
            TAIL,
            RAGGED,
            HEAD_DIM,
        )


@jit
@no_type_check
def _groups_kernel(
    k,
    rstd,
    weight,
    cos,
    sin,
    centre,
    limits,
    peaks,
    values,
    scales,
    rows,
    groups,
    stride,
    width,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The scales of GROUPS groups of one head: the head's, or a group's own, in which its keys are then written again."""
    first = tl.program_id(0) * GROUPS
    head = tl.program_id(1)
    peaks += head * rows
    limit = tl.load(limits + head)
    group = first + tl.arange(0, GROUPS)
    index = group[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    reached = tl.max(tl.load(peaks + index, mask=index < rows, other=0.0), 1)
    units, _ = scale_of(tl.maximum(reached, limit), values.dtype.element_ty)
    tl.store(scales + head * groups + group, units, mask=group < groups)
    if tl.max(reached, 0) > limit:
        for block in range(first, min(first + GROUPS, groups)):
            _write_further(
                k, rstd, weight, cos, sin, centre, limit, peaks, values, block * BLOCK, head, rows, stride, width, HEAD_DIM, BLOCK
            )


@jit
@no_type_check
def _write_further(
    k,
    rstd,
    weight,
    cos,
    sin,
    centre,
    limit,
    peaks,
    values,
    row,
    head,
    rows,
    stride,
    width,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A group's keys in a scale of their own, if they reach further than the limit."""
    index = row + tl.arange(0, BLOCK)
    peak = tl.max(tl.load(peaks + index, mask=index < rows, other=0.0), 0)
    if peak > limit:
        _, inverse = scale_of(peak, values.dtype.element_ty)
        channel = head * HEAD_DIM
        channels = channel + tl.arange(0, HEAD_DIM)
        valid = (index < rows)[:, None]
        tile = load_tile(k + channel, row, rows, stride, HEAD_DIM, BLOCK, True).to(tl.float32)
        if rstd is not None:
            each = tl.load(rstd + index, mask=index < rows, other=0.0)[:, None]
            tile = tile * each * tl.load(weight + channels).to(tl.float32)[None, :]
            pointers = index[:, None] * (HEAD_DIM // 2) + tl.arange(0, HEAD_DIM // 2)[None, :]
            c = tl.load(cos + pointers, mask=valid, other=0.0).to(tl.float32)
            s = tl.load(sin + pointers, mask=valid, other=0.0).to(tl.float32)
            even, odd = tl.split(tl.reshape(tile, [BLOCK, HEAD_DIM // 2, 2]))
            tile = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), [BLOCK, HEAD_DIM])
        tile = (tile - tl.load(centre + channels)[None, :]) * inverse
        store_tile(values + channel, to_eight_bits(tile, values.dtype.element_ty), row, rows, width, HEAD_DIM, BLOCK)


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
    rstd = None
    sample = reference.sample_rows(k)
    if cos is not None and sin is not None:
        if q.shape != k.shape or cos.shape != (length, head_dim // 2):
            raise ValueError(f"q, k and tables differ in length: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(cos.shape)}")
        cos, sin = cos.contiguous(), sin.contiguous()
        rstd = torch.empty((length,), dtype=torch.float32, device=q.device)
        turned = room(sample, torch.float32)
        start_rms_rope([(sample, k_weight, turned)], reference.sample_rows(cos), reference.sample_rows(sin), num_heads, eps)
        sample = turned
    centre, reach = start_sample(sample, num_heads)
    limits = reach * reference.SAMPLE_MARGIN
    q_values, q_scales, k_values, k_scales, _ = _qk_rooms(q, k, num_heads, dtype)
    k_peaks = torch.empty((num_heads, length), dtype=torch.float32, device=q.device)
    launch(
        _rows_kernel,
        (max(q.shape[0], length), 2),
        q,
        k,
        q_weight,
        k_weight,
        cos,
        sin,
        rstd,
        centre,
        limits,
        q_values,
        q_scales,
        k_values,
        k_peaks,
        q.shape[0],
        length,
        q.stride(0),
        k.stride(0),
        width,
        eps,
        PAIRS=head_dim // 2,
        **cut_row(width),
        HEAD_DIM=head_dim,
        num_warps=launch_settings("quantise_qk", arch).num_warps,
    )
    settings = launch_settings("quantise_groups", arch)
    launch(
        _groups_kernel,
        (-(-k_scales.shape[1] // settings.block_n), num_heads),
        k,
        rstd,
        k_weight,
        cos,
        sin,
        centre,
        limits,
        k_peaks,
        k_values,
        k_scales,
        length,
        k_scales.shape[1],
        k.stride(0),
        width,
        HEAD_DIM=head_dim,
        BLOCK=K_GROUP,
        GROUPS=settings.block_n,
        num_warps=settings.num_warps,
    )
    return q_values, q_scales, k_values, k_scales, centre
