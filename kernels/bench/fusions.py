"""Cases of the memory-bound operations: norms and what surrounds them, rotary, GELU, quantisation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import reference
from kernels.bench.case import (
    FFN,
    HEAD_DIM,
    HEADS,
    SAMPLE,
    Built,
    Shape,
    activations,
    compiled,
    first_rows,
    noise,
    restored_rows,
    second_first_rows,
    vectors,
)
from kernels.block_means import block_means as means_of_blocks
from kernels.reference import K_BLOCK, K_GROUP


def _tables(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    angles = noise(shape.tokens, HEAD_DIM // 2, device=device, dtype=torch.float32) * 100
    return angles.cos(), angles.sin()


def modulate(shape: Shape, device: str) -> Built:
    """LN + modulate."""
    (x,), (shift, scale) = activations(1, shape, device), vectors(2, device)
    return Built(
        lambda: kernels.layer_norm_modulate(x, shift, scale),
        {"torch.compile": lambda: compiled(reference.layer_norm_modulate)(x, shift, scale)},
        first_rows,
        lambda: reference.layer_norm_modulate(x[:SAMPLE].float(), shift, scale),
    )


def modulate_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    """LN + modulate to 8 bits."""
    (x,), (shift, scale) = activations(1, shape, device), vectors(2, device)
    return Built(
        lambda: kernels.layer_norm_quantised(x, shift=shift, scale=scale, dtype=dtype),
        {"torch.compile": lambda: compiled(reference.layer_norm_quantised)(x, shift=shift, scale=scale, dtype=dtype)},
        restored_rows,
        lambda: reference.layer_norm_modulate(x[:SAMPLE].float(), shift, scale),
    )


def residual(shape: Shape, device: str) -> Built:
    """Gate, residual, LN + modulate."""
    (x, y), (gate, shift, scale) = activations(2, shape, device), vectors(3, device)
    return Built(
        lambda: kernels.residual_gate_norm(x, y, gate, shift=shift, scale=scale),
        {"torch.compile": lambda: compiled(reference.residual_gate_norm)(x, y, gate, shift=shift, scale=scale)},
        second_first_rows,
        lambda: reference.residual_gate_norm(x[:SAMPLE].float(), y[:SAMPLE].float(), gate, shift=shift, scale=scale)[1],
    )


def residual_affine(shape: Shape, device: str) -> Built:
    """Residual without a gate, affine LN."""
    (x, y), (weight, bias) = activations(2, shape, device), vectors(2, device)
    return Built(
        lambda: kernels.residual_gate_norm(x, y, None, weight=weight, bias=bias),
        {"torch.compile": lambda: compiled(reference.residual_gate_norm)(x, y, None, weight=weight, bias=bias)},
        second_first_rows,
        lambda: reference.residual_gate_norm(x[:SAMPLE].float(), y[:SAMPLE].float(), None, weight=weight, bias=bias)[1],
    )


def residual_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    """Gate, residual, LN + modulate to 8 bits."""
    (x, y), (gate, shift, scale) = activations(2, shape, device), vectors(3, device)

    def by_torch() -> tuple[Tensor, Tensor, Tensor]:
        fused = compiled(reference.residual_gate_norm_quantised)
        result: tuple[Tensor, Tensor, Tensor] = fused(x, y, gate, shift=shift, scale=scale, dtype=dtype)
        return result

    return Built(
        lambda: kernels.residual_gate_norm_quantised(x, y, gate, shift=shift, scale=scale, dtype=dtype),
        {"torch.compile": by_torch},
        restored_rows,
        lambda: reference.residual_gate_norm(x[:SAMPLE].float(), y[:SAMPLE].float(), gate, shift=shift, scale=scale)[1],
    )


def rms(shape: Shape, device: str) -> Built:
    """RMS norm alone."""
    (x,), (weight,) = activations(1, shape, device), vectors(1, device)
    return Built(
        lambda: kernels.rms_norm(x, weight),
        {"torch.compile": lambda: compiled(reference.rms_norm)(x, weight)},
        first_rows,
        lambda: reference.rms_norm(x[:SAMPLE].float(), weight),
    )


def qk_norm_rope(shape: Shape, device: str) -> Built:
    """RMS norm and rotary of q and k, in place."""
    (q, k), (qw, kw), (cos, sin) = activations(2, shape, device), vectors(2, device), _tables(shape, device)
    # Our call turns its operands, each time; the others are given their own.
    rows, copies = (q[:SAMPLE].float(), k[:SAMPLE].float()), (q.clone(), k.clone())

    def turned() -> tuple[Tensor, Tensor]:
        kernels.qk_norm_rope_(q, k, qw, kw, cos, sin, HEADS)
        return q, k

    return Built(
        turned,
        {"torch.compile": lambda: compiled(reference.qk_norm_rope)(*copies, qw, kw, cos, sin, HEADS)},
        first_rows,
        lambda: reference.qk_norm_rope(*rows, qw, kw, cos[:SAMPLE], sin[:SAMPLE], HEADS)[0],
    )


def _norm_rope_then_quantise(
    q: Tensor, k: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    return reference.quantise_qk(*reference.qk_norm_rope(q, k, qw, kw, cos, sin, HEADS), HEADS, dtype)


def _restored_q(out: Any) -> Tensor:
    """The sample of q8 and its scales [H, L], multiplied out."""
    rows = out[0][:SAMPLE].float().unflatten(1, (HEADS, -1))
    restored: Tensor = (rows * out[1][:, :SAMPLE].t().unsqueeze(-1)).flatten(1)
    return restored


def qk_norm_rope_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    """RMS norm and rotary of q and k to 8 bits, K centred."""
    (q, k), (qw, kw), (cos, sin) = activations(2, shape, device), vectors(2, device), _tables(shape, device)
    rows = q[:SAMPLE].float(), k[:SAMPLE].float()
    return Built(
        lambda: kernels.qk_norm_rope_quantised(q, k, qw, kw, cos, sin, HEADS, dtype=dtype),
        {"torch.compile": lambda: compiled(_norm_rope_then_quantise)(q, k, qw, kw, cos, sin, dtype)},
        _restored_q,
        lambda: reference.qk_norm_rope(*rows, qw, kw, cos[:SAMPLE], sin[:SAMPLE], HEADS)[0],
    )


def quantise_qk(shape: Shape, device: str) -> Built:
    """q and k, normed before, to int8."""
    q, k = activations(2, shape, device)
    return Built(
        lambda: kernels.quantise_qk(q, k, HEADS),
        {"torch.compile": lambda: compiled(reference.quantise_qk)(q, k, HEADS)},
        _restored_q,
        q[:SAMPLE].float,
    )


def rope_1d(shape: Shape, device: str) -> Built:
    """Rotary at real positions, the same in every head."""
    (x,), positions = activations(1, shape, device), noise(shape.tokens, device=device, dtype=torch.float32) * 12
    return Built(
        lambda: kernels.rope_1d(x, positions, HEADS),
        {"torch.compile": lambda: compiled(reference.rope_1d)(x, positions, HEADS)},
        first_rows,
        lambda: reference.rope_1d(x[:SAMPLE].float(), positions[:SAMPLE], HEADS),
    )


def gelu(shape: Shape, device: str) -> Built:
    """GELU-tanh between the feed-forward's layers."""
    x = noise(shape.tokens, FFN, device=device)
    return Built(
        lambda: kernels.gelu_tanh(x),
        {
            "torch": lambda: F.gelu(x, approximate="tanh"),
            "torch.compile": lambda: compiled(reference.gelu_tanh)(x),
        },
        first_rows,
        lambda: reference.gelu_tanh(x[:SAMPLE].float()),
    )


