"""The truth itself, against torch's own modules and against formulas written out another way."""

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed (extra: gpu)", allow_module_level=True)

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels import reference


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(x.shape[0], count, -1).transpose(0, 1)


def test_norms_are_torch_s() -> None:
    x, weight, bias, shift, scale = noise(5, 24), *(noise(24, seed=s) for s in range(1, 5))
    plain = F.layer_norm(x, (24,), eps=1e-5)
    assert torch.allclose(kernels.layer_norm(x, weight, bias, 1e-5), plain * weight + bias)
    assert torch.allclose(kernels.layer_norm_modulate(x, shift, scale, 1e-5), plain * (1 + scale) + shift)
    assert torch.allclose(kernels.rms_norm(x, weight, 1e-5), F.rms_norm(x, (24,), weight, 1e-5))


def test_residual_norm_is_its_steps() -> None:
    x, y, gate, weight, bias, shift, scale = noise(5, 24), noise(5, 24, seed=1), *(noise(24, seed=s) for s in range(2, 7))
    total, h = kernels.residual_gate_norm(x, y, gate, weight=weight, bias=bias, shift=shift, scale=scale)
    assert torch.allclose(total, x + gate * y)
    assert torch.allclose(h, F.layer_norm(x + gate * y, (24,), weight, bias, 1e-6) * (1 + scale) + shift)
    assert torch.allclose(kernels.residual_gate_norm(x, y, None)[0], x + y)


def test_the_norm_after_a_residual_reads_the_stored_sum() -> None:
    x, y = noise(5, 24).bfloat16(), noise(5, 24, seed=1).bfloat16()
    total, h = kernels.residual_gate_norm(x, y, None)
    assert total.dtype == torch.bfloat16
    assert torch.equal(h, kernels.layer_norm(total, None, None))


