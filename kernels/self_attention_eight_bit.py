"""Self-attention in 8 bits: int8 or fp8 scores, and values in 16 bits or fp8 (SageAttention, arXiv:2410.02367, 2411.10958).

    q ~ q8 * q_scale[head, query]            k - mean(k) ~ k8 * k_scale[head, group of 128 keys]
    v - mean(v) ~ v8 * v_scale[channel]      out = softmax(q k^T * scale) (v - mean(v)) + mean(v)

Approximate: cosine to the exact result 0.999 with 16-bit values, 0.998 with fp8, on data like the model's. Preparing costs,
with X = one [tokens, channels] bf16 tensor: q and k plain 4X bytes (K's mean 1X, then read 2X, write 1X), with norm and rotary
6X (row norms 2X, K's mean 1X, then 3X; the bf16 q and k are never written); v 2.5X. Floors: those bytes over the memory's
bandwidth; the attention's is in ``_flash``.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._flash import FlashInputs, start_flash
from kernels._operation import operation, room
from kernels._rows import contiguous_channels, cut_row, largest, read_part, require_rows, to_eight_bits
from kernels._softmax import head_dim_obstacle, load_tile, store_tile, tile_pointers
from kernels._triton import jit, launch, tl
from kernels.dispatch import Option, architecture, choose, runs_plain, triton_obstacle, use_triton
from kernels.quantise import eight_bit_obstacle
from kernels.reference import K_GROUP, V_PADDING
from kernels.self_attention import SIXTEEN_BIT
from kernels.self_attention_sparse import BlockList
from kernels.settings import launch_settings

EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)


class EightBitQK(NamedTuple):
    """q [Lq, H*D] and mean-free k [Lk, H*D], int8 or fp8; q_scale [H, Lq] and k_scale [H, ceil(Lk / 128)] fp32."""

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor


class EightBitV(NamedTuple):
    """v transposed in fp8 [H*D, Lk padded to 128], with scale and mean [H*D] fp32 of each channel."""

    values: Tensor
    scale: Tensor
    mean: Tensor


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


def quantise_v(v: Tensor) -> EightBitV:
    """v [L, H*D] to fp8, transposed, with each channel's mean taken away. Needs sm_89 or newer for ``eight_bit_attention``."""
    return EightBitV(*(reference.quantise_v(v) if runs_plain(v) else _quantise_v_op(v)))


