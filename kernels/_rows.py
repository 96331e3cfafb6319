"""What the kernels that hold one whole row in registers share: how a row is cut, read, written and quantised.

Triton's blocks are powers of two, and 5120 is none: one block of 8192 would idle 3 lanes of 8. A row is cut in two blocks
instead, the largest power of two that fits and the power of two that covers the rest (5120 = 4096 + 1024, nothing idle).
"""

from __future__ import annotations

from typing import no_type_check

from torch import Tensor

from kernels._triton import jit, tl


def cut_row(width: int) -> dict[str, int | bool]:
    """The constexprs HEAD, TAIL (0: none) and RAGGED (the tail overhangs the row) of a row of this width."""
    head = 1 << (width.bit_length() - 1)
    rest = width - head
    tail = 1 << (rest - 1).bit_length() if rest else 0
    return {"HEAD": head, "TAIL": tail, "RAGGED": tail != rest}


def require_rows(name: str, x: Tensor) -> None:
    """Raise ValueError unless x is [L, D] with D contiguous (rows may be strided)."""
    if x.ndim != 2 or x.stride(-1) != 1:
        raise ValueError(f"{name} must be [tokens, channels] with contiguous channels, not {tuple(x.shape)} strided {x.stride()}")


def contiguous_channels(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


@jit
@no_type_check
def read_part(pointer, columns, width, RAGGED: tl.constexpr):
    """A part of a row in fp32."""
    if RAGGED:
        return tl.load(pointer + columns, mask=columns < width, other=0.0).to(tl.float32)
    return tl.load(pointer + columns).to(tl.float32)


@jit
@no_type_check
def write_part(pointer, columns, values, width, RAGGED: tl.constexpr):
    """A part of a row in the pointer's dtype."""
    if RAGGED:
        tl.store(pointer + columns, values.to(pointer.dtype.element_ty), mask=columns < width)
    else:
        tl.store(pointer + columns, values.to(pointer.dtype.element_ty))


@jit
@no_type_check
def to_eight_bits(values, element_ty: tl.constexpr):
    """Round fp32 values, already scaled into range, to int8 (half to even) or fp8."""
    if element_ty == tl.int8:
        # 1.5 * 2^23 leaves the nearest integer in the mantissa, whose lowest byte is the answer; a conversion costs far more.
        return (values + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)
    return values.to(element_ty)


@jit
@no_type_check
def scale_of(peak, element_ty: tl.constexpr):
    """What the 8-bit type's steps are worth so that the largest magnitude ``peak`` just fits, and one over it."""
    largest = 127.0 if element_ty == tl.int8 else 448.0
    peak = tl.maximum(peak, 1e-12)
    return peak / largest, largest / peak
