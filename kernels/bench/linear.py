"""Cases of the 8-bit linear layers, beside torch's bf16 one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.bench.case import SAMPLE, Built, Shape, first_rows, noise


def linear(dtype: torch.dtype, inner: int, outer: int, shape: Shape, device: str) -> Built:
    """A product of quantised activations and weight."""
    x, weight = noise(shape.tokens, inner, device=device), noise(outer, inner, device=device)
    bias = noise(outer, device=device)
    quantised = _empty_rows(x, dtype) if device == "meta" else kernels.quantise_rows(x, dtype)
    packed = kernels.EightBitWeight(*_empty_rows(weight, dtype)) if device == "meta" else kernels.quantise_weight(weight, dtype)
    return Built(
        lambda: kernels.linear_eight_bit(quantised, packed, bias),
        {"bf16 linear": lambda: F.linear(x, weight, bias)},
        first_rows,
        lambda: F.linear(x[:SAMPLE].float(), weight.float(), bias.float()),
    )


def _empty_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=dtype, device=x.device), torch.empty((x.shape[0], 1), device=x.device)
