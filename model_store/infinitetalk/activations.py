"""Activations on their way into linear layers: as they are, or in 8 bits, with which the layers then multiply.

Each function is the operation before such a layer. With ``bits`` it writes values of that dtype and a scale for each row, and no
16-bit tensor beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import (
    gelu_tanh,
    gelu_tanh_quantised,
    layer_norm_modulate,
    layer_norm_quantised,
    quantise_rows,
    residual_gate_norm,
    residual_gate_norm_quantised,
)

Activation = Tensor | tuple[Tensor, Tensor]
"""``[N, dim]``, or values ``[N, dim]`` and their row scales fp32 ``[N, 1]``."""


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float, bits: torch.dtype | None) -> Activation:
    """Layer norm and modulation of ``[N, dim]`` by ``[dim]``."""
    if bits is None:
        return layer_norm_modulate(x, shift, scale, eps)
    return layer_norm_quantised(x, shift=shift, scale=scale, eps=eps, dtype=bits)


def joined_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    bits: torch.dtype | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float,
) -> tuple[Tensor, Activation]:
    """x + gate * y ``[N, dim]``, and the layer norm of that, affine or modulated."""
    if bits is None:
        return residual_gate_norm(x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps)
    total, values, scales = residual_gate_norm_quantised(
        x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale, eps=eps, dtype=bits
    )
    return total, (values, scales)


def activated(x: Tensor, bits: torch.dtype | None) -> Activation:
    """GELU in its tanh form, of ``[N, ffn_dim]``."""
    return gelu_tanh(x) if bits is None else gelu_tanh_quantised(x, bits)


def rows(x: Tensor, bits: torch.dtype | None) -> Activation:
    """``[N, dim]`` as it is, or each row in 8 bits."""
    return x if bits is None else quantise_rows(x, bits)
