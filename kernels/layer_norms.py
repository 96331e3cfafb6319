"""LayerNorm with what surrounds it in a transformer block: gated residual before it, modulation or affine and 8 bits after it.

    total = x + gate * y                                   (residual_gate_norm; rounded to x's dtype)
    h     = (LN(total) * weight + bias) * (1 + scale) + shift
    8-bit: row_scale = max|h| / Q, values = round(h / row_scale), Q = 127 (int8) or 448 (fp8 e4m3)

One program a row, the row in registers, mean and variance in two steps over them (no cancellation), all arithmetic in fp32.
Bytes, with X = tokens * channels * 2 of bf16: norm 2X, norm to 8 bits 1.5X, residual norm 4X, residual norm to 8 bits 3.5X;
the floor is those over the memory's bandwidth. The [channels] vectors are re-read by every row and stay in L1.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._rows import contiguous_channels, cut_row, read_part, require_rows, scale_of, to_eight_bits, write_part
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.quantise import eight_bit_obstacle, empty_quantised
from kernels.settings import launch_settings


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-6) -> Tensor:
    """LN(x) * weight + bias over the last axis: x [L, D], weight and bias [D] or None -> [L, D] in x's dtype."""
    if runs_plain(x):
        return reference.layer_norm(x, weight, bias, eps)
    return _norm_op(x, weight, bias, None, None, eps, x.dtype)


def layer_norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LN(x) * (1 + scale) + shift: x [L, D], shift and scale [D] fp32 -> [L, D] in out_dtype, x's unless given."""
    if runs_plain(x):
        return reference.layer_norm_modulate(x, shift, scale, eps, out_dtype=out_dtype)
    return _norm_op(x, None, None, shift, scale, eps, out_dtype or x.dtype)


def residual_gate_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """(x + gate * y, the layer norm of that sum, affine and/or modulated): x, y [L, D], vectors [D] or None -> two [L, D]."""
    if runs_plain(x):
        return reference.residual_gate_norm(x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps)
    return _residual_op(x, y, gate, weight, bias, shift, scale, eps)