def test_rotary_is_complex_multiplication() -> None:
    q, k, weight, angles = noise(4, 24), noise(4, 24, seed=1), noise(24, seed=2), noise(4, 6, seed=3)
    turned = q.clone(), k.clone()
    kernels.qk_norm_rope_(*turned, weight, weight, angles.cos(), angles.sin(), 2)
    for x, out in zip((q, k), turned, strict=True):
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight
        pairs = torch.view_as_complex(normed.view(4, 2, 6, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
        assert torch.allclose(out, torch.view_as_real(pairs).flatten(1))


def test_rope_1d_turns_pair_i_by_its_frequency() -> None:
    x, positions = noise(3, 16), torch.tensor([0.0, 2.0, 22.5], dtype=torch.float64)
    got = kernels.rope_1d(x, positions, 2).view(3, 2, 4, 2)
    for pair in range(4):
        angle = positions * 1e4 ** (-2 * pair / 8)
        even, odd = x.view(3, 2, 4, 2)[:, :, pair].unbind(-1)
        assert torch.allclose(got[:, :, pair, 0], even * angle.cos()[:, None] - odd * angle.sin()[:, None])
    assert torch.equal(got[0].flatten(), x[0])


def test_attention_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_SCORE_ELEMENTS", 64)  # several rounds of queries
    q, k, v = noise(30, 24), noise(17, 24, seed=1), noise(17, 24, seed=2)
    wanted = F.scaled_dot_product_attention(heads(q, 3), heads(k, 3), heads(v, 3), scale=0.3)
    assert torch.allclose(kernels.attention(q, k, v, 3, scale=0.3), wanted.transpose(0, 1).flatten(1))
    out, lse = kernels.attention_with_lse(q, k, v, 3)
    assert torch.allclose(lse, (heads(q, 3) @ heads(k, 3).transpose(1, 2) / 8**0.5).logsumexp(-1))
    parts = [kernels.attention_with_lse(q, k[a:b], v[a:b], 3) for a, b in ((0, 5), (5, 17))]
    assert torch.allclose(kernels.merge_attention(parts), out)


def test_cross_attention_is_attention_apart() -> None:
    q, k, v = noise(12, 24), noise(10, 24, seed=1), noise(10, 24, seed=2)
    both = kernels.text_image_attention(q, k[:4], v[:4], k[4:], v[4:], 3)
    assert torch.allclose(both, kernels.attention(q, k[:4], v[:4], 3) + kernels.attention(q, k[4:], v[4:], 3))
    frames = kernels.framewise_attention(q, k.view(2, 5, 24), v.view(2, 5, 24), 3)
    assert torch.allclose(frames[6:], kernels.attention(q[6:], k[5:], v[5:], 3))


def test_class_map_is_summed_probability_per_token() -> None:
    q, k, masks = noise(6, 24), noise(10, 24, seed=1), torch.zeros(3, 10)
    masks[0, :4], masks[1, 3:] = 1, 1
    probabilities = (heads(q, 3) @ heads(k, 3).transpose(1, 2) / 8**0.5).softmax(-1)
    got = kernels.class_attention_map(q, k, masks, 3)
    assert torch.allclose(got[0], probabilities[:, :, :4].sum(-1).mean(0) / 4)
    assert torch.allclose(got[1], probabilities[:, :, 3:].sum(-1).mean(0) / 7)
    assert not got[2].any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_operands_restore(dtype: torch.dtype) -> None:
    step = 1 / 127 if dtype == torch.int8 else 2**-4
    x = noise(9, 40)
    values, scales = kernels.quantise_rows(x, dtype)
    assert ((values.double() * scales - x).abs() <= step * x.abs().amax(-1, keepdim=True)).all()
    q, k = noise(9, 24), noise(300, 24, seed=1) + 3
    qk = kernels.quantise_qk(q, k, 3, dtype)
    assert qk.k_scale.shape == (3, 3)
    restored_q, restored_k = reference.dequantise_qk(*qk)
    assert (restored_q - q).abs().max() <= step * q.abs().max()
    assert (restored_k - k).abs().max() <= step * 5
    v = kernels.quantise_v(k, 2)
    assert v.values.shape == (24, 384)
    assert (reference.dequantise_v(*v, 300) - k).abs().max() <= 2**-4 * 5


@pytest.mark.parametrize(("fp8_values", "least_cosine", "most_l1"), [(False, 0.999, 0.03), (True, 0.998, 0.07)])
def test_a_centre_from_some_of_the_rows_is_near_enough(fp8_values: bool, least_cosine: float, most_l1: float) -> None:
    """Keys and values with a bias of several times their spread that drifts, as over a video."""
    length, drift = 4000, torch.linspace(0, 1, 4000, dtype=torch.float64)[:, None]
    q, k, v = noise(60, 128), noise(length, 128, seed=1), noise(length, 128, seed=2)
    k, v = k + 4 * noise(128, seed=3) + drift, v + 4 * noise(128, seed=4) - drift
    values = kernels.quantise_v(v, 2) if fp8_values else v
    got = kernels.eight_bit_attention(kernels.quantise_qk(q, k, 2), values, 2, out_dtype=torch.float32).double()
    exact = kernels.attention(q, k, v, 2)
    # The bias is easy to hit, and large here: what counts is what is left of the output without it.
    mean = v.mean(0)
    assert F.cosine_similarity((got - mean).flatten(), (exact - mean).flatten(), dim=0) >= least_cosine
    assert (got - exact).abs().sum() / exact.abs().sum() <= most_l1


def test_a_block_list_limits_what_is_seen() -> None:
    q, k, v = noise(200, 16), noise(300, 16, seed=1), noise(300, 16, seed=2)
    listed = torch.tensor([[[0, 2], [1, 1]]], dtype=torch.int32)
    counts = torch.tensor([[2, 1]], dtype=torch.int32)
    got = kernels.block_sparse_attention(q, k, v, 1, kernels.BlockList(listed, counts))
    seen = torch.cat([torch.arange(128), torch.arange(256, 300)])
    assert torch.allclose(got[:128], kernels.attention(q[:128], k[seen], v[seen], 1))
    assert torch.allclose(got[128:], kernels.attention(q[128:], k[128:256], v[128:256], 1))
