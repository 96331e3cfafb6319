"""Rows to 8 bits with one fp32 scale each: what the fp8 and int8 linear layers read. Optionally through GELU first.

    row_scale = max|f(x)| / Q, values = round(f(x) / row_scale), Q = 127 (int8) or 448 (fp8 e4m3), f = identity or GELU-tanh

One program a row and two passes over it, the second from cache (a row of 13,824 is 27 kB). Bytes: 1.5X with X = the bf16
tensor; the floor is that over the memory's bandwidth.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._rows import contiguous_channels, largest, require_rows, to_eight_bits
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.settings import launch_settings


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
    """GELU-tanh of fp32 values: x * sigmoid(2u), u = sqrt(2/pi) * (x + 0.044715 x^3), which is the tanh form rewritten."""
    u2 = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)
    return x / (1.0 + tl.exp(-u2))


@jit
@no_type_check
def _quantise_kernel(x, values, row_scale, x_stride, width, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    values += row * width
    peaks = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        part = tl.load(x + columns, mask=columns < width, other=0.0).to(tl.float32)
        if GELU:
            part = gelu(part)
        peaks = tl.maximum(peaks, tl.abs(part))
    unit = tl.maximum(tl.max(peaks, 0), 1e-12) / largest(values.dtype.element_ty)
    tl.store(row_scale + row, unit)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        part = tl.load(x + columns, mask=columns < width, other=0.0).to(tl.float32)
        if GELU:
            part = gelu(part)
        tl.store(values + columns, to_eight_bits(part / unit, values.dtype.element_ty), mask=columns < width)


@operation("quantise_rows", fake=lambda x, _gelu, dtype: empty_quantised(x, dtype))
def _quantise_op(x: Tensor, through_gelu: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    operation = "gelu_tanh_quantised" if through_gelu else "quantise_rows"
    if not use_triton(operation, x, setting="quantise_rows", obstacle=eight_bit_obstacle(x, dtype)):
        return (reference.gelu_tanh_quantised if through_gelu else reference.quantise_rows)(x, dtype)
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
        BLOCK=settings.block_n,
        num_warps=settings.num_warps,
    )
    return values, row_scale
