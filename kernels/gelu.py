"""GELU in its tanh form, element by element.

Reads and writes each element once: bytes 2X, the floor is that over the memory's bandwidth. ``quantise.gelu_tanh_quantised``
is the variant for 8-bit linear layers.
"""

from __future__ import annotations

from typing import no_type_check

from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.quantise import gelu
from kernels.settings import launch_settings


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU-tanh(x), any shape, in x's dtype."""
    return reference.gelu_tanh(x) if runs_plain(x) else _gelu_op(x)


@jit
@no_type_check
def _gelu_kernel(x, out, count, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < count, other=0.0).to(tl.float32)
    tl.store(out + index, gelu(value).to(out.dtype.element_ty), mask=index < count)


@operation("gelu_tanh", fake=room)
def _gelu_op(x: Tensor) -> Tensor:
    if not use_triton("gelu_tanh", x):
        return reference.gelu_tanh(x).contiguous()
    arch = architecture(x)
    assert arch is not None
    settings = launch_settings("gelu_tanh", arch)
    x = x.contiguous()
    out = room(x)
    blocks = -(-x.numel() // settings.block_n)
    launch(_gelu_kernel, (blocks,), x, out, x.numel(), BLOCK=settings.block_n, num_warps=settings.num_warps)
    return out
