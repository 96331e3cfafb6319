"""Rows to 8 bits with one fp32 scale each: what the fp8 and int8 linear layers read. Optionally through GELU first.

    row_scale = max|f(x)| / Q, values = round(f(x) / row_scale), Q = 127 (int8) or 448 (fp8 e4m3), f = identity or GELU-tanh

One program a row, the row in registers. Bytes: 1.5X with X = the bf16 tensor; the floor is that over the memory's bandwidth.
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
from kernels.settings import launch_settings

_WIDEST = 16_384  # 64 values a thread


def quantise_rows(x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [L, D] -> values [L, D] int8 or fp8 e4m3 and row scales [L, 1] fp32, x ~ values * scales."""
    if runs_plain(x):
        return reference.quantise_rows(x, dtype)
    return _quantise_op(x, False, dtype)


def gelu_tanh_quantised(x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """``quantise_rows`` of GELU-tanh(x), without the bf16 tensor between them: x [L, D] -> values [L, D], row scales [L, 1]."""
    if runs_plain(x):
        return reference.gelu_tanh_quantised(x, dtype)
    return _quantise_op(x, True, dtype)


def eight_bit_obstacle(x: Tensor, dtype: torch.dtype) -> str | None:
    """Why an 8-bit type cannot be made where x lives, or None."""
    if dtype not in reference.LARGEST:
        raise ValueError(f"the 8-bit types are int8 and float8_e4m3fn, not {dtype}")
    if dtype == torch.float8_e4m3fn and architecture(x) == "sm_80":
        return "sm_80 has no fp8; int8 is its 8-bit type"
    return None


def empty_quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Room for the values and row scales of x [L, D]."""
    values = room(x, dtype)
    return values, torch.empty((x.shape[0], 1), dtype=torch.float32, device=x.device)


@jit
@no_type_check
def gelu(x):
    """GELU-tanh of fp32 values: x * sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3), which is the tanh form rewritten.

    A square of the reciprocal root takes the place of a division: two operations of the special function units, and no more.
    """
    # 2.302... is 2 sqrt(2/pi) log2(e), 0.102... that times 0.044715.
    root = tl.rsqrt(1.0 + tl.exp2(x * (-2.302208198144325 - 0.1029432395800235 * x * x)))
    return x * root * root


@jit
@no_type_check
def _quantise_kernel(
    x,
    values,
    row_scale,
    x_stride,
    width,
    GELU: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    values += row * width
    head = read_part(x, tl.arange(0, HEAD), width, False)
    if GELU:
        head = gelu(head)
    peak = tl.max(tl.abs(head), 0)
    if TAIL > 0:
        columns = HEAD + tl.arange(0, TAIL)
        tail = read_part(x, columns, width, RAGGED)
        if GELU:
            tail = gelu(tail)
        peak = tl.maximum(peak, tl.max(tl.abs(tail), 0))
    unit, inverse = scale_of(peak, values.dtype.element_ty)
    tl.store(row_scale + row, unit)
    write_part(values, tl.arange(0, HEAD), to_eight_bits(head * inverse, values.dtype.element_ty), width, False)
    if TAIL > 0:
        write_part(values, columns, to_eight_bits(tail * inverse, values.dtype.element_ty), width, RAGGED)


@operation("quantise_rows", fake=lambda x, _gelu, dtype: empty_quantised(x, dtype))
def _quantise_op(x: Tensor, through_gelu: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    operation = "gelu_tanh_quantised" if through_gelu else "quantise_rows"
    obstacle = eight_bit_obstacle(x, dtype)
    if x.shape[-1] > _WIDEST:
        obstacle = obstacle or f"a program holds rows of {_WIDEST} channels at most, not {x.shape[-1]}"
    if not use_triton(operation, x, setting="quantise_rows", obstacle=obstacle):
        values, row_scale = (reference.gelu_tanh_quantised if through_gelu else reference.quantise_rows)(x, dtype)
        return values.contiguous(), row_scale
    x = contiguous_channels(x)
    require_rows("x", x)
    arch = architecture(x)
    assert arch is not None
    settings = launch_settings("quantise_rows", arch)
    values, row_scale = empty_quantised(x, dtype)
    launch(
        _quantise_kernel,
        (x.shape[0],),
        x,
        values,
        row_scale,
        x.stride(0),
        x.shape[1],
        GELU=through_gelu,
        **cut_row(x.shape[1]),
        num_warps=settings.num_warps,
    )
    return values, row_scale