def eight_bit_attention(
    qk: EightBitQK,
    v: Tensor | EightBitV,
    num_heads: int,
    scale: float | None = None,
    *,
    blocks: BlockList | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Attention -> [Lq, H*D] in out_dtype; v is [Lk, H*D] in 16 bits or ``quantise_v`` of it; blocks restricts the keys seen."""
    values, v_scale, v_mean = v if isinstance(v, EightBitV) else (v, None, None)
    block_list, block_count = (None, None) if blocks is None else (blocks.listed, blocks.counts)
    arguments = (*qk, values, v_scale, v_mean, block_list, block_count, num_heads, scale, out_dtype)
    return _plain_attention(*arguments) if runs_plain(qk.q) else _eight_bit_op(*arguments)


@jit
@no_type_check
def _rstd_kernel(
    q, k, rstd, q_stride, k_stride, width, length, eps, HEAD: tl.constexpr, TAIL: tl.constexpr, RAGGED: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    second = tl.program_id(1)
    x = q + row * q_stride if second == 0 else k + row * k_stride
    head = read_part(x, tl.arange(0, HEAD), width, False)
    squares = tl.sum(head * head, 0)
    if TAIL > 0:
        tail = read_part(x, HEAD + tl.arange(0, TAIL), width, RAGGED)
        squares += tl.sum(tail * tail, 0)
    tl.store(rstd + second * length + row, tl.rsqrt(squares / width + eps))


@jit
@no_type_check
def _prepared_tile(x, rstd, weight, cos, sin, row, rows, channel, stride, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    """One head's rows in fp32, normed and rotated if rstd is given; rows past the end are zero."""
    tile = load_tile(x + channel, row, rows, stride, HEAD_DIM, BLOCK, True).to(tl.float32)
    if rstd is not None:
        index = row + tl.arange(0, BLOCK)
        valid = index < rows
        gain = tl.load(weight + channel + tl.arange(0, HEAD_DIM)).to(tl.float32)
        tile = tile * tl.load(rstd + index, mask=valid, other=0.0)[:, None] * gain[None, :]
        pointers = index[:, None] * (HEAD_DIM // 2) + tl.arange(0, HEAD_DIM // 2)[None, :]
        c = tl.load(cos + pointers, mask=valid[:, None], other=0.0).to(tl.float32)
        s = tl.load(sin + pointers, mask=valid[:, None], other=0.0).to(tl.float32)
        even, odd = tl.split(tl.reshape(tile, [BLOCK, HEAD_DIM // 2, 2]))
        tile = tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), [BLOCK, HEAD_DIM])
    return tile


@jit
@no_type_check
def _channel_kernel(
    x,
    rstd,
    weight,
    cos,
    sin,
    sums,
    highs,
    lows,
    rows,
    stride,
    width,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0)
    channel = tl.program_id(1) * HEAD_DIM
    total = tl.zeros([HEAD_DIM], tl.float32)
    high = tl.full([HEAD_DIM], float("-inf"), tl.float32)
    low = tl.full([HEAD_DIM], float("inf"), tl.float32)
    for row in range(chunk * CHUNK, min((chunk + 1) * CHUNK, rows), BLOCK):
        tile = _prepared_tile(x, rstd, weight, cos, sin, row, rows, channel, stride, HEAD_DIM, BLOCK)
        total += tl.sum(tile, 0)
        if highs is not None:
            valid = (row + tl.arange(0, BLOCK) < rows)[:, None]
            high = tl.maximum(high, tl.max(tl.where(valid, tile, float("-inf")), 0))
            low = tl.minimum(low, tl.min(tl.where(valid, tile, float("inf")), 0))
    out = chunk * width + channel + tl.arange(0, HEAD_DIM)
    tl.store(sums + out, total)
    if highs is not None:
        tl.store(highs + out, high)
        tl.store(lows + out, low)


@jit
@no_type_check
def _quantise_tile_kernel(
    x,
    rstd,
    weight,
    cos,
    sin,
    mean,
    values,
    scales,
    rows,
    stride,
    width,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With a mean it is K: centred, one scale for the tile. Without it is Q: one scale for each row."""
    block = tl.program_id(0)
    head = tl.program_id(1)
    row = block * BLOCK
    channel = head * HEAD_DIM
    index = row + tl.arange(0, BLOCK)
    valid = index < rows
    tile = _prepared_tile(x, rstd, weight, cos, sin, row, rows, channel, stride, HEAD_DIM, BLOCK)
    if mean is not None:
        tile = tl.where(valid[:, None], tile - tl.load(mean + channel + tl.arange(0, HEAD_DIM))[None, :], 0.0)
        unit = tl.maximum(tl.max(tl.max(tl.abs(tile), 1), 0), 1e-12) / largest(values.dtype.element_ty)
        tl.store(scales + head * tl.num_programs(0) + block, unit)
        tile = tile / unit
    else:
        units = tl.maximum(tl.max(tl.abs(tile), 1), 1e-12) / largest(values.dtype.element_ty)
        tl.store(scales + head * rows + index, units, mask=valid)
        tile = tile / units[:, None]
    store_tile(values + channel, to_eight_bits(tile, values.dtype.element_ty), row, rows, width, HEAD_DIM, BLOCK)


@jit
@no_type_check
def _transpose_kernel(v, mean, scale, values, rows, stride, padded, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK
    channel = tl.program_id(1) * HEAD_DIM
    channels = channel + tl.arange(0, HEAD_DIM)
    tile = load_tile(v + channel, row, rows, stride, HEAD_DIM, BLOCK, True).to(tl.float32)
    tile = (tile - tl.load(mean + channels)[None, :]) / tl.load(scale + channels)[None, :]
    tile = tl.where((tl.arange(0, BLOCK) < rows - row)[:, None], tile, 0.0).to(values.dtype.element_ty)
    tl.store(tile_pointers(values + row, channel, padded, BLOCK, HEAD_DIM), tl.trans(tile))


def _channel_statistics(
    x: Tensor, rstd: Tensor | None, weight: Tensor | None, tables: tuple[Tensor | None, Tensor | None], head_dim: int, peaks: bool
) -> tuple[Tensor, Tensor | None]:
    """Mean of each channel over the tokens and, with ``peaks``, the largest distance from it."""
    arch = architecture(x)
    assert arch is not None
    settings = launch_settings("channel_statistics", arch)
    length, width = x.shape
    chunks = -(-length // settings.block_n)
    sums = torch.empty((chunks, width), dtype=torch.float32, device=x.device)
    highs, lows = (torch.empty_like(sums), torch.empty_like(sums)) if peaks else (None, None)
    launch(
        _channel_kernel,
        (chunks, width // head_dim),
        x,
        rstd,
        weight,
        *tables,
        sums,
        highs,
        lows,
        length,
        x.stride(0),
        width,
        HEAD_DIM=head_dim,
        BLOCK=settings.block_m,
        CHUNK=settings.block_n,
        num_warps=settings.num_warps,
    )
    mean = sums.sum(0) / length
    if highs is None or lows is None:
        return mean, None
    return mean, torch.maximum(highs.amax(0) - mean, mean - lows.amin(0))


def _scale_rooms(q: Tensor, k: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    groups = -(-k.shape[0] // K_GROUP)
    return (
        torch.empty((num_heads, q.shape[0]), dtype=torch.float32, device=q.device),
        torch.empty((num_heads, groups), dtype=torch.float32, device=q.device),
    )


def _fake_qk(q: Tensor, k: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_heads, dtype = rest[4], rest[6]
    assert isinstance(num_heads, int)
    assert isinstance(dtype, torch.dtype)
    q_scale, k_scale = _scale_rooms(q, k, num_heads)
    return room(q, dtype), q_scale, room(k, dtype), k_scale


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
    width = q.shape[1]
    head_dim = width // num_heads
    tables = (None if cos is None else cos.contiguous(), None if sin is None else sin.contiguous())
    rstd: tuple[Tensor | None, Tensor | None] = (None, None)
    if cos is not None:
        if q.shape != k.shape or cos.shape != (q.shape[0], head_dim // 2):
            raise ValueError(f"q, k and tables differ in length: {tuple(q.shape)}, {tuple(k.shape)}, {tuple(cos.shape)}")
        both = torch.empty((2, q.shape[0]), dtype=torch.float32, device=q.device)
        warps = launch_settings("rms_rope", arch).num_warps
        strides = (q.stride(0), k.stride(0), width, q.shape[0], eps)
        launch(_rstd_kernel, (q.shape[0], 2), q, k, both, *strides, **cut_row(width), num_warps=warps)
        rstd = (both[0], both[1])
    mean, _ = _channel_statistics(k, rstd[1], k_weight, tables, head_dim, False)
    values = (room(q, dtype), room(k, dtype))
    scales = _scale_rooms(q, k, num_heads)
    settings = launch_settings("quantise_qk", arch)
    for x, norm, weight, centre, into, scale in zip(
        (q, k), rstd, (q_weight, k_weight), (None, mean), values, scales, strict=True
    ):
        launch(
            _quantise_tile_kernel,
            (-(-x.shape[0] // K_GROUP), num_heads),
            x,
            norm,
            weight,
            *tables,
            centre,
            into,
            scale,
            x.shape[0],
            x.stride(0),
            width,
            HEAD_DIM=head_dim,
            BLOCK=K_GROUP,
            num_warps=settings.num_warps,
        )
    return values[0], scales[0], values[1], scales[1]


def _v_rooms(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    length, width = v.shape
    padded = -(-length // V_PADDING) * V_PADDING
    values = torch.empty((width, padded), dtype=torch.float8_e4m3fn, device=v.device)
    vector = torch.empty((width,), dtype=torch.float32, device=v.device)
    return values, vector, torch.empty_like(vector)


@operation("quantise_v", fake=_v_rooms)
def _quantise_v_op(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Channels are cut in tiles of 128 or 64 here, whatever the heads are: a scale belongs to a channel.
    tile = next((size for size in (128, 64, 32) if v.shape[1] % size == 0), 0)
    obstacle = eight_bit_obstacle(v, torch.float8_e4m3fn) or (None if tile else f"{v.shape[1]} channels are no multiple of 32")
    if not use_triton("quantise_v", v, setting="quantise_qk", obstacle=obstacle):
        return reference.quantise_v(v)
    v = contiguous_channels(v)
    require_rows("v", v)
    arch = architecture(v)
    assert arch is not None
    length, width = v.shape
    mean, peak = _channel_statistics(v, None, None, (None, None), tile, True)
    assert peak is not None
    values, _, _ = _v_rooms(v)
    scale = peak.clamp(min=1e-12) / reference.LARGEST[torch.float8_e4m3fn]
    launch(
        _transpose_kernel,
        (values.shape[1] // V_PADDING, width // tile),
        v,
        mean,
        scale,
        values,
        length,
        v.stride(0),
        values.shape[1],
        HEAD_DIM=tile,
        BLOCK=V_PADDING,
        num_warps=launch_settings("quantise_qk", arch).num_warps,
    )
    return values, scale, mean


def _plain_attention(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    v_mean: Tensor | None,
    block_list: Tensor | None,
    block_count: Tensor | None,
    num_heads: int,
    scale: float | None,
    out_dtype: torch.dtype,
) -> Tensor:
    wide_q, wide_k = reference.dequantise_qk(q, q_scale, k, k_scale)
    if v_scale is not None and v_mean is not None:
        v = reference.dequantise_v(v, v_scale, v_mean, k.shape[0])
    if block_list is not None and block_count is not None:
        return reference.block_sparse_attention(wide_q, wide_k, v, num_heads, block_list, block_count, scale).to(out_dtype)
    return reference.attention(wide_q, wide_k, v, num_heads, scale).to(out_dtype)


@operation("eight_bit_attention", fake=lambda q, *rest: room(q, rest[-1]))
def _eight_bit_op(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor | None,
    v_mean: Tensor | None,
    block_list: Tensor | None,
    block_count: Tensor | None,
    num_heads: int,
    scale: float | None,
    out_dtype: torch.dtype,
) -> Tensor:
    setting = ("flash" if block_list is None else "sparse") + ("_8bit_16bit" if v_scale is None else "_8bit_fp8")
    obstacle = triton_obstacle(setting, q, EIGHT_BIT) or head_dim_obstacle(q.shape[-1], num_heads)
    if v_scale is None and v.dtype not in SIXTEEN_BIT:
        obstacle = obstacle or f"values are {v.dtype}, neither 16 bits nor quantise_v's"
    triton = Option("triton", "8-bit tensor cores", obstacle)
    if choose("eight_bit_attention", (triton, Option("reference", "plain torch serves everything"))) == "reference":
        return _plain_attention(q, q_scale, k, k_scale, v, v_scale, v_mean, block_list, block_count, num_heads, scale, out_dtype)
    out = room(q, out_dtype)
    inputs = FlashInputs(q, k, contiguous_channels(v), q_scale, k_scale, v_scale, v_mean, block_list, block_count)
    start_flash(setting, inputs, num_heads, scale, out, None)
    return out