def gelu_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    """GELU-tanh to 8 bits."""
    x = noise(shape.tokens, FFN, device=device)
    return Built(
        lambda: kernels.gelu_tanh_quantised(x, dtype),
        {"torch.compile": lambda: compiled(reference.gelu_tanh_quantised)(x, dtype)},
        restored_rows,
        lambda: reference.gelu_tanh(x[:SAMPLE].float()),
    )


def quantise_v(shape: Shape, device: str) -> Built:
    """V to fp8, transposed."""
    (v,) = activations(1, shape, device)
    groups = SAMPLE // K_GROUP

    def restored(out: Any) -> Tensor:
        values, exponent, centre = out
        return reference.dequantise_v(values[:, :SAMPLE], exponent[:, :groups].contiguous(), centre, SAMPLE)

    return Built(
        lambda: kernels.quantise_v(v, HEADS),
        {"torch.compile": lambda: compiled(reference.quantise_v)(v, HEADS)},
        restored,
        v[:SAMPLE].float,
    )


def block_means(shape: Shape, device: str) -> Built:
    """What blocks of tokens are like, for choosing among them."""
    (x,) = activations(1, shape, device)
    return Built(
        lambda: means_of_blocks(x, HEADS, K_BLOCK),
        {"torch.compile": lambda: compiled(reference.block_means)(x, HEADS, K_BLOCK)},
        lambda out: out[0][:, :2],
        lambda: reference.block_means(x[: 2 * K_BLOCK].float(), HEADS, K_BLOCK)[0],
    )
