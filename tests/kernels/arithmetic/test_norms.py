"""LayerNorm, its fusions and RMS norm against the fp64 truth."""

import pytest
import torch
from closeness import EIGHT_BITS, assert_quantises, assert_rounds_to, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels import reference

# Whole powers of two, a ragged rest, the production width, and less than one block.
WIDTHS = (64, 96, 200, 5120)


def rows(count: int, width: int, dtype: torch.dtype = torch.float32, *, seed: int = 0, spread: float = 1.0) -> Tensor:
    return (noise(count, width, seed=seed) * spread).to(dtype)


def vector(width: int, seed: int) -> Tensor:
    return rows(1, width, seed=seed)[0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layer_norm_affine(width: int, dtype: torch.dtype) -> None:
    x, weight, bias = rows(3, width, dtype), vector(width, 1), vector(width, 2)
    assert_rounds_to(kernels.layer_norm(x, weight, bias, 1e-5), reference.layer_norm(x.double(), weight, bias, 1e-5))


def test_layer_norm_without_affine() -> None:
    x = rows(2, 96)
    assert_rounds_to(kernels.layer_norm(x, None, None), reference.layer_norm(x.double(), None, None))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
def test_layer_norm_modulate(width: int, out_dtype: torch.dtype | None) -> None:
    x, shift, scale = rows(3, width, torch.float16), vector(width, 1), vector(width, 2)
    got = kernels.layer_norm_modulate(x, shift, scale, out_dtype=out_dtype)
    assert got.dtype == (out_dtype or torch.float16)
    assert_rounds_to(got, reference.layer_norm_modulate(x.double(), shift, scale))


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 5), width=st.integers(16, 300), offset=st.floats(-1e3, 1e3), seed=st.integers(0, 2**16))
def test_layer_norm_of_any_shape_far_from_zero(count: int, width: int, offset: float, seed: int) -> None:
    x = rows(count, width, seed=seed) + offset
    assert_rounds_to(kernels.layer_norm(x, None, None), reference.layer_norm(x.double(), None, None), slack=1e-3)


def test_layer_norm_of_huge_tiny_and_constant_rows() -> None:
    x = torch.cat([rows(1, 200, spread=1e15), rows(1, 200, spread=1e-15), torch.full((1, 200), 7.0)])
    assert_rounds_to(kernels.layer_norm(x, None, None), reference.layer_norm(x.double(), None, None))


def test_layer_norm_reads_strided_rows() -> None:
    wide = rows(4, 300)
    x = wide[:, 100:200]
    assert_rounds_to(kernels.layer_norm(x, None, None), reference.layer_norm(x.double(), None, None))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("after", ["plain", "affine", "modulated", "both"])
@pytest.mark.parametrize("width", [96, 5120])
def test_residual_gate_norm(width: int, after: str, gated: bool) -> None:
    x, y = rows(3, width, torch.float16), rows(3, width, torch.float16, seed=1)
    gate = vector(width, 2) if gated else None
    vectors = {
        **({"weight": vector(width, 3), "bias": vector(width, 4)} if after in ("affine", "both") else {}),
        **({"shift": vector(width, 5), "scale": vector(width, 6)} if after in ("modulated", "both") else {}),
    }
    total, h = kernels.residual_gate_norm(x, y, gate, **vectors)
    exact_total, _ = reference.residual_gate_norm(x.double(), y, gate)
    assert_rounds_to(total, exact_total)
    shift, scale = vectors.get("shift"), vectors.get("scale")
    assert_rounds_to(
        h, reference.affine_modulated_norm(total.double(), vectors.get("weight"), vectors.get("bias"), shift, scale, 1e-6)
    )


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("width", [96, 5120])
def test_norms_in_eight_bits(width: int, dtype: torch.dtype) -> None:
    x, y = rows(3, width), rows(3, width, seed=1)
    gate, shift, scale = vector(width, 2), vector(width, 3), vector(width, 4)
    values, scales = kernels.layer_norm_quantised(x, shift=shift, scale=scale, dtype=dtype)
    assert values.dtype == dtype
    assert_quantises(values, scales, reference.affine_modulated_norm(x.double(), None, None, shift, scale, 1e-6))

    total, values, scales = kernels.residual_gate_norm_quantised(x, y, gate, shift=shift, scale=scale, dtype=dtype)
    assert_rounds_to(total, reference.residual_gate_norm(x.double(), y, gate)[0])
    assert_quantises(values, scales, reference.affine_modulated_norm(total.double(), None, None, shift, scale, 1e-6))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rms_norm(width: int, dtype: torch.dtype) -> None:
    x, weight = rows(3, width, dtype), vector(width, 1)
    assert_rounds_to(kernels.rms_norm(x, weight), reference.rms_norm(x.double(), weight))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not kernels.rms_norm(torch.zeros(2, 96), vector(96, 1)).any()
