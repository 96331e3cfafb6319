"""GELU, rotary positions and row quantisation against the fp64 truth."""

import pytest
import torch
from closeness import EIGHT_BITS, assert_quantises, assert_rounds_to, noise
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gelu(dtype: torch.dtype) -> None:
    x = torch.cat([noise(2999, dtype=dtype) * 3, torch.tensor([0.0, -0.0, 60.0, -60.0, 5e-4], dtype=dtype)])
    assert_rounds_to(kernels.gelu_tanh(x), reference.gelu_tanh(x.double()), slack=2e-6)


def test_gelu_keeps_the_shape() -> None:
    assert kernels.gelu_tanh(noise(3, 5, 7)).shape == (3, 5, 7)


@pytest.mark.parametrize(("heads", "head_dim"), [(40, 128), (3, 64), (2, 8), (5, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_qk_norm_rope(heads: int, head_dim: int, dtype: torch.dtype) -> None:
    width, length = heads * head_dim, 3
    q, k = noise(length, width, dtype=dtype), noise(length, width, dtype=dtype, seed=1) * 5
    weights = noise(2, width, seed=2)
    angles = noise(length, head_dim // 2, seed=3) * 10
    exact = reference.qk_norm_rope(q.double(), k.double(), weights[0], weights[1], angles.cos(), angles.sin(), heads)
    kernels.qk_norm_rope_(q, k, weights[0], weights[1], angles.cos(), angles.sin(), heads)
    assert_rounds_to(q, exact[0])
    assert_rounds_to(k, exact[1])


def test_qk_norm_rope_turns_slices_of_one_projection_in_place() -> None:
    qkv = noise(4, 3 * 96)
    before = qkv.clone()
    weight, angles = noise(96, seed=1), noise(4, 16, seed=2)
    q, k = qkv[:, :96], qkv[:, 96:192]
    exact = reference.qk_norm_rope(q.double(), k.double(), weight, weight, angles.cos(), angles.sin(), 3)
    kernels.qk_norm_rope_(q, k, weight, weight, angles.cos(), angles.sin(), 3)
    assert_rounds_to(qkv[:, :96], exact[0])
    assert_rounds_to(qkv[:, 96:192], exact[1])
    assert torch.equal(qkv[:, 192:], before[:, 192:])


def test_qk_norm_rope_says_which_table_is_wrong() -> None:
    x, weight = noise(4, 96), noise(96)
    with pytest.raises(ValueError, match=r"cos and sin must be \[4, 16\]"):
        kernels.qk_norm_rope_(x, x.clone(), weight, weight, noise(4, 32), noise(4, 32), 3)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 6), heads=st.integers(1, 5), pairs=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_rope_1d_of_any_shape(length: int, heads: int, pairs: int, seed: int) -> None:
    x, positions = noise(length, heads * pairs * 2, seed=seed), noise(length, seed=seed + 1) * 12
    assert_rounds_to(kernels.rope_1d(x, positions, heads), reference.rope_1d(x.double(), positions, heads), slack=1e-4)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("width", [7, 2048, 2500])
def test_rows_in_eight_bits(width: int, dtype: torch.dtype) -> None:
    x = noise(4, width) * torch.tensor([[1.0], [1e-4], [1e4], [0.0]])
    values, scales = kernels.quantise_rows(x, dtype)
    assert_quantises(values, scales, x.double())
    values, scales = kernels.gelu_tanh_quantised(x, dtype)
    assert_quantises(values, scales, reference.gelu_tanh(x.double()))


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("gelu_tanh", (noise(3, 8),)),
        ("rms_norm", (noise(3, 8), noise(8), 1e-6)),
        ("rope_1d", (noise(3, 8), noise(3), 2, 1e4)),
        ("qk_norm_rope_", (noise(3, 8), noise(3, 8), noise(8), noise(8), noise(3, 2), noise(3, 2), 2, 1e-6)),
        ("layer_norm", (noise(3, 8), None, None, noise(8), noise(8), 1e-6, torch.float16)),
        ("residual_gate_norm", (noise(3, 8), noise(3, 8), noise(8), None, None, noise(8), noise(8), 1e-6)),
        ("layer_norm_quantised", (noise(3, 8), None, None, None, None, 1e-6, torch.int8)),
        ("residual_gate_norm_quantised", (noise(3, 8), noise(3, 8), None, None, None, None, None, 1e-6, torch.int8)),
        ("quantise_rows", (noise(3, 8), True, torch.int8)),
    ],
)
def test_operators_tell_the_compiler_the_truth(operator: str, arguments: tuple[object, ...]) -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.infinite_talk, operator).default, arguments, test_utils=checks)


def test_a_transformer_s_steps_compile_without_a_break() -> None:
    def steps(x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        total, h = kernels.residual_gate_norm(x, y, gate, shift=gate, scale=gate)
        q, k = h * 1, total * 1
        kernels.qk_norm_rope_(q, k, gate, gate, tables.cos(), tables.sin(), 2)
        mixed = kernels.attention(q.half(), k.half(), kernels.gelu_tanh(total).half(), 2)
        values, scales = kernels.layer_norm_quantised(mixed, dtype=torch.int8)
        return values * scales

    x, y, gate, tables = noise(5, 64), noise(5, 64, seed=1), noise(64, seed=2), noise(5, 16, seed=3)
    compiled = torch.compile(steps, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(x, y, gate), steps(x, y, gate))