def layer_norm_quantised(
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """The layer norm, affine and/or modulated, in 8 bits: x [L, D] -> values [L, D] int8 or fp8, row scales [L, 1] fp32."""
    if runs_plain(x):
        return reference.layer_norm_quantised(x, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps, dtype=dtype)
    return _norm_quantised_op(x, weight, bias, shift, scale, eps, dtype)


def residual_gate_norm_quantised(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor, Tensor]:
    """``residual_gate_norm`` with its norm in 8 bits -> (sum [L, D], values [L, D] int8 or fp8, row scales [L, 1] fp32)."""
    if runs_plain(x):
        return reference.residual_gate_norm_quantised(
            x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps, dtype=dtype
        )
    return _residual_quantised_op(x, y, gate, weight, bias, shift, scale, eps, dtype)


@jit
@no_type_check
def _finish(centred, columns, width, weight, bias, shift, scale, rstd, RAGGED: tl.constexpr):
    h = centred * rstd
    if weight is not None:
        h = h * read_part(weight, columns, width, RAGGED)
    if bias is not None:
        h = h + read_part(bias, columns, width, RAGGED)
    if scale is not None:
        h = h * (1.0 + read_part(scale, columns, width, RAGGED))
    if shift is not None:
        h = h + read_part(shift, columns, width, RAGGED)
    if RAGGED:
        h = tl.where(columns < width, h, 0.0)  # the overhang must not count in the row's largest value
    return h


@jit
@no_type_check
def _total(x, y, gate, total, columns, width, RAGGED: tl.constexpr):
    value = read_part(x, columns, width, RAGGED)
    if y is not None:
        update = read_part(y, columns, width, RAGGED)
        if gate is not None:
            update = update * read_part(gate, columns, width, RAGGED)
        stored = (value + update).to(total.dtype.element_ty)
        write_part(total, columns, stored, width, RAGGED)
        value = stored.to(tl.float32)
    return value


@jit
@no_type_check
def _norm_kernel(
    x,
    y,
    gate,
    weight,
    bias,
    shift,
    scale,
    total,
    out,
    row_scale,
    x_stride,
    y_stride,
    width,
    eps,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    out += row * width
    if y is not None:
        y += row * y_stride
        total += row * width

    head_columns = tl.arange(0, HEAD)
    head = _total(x, y, gate, total, head_columns, width, False)
    row_sum = tl.sum(head, 0)
    if TAIL > 0:
        tail_columns = HEAD + tl.arange(0, TAIL)
        tail = _total(x, y, gate, total, tail_columns, width, RAGGED)
        row_sum += tl.sum(tail, 0)
    # Divided, and corrected by what the division left: a row of one value has exactly that mean.
    mean = row_sum / width
    mean += tl.fma(-mean, width * 1.0, row_sum) / width
    head = head - mean
    variance = tl.sum(head * head, 0)
    if TAIL > 0:
        tail = tail - mean
        if RAGGED:
            tail = tl.where(tail_columns < width, tail, 0.0)
        variance += tl.sum(tail * tail, 0)
    rstd = tl.rsqrt(variance / width + eps)

    head = _finish(head, head_columns, width, weight, bias, shift, scale, rstd, False)
    if TAIL > 0:
        tail = _finish(tail, tail_columns, width, weight, bias, shift, scale, rstd, RAGGED)
    if row_scale is not None:
        peak = tl.max(tl.abs(head), 0)
        if TAIL > 0:
            peak = tl.maximum(peak, tl.max(tl.abs(tail), 0))
        unit, inverse = scale_of(peak, out.dtype.element_ty)
        tl.store(row_scale + row, unit)
        head = to_eight_bits(head * inverse, out.dtype.element_ty)
        if TAIL > 0:
            tail = to_eight_bits(tail * inverse, out.dtype.element_ty)
    write_part(out, head_columns, head, width, False)
    if TAIL > 0:
        write_part(out, tail_columns, tail, width, RAGGED)


def _start(
    setting: str,
    x: Tensor,
    residual: tuple[Tensor, Tensor | None, Tensor] | None,
    vectors: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    eps: float,
    out: Tensor,
    row_scale: Tensor | None,
) -> None:
    arch = architecture(x)
    assert arch is not None
    settings = launch_settings(setting, arch)
    x = contiguous_channels(x)
    require_rows("x", x)
    y, gate, total = residual or (None, None, None)
    y = None if y is None else contiguous_channels(y)
    width = x.shape[1]
    flat = [None if v is None else v.contiguous() for v in (gate, *vectors)]
    launch(
        _norm_kernel,
        (x.shape[0],),
        x,
        y,
        *flat,
        total,
        out,
        row_scale,
        x.stride(0),
        0 if y is None else y.stride(0),
        width,
        eps,
        **cut_row(width),
        num_warps=settings.num_warps,
    )


@operation("layer_norm", fake=lambda x, _w, _b, _sh, _sc, _eps, out_dtype: room(x, out_dtype))
def _norm_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
    out_dtype: torch.dtype,
) -> Tensor:
    if not use_triton("layer_norm", x):
        return reference.affine_modulated_norm(x, weight, bias, shift, scale, eps).to(out_dtype)
    out = room(x, out_dtype)
    _start("layer_norm", x, None, (weight, bias, shift, scale), eps, out, None)
    return out


@operation("residual_gate_norm", fake=lambda x, *_: (room(x), room(x)))
def _residual_op(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    if not use_triton("residual_gate_norm", x):
        return reference.residual_gate_norm(x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps)
    total, out = (room(x) for _ in range(2))
    _start("residual_gate_norm", x, (y, gate, total), (weight, bias, shift, scale), eps, out, None)
    return total, out


@operation("layer_norm_quantised", fake=lambda x, *rest: empty_quantised(x, rest[-1]))
def _norm_quantised_op(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if not use_triton("layer_norm_quantised", x, setting="layer_norm", obstacle=eight_bit_obstacle(x, dtype)):
        return reference.layer_norm_quantised(x, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps, dtype=dtype)
    out, row_scale = empty_quantised(x, dtype)
    _start("layer_norm", x, None, (weight, bias, shift, scale), eps, out, row_scale)
    return out, row_scale


@operation("residual_gate_norm_quantised", fake=lambda x, *rest: (room(x), *empty_quantised(x, rest[-1])))
def _residual_quantised_op(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    obstacle = eight_bit_obstacle(x, dtype)
    if not use_triton("residual_gate_norm_quantised", x, setting="residual_gate_norm", obstacle=obstacle):
        return reference.residual_gate_norm_quantised(
            x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps, dtype=dtype
        )
    total = room(x)
    out, row_scale = empty_quantised(x, dtype)
    _start("residual_gate_norm", x, (y, gate, total), (weight, bias, shift, scale), eps, out, row_scale)
    return total, out, row_scale
