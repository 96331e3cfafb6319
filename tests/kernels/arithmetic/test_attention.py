"""The attention kernels against the fp64 truth."""

import pytest
import torch
from closeness import EIGHT_BITS, HALVES, HAS_FP8, INTERPRETED, VALUES_IN_FP8, cosine, needs_fp8, noise, relative_l1
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from kernels import dispatch, reference
from kernels.block_means import block_means
from kernels.settings import ARCHITECTURES, Architecture


def half(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    return noise(*shape, seed=seed, dtype=dtype)


def qkv(q_len: int, k_len: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor]:
    lengths = ((q_len, seed), (k_len, seed + 1), (k_len, seed + 2))
    q, k, v = (noise(length, width, seed=own, dtype=dtype) for length, own in lengths)
    return q, k, v


def torch_in_16_bits(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Attention as torch does it with 16-bit operands and weights: what an exact kernel may at most double the error of."""
    heads = [x.view(x.shape[0], num_heads, -1).transpose(0, 1) for x in (q, k, v)]
    scores = heads[0].float() @ heads[1].float().transpose(1, 2) * heads[0].shape[-1] ** -0.5
    out = scores.softmax(-1).to(q.dtype).float() @ heads[2].float()
    return out.transpose(0, 1).flatten(1).to(q.dtype)


def assert_as_exact_as_torch(got: Tensor, torch_s: Tensor, exact: Tensor) -> None:
    assert got.shape == exact.shape
    assert torch.isfinite(got).all()
    assert (got.double() - exact).norm() <= 2 * (torch_s.double() - exact).norm() + 1e-6 * exact.norm()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """Each architecture's own tiles and loads: descriptors on sm_90, pointers elsewhere."""
    chosen: Architecture = request.param
    if not INTERPRETED:
        own = dispatch.architecture(torch.empty(0))
        if own is None or chosen > own:
            pytest.skip(f"{chosen}'s settings need a newer device than {own}")
    return chosen


@pytest.mark.parametrize(("q_len", "k_len", "head_dim"), [(130, 140, 64), (1, 1, 128), (64, 128, 32)])
@pytest.mark.parametrize("dtype", HALVES)
def test_dense_attention_and_its_log_sum_exp(
    architecture: Architecture, q_len: int, k_len: int, head_dim: int, dtype: torch.dtype
) -> None:
    q, k, v = qkv(q_len, k_len, 2 * head_dim, dtype=dtype)
    with dispatch.pretend(architecture):
        got, lse = kernels.attention_with_lse(q, k, v, 2)
    exact, exact_lse = reference.attention_with_lse(q.double(), k, v, 2)
    assert_as_exact_as_torch(got, torch_in_16_bits(q, k, v, 2), exact)
    assert (lse - exact_lse).abs().max() < 1e-4


@settings(max_examples=8, deadline=None)
@given(q_len=st.integers(1, 140), k_len=st.integers(1, 300), heads=st.integers(1, 2), seed=st.integers(0, 2**16))
def test_dense_attention_of_any_length(q_len: int, k_len: int, heads: int, seed: int) -> None:
    q, k, v = qkv(q_len, k_len, heads * 32, seed)
    got = kernels.attention(q, k, v, heads)
    assert_as_exact_as_torch(got, torch_in_16_bits(q, k, v, heads), reference.attention(q.double(), k, v, heads))


def test_dense_attention_with_huge_scores_and_an_own_scale() -> None:
    q, k, v = qkv(40, 200, 64)
    got = kernels.attention(q * 40, k * 40, v, 1, scale=0.5)
    exact = reference.attention((q * 40).double(), k * 40, v, 1, scale=0.5)
    assert torch.isfinite(got).all()
    assert relative_l1(got, exact) < 1e-3


def test_dense_attention_reads_slices_of_one_projection(architecture: Architecture) -> None:
    fused = half(150, 3 * 64)
    q, k, v = fused[:, :64], fused[:, 64:128], fused[:, 128:]
    with dispatch.pretend(architecture):
        got = kernels.attention(q, k, v, 2)
    assert_as_exact_as_torch(got, torch_in_16_bits(q.contiguous(), k, v, 2), reference.attention(q.double(), k, v, 2))


def test_rows_may_be_unaligned_or_shared(architecture: Architecture) -> None:
    q, k, v = (half(70, 67, seed=seed)[:, 1:65] for seed in range(3))
    one_key = half(1, 64, seed=4).expand(70, 64)
    with dispatch.pretend(architecture):
        assert relative_l1(kernels.attention(q, k, v, 2), reference.attention(q.double(), k, v, 2)) < 1e-3
        assert relative_l1(kernels.attention(q, one_key, v, 2), reference.attention(q.double(), one_key, v, 2)) < 1e-3


def test_no_queries_have_no_answers(architecture: Architecture) -> None:
    q, k, v = qkv(0, 70, 64)
    with dispatch.pretend(architecture):
        assert kernels.attention(q, k, v, 2).shape == (0, 64)


def test_parts_merge_to_the_whole() -> None:
    q, k, v = qkv(70, 300, 64)
    parts = [kernels.attention_with_lse(q, k[a:b], v[a:b], 2) for a, b in ((0, 90), (90, 91), (91, 300))]
    exact = reference.attention(q.double(), k, v, 2)
    assert relative_l1(kernels.merge_attention(parts), exact) < 1e-3


def test_attention_refuses_what_has_no_answer() -> None:
    q, k, v = qkv(4, 4, 32)
    with pytest.raises(ValueError, match="no keys"):
        kernels.attention(q, k[:0], v[:0], 1)
    with pytest.raises(ValueError, match="positive"):
        kernels.attention(q, k, v, 1, scale=-1.0)
    with pytest.raises(ValueError, match="do not split into 3 heads"):
        kernels.attention(q, k, v, 3)


@pytest.mark.parametrize(("text", "image"), [(70, 33), (64, 64), (5, 129)])
@pytest.mark.parametrize("dtype", HALVES)
def test_text_and_image_attention(architecture: Architecture, text: int, image: int, dtype: torch.dtype) -> None:
    q, k_text, v_text = qkv(150, text, 128, dtype=dtype)
    _, k_image, v_image = qkv(1, image, 128, seed=9, dtype=dtype)
    with dispatch.pretend(architecture):
        got = kernels.text_image_attention(q, k_text, v_text, k_image, v_image, 2)
    torch_s = torch_in_16_bits(q, k_text, v_text, 2) + torch_in_16_bits(q, k_image, v_image, 2)
    exact = reference.text_image_attention(q.double(), k_text, v_text, k_image, v_image, 2)
    assert_as_exact_as_torch(got, torch_s, exact)


@pytest.mark.parametrize(("frames", "queries", "keys"), [(3, 70, 32), (2, 65, 64), (1, 5, 7), (2, 10, 130)])
def test_framewise_attention(frames: int, queries: int, keys: int) -> None:
    q, k, v = half(frames * queries, 128), half(frames, keys, 128, seed=1), half(frames, keys, 128, seed=2)
    got = kernels.framewise_attention(q, k, v, 2)
    torch_s = torch.cat([torch_in_16_bits(q[t * queries : (t + 1) * queries], k[t], v[t], 2) for t in range(frames)])
    assert_as_exact_as_torch(got, torch_s, reference.framewise_attention(q.double(), k, v, 2))


def test_framewise_attention_reads_the_halves_of_one_projection() -> None:
    q, both = half(20, 64), half(2, 32, 128, seed=1)
    got = kernels.framewise_attention(q, both[..., :64], both[..., 64:], 2)
    assert relative_l1(got, reference.framewise_attention(q.double(), both[..., :64], both[..., 64:], 2)) < 1e-3


def test_framewise_attention_refuses_frames_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="do not split into 3 frames"):
        kernels.framewise_attention(half(20, 64), half(3, 4, 64), half(3, 4, 64), 2)


def test_class_map(architecture: Architecture) -> None:
    q, k, _ = qkv(150, 100, 96)
    masks = torch.zeros(4, 100)
    masks[0, :30], masks[1, 20:60], masks[2, 60:] = 1, 1, 1  # two overlap; the fourth class is empty
    with dispatch.pretend(architecture):
        got = kernels.class_attention_map(q, k, masks, 3)
    exact = reference.class_attention_map(q.double(), k, masks, 3)
    assert got.dtype == torch.float32
    assert (got - exact).abs().max() <= 1e-3 * exact.max()
    first, second = exact.topk(2, dim=0).values
    clear = first > second + 1e-3 * exact.max()  # a tie within the error may fall either way
    assert clear.any()
    assert torch.equal(got.argmax(0)[clear], exact.argmax(0)[clear])
    assert not got[3].any()


def long_tailed(length: int, width: int, seed: int) -> Tensor:
    """Channels of very different size with a bias, as keys and values of trained models have them."""
    gains = noise(1, width, seed=seed + 50, dtype=torch.float32).mul(0.7).exp()
    bias = noise(1, width, seed=seed + 60, dtype=torch.float32) * 2
    return (noise(length, width, seed=seed, dtype=torch.float32) * gains + bias).half()


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("length", [200, 600])  # centred and scaled by all rows, and by every third
def test_eight_bit_operands_are_the_reference_s(length: int, dtype: torch.dtype) -> None:
    q, k, v = half(200, 128), long_tailed(length, 128, 1), long_tailed(length, 128, 2)
    k[length // 2 + 1] *= 30  # a token that reaches further than any that is looked at beforehand
    pairs = zip(kernels.quantise_qk(q, k, 2, dtype), reference.quantise_qk(q, k, 2, dtype), strict=True)
    values = zip(kernels.quantise_v(v, 2), reference.quantise_v(v, 2), strict=True) if HAS_FP8 else ()
    for got, wanted in (*pairs, *values):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        # Sums in another order may tip a value over to the next step.
        different = (got.float() - wanted.float()).abs() > 1e-4 * wanted.float().abs() + 1e-6
        assert different.float().mean() < 1e-3


@pytest.mark.parametrize(
    ("dtype", "fp8_values", "least_cosine", "most_l1"),
    [
        (torch.int8, False, 0.999, 0.03),
        pytest.param(torch.int8, True, 0.998, 0.07, marks=needs_fp8),
        pytest.param(torch.float8_e4m3fn, True, 0.998, 0.07, marks=needs_fp8),
    ],
)
@pytest.mark.parametrize("data", ["normal", "long-tailed"])
def test_eight_bit_attention_is_close(
    data: str, dtype: torch.dtype, fp8_values: bool, least_cosine: float, most_l1: float
) -> None:
    q, k, v = qkv(130, 200, 256)
    if data == "long-tailed":
        k, v = long_tailed(200, 256, 1), long_tailed(200, 256, 2)
    qk = kernels.quantise_qk(q, k, 2, dtype)
    got = kernels.eight_bit_attention(qk, kernels.quantise_v(v, 2) if fp8_values else v, 2, out_dtype=torch.float16)
    exact = reference.attention(q.double(), k, v, 2)
    assert cosine(got, exact) >= least_cosine
    assert relative_l1(got, exact) <= most_l1


@pytest.mark.parametrize("fp8_values", VALUES_IN_FP8)
def test_eight_bit_attention_adds_no_error_to_its_operands(architecture: Architecture, fp8_values: bool) -> None:
    if architecture == "sm_80" and fp8_values:
        pytest.skip("sm_80 has no fp8")
    q, k, v = half(130, 128), long_tailed(200, 128, 1), long_tailed(200, 128, 2)
    qk = reference.quantise_qk(q, k, 2)
    values = kernels.EightBitV(*reference.quantise_v(v, 2)) if fp8_values else v
    with dispatch.pretend(architecture):
        got = kernels.eight_bit_attention(kernels.EightBitQK(*qk), values, 2, out_dtype=torch.float32)
    seen = reference.dequantise_v(*values, 200) if isinstance(values, kernels.EightBitV) else v
    mean = seen.double().mean(0)  # easy to hit, and large here: what counts is what attention adds to it
    exact = reference.attention(*(x.double() for x in reference.dequantise_qk(*qk)), seen, 2) - mean
    # What is left is the softmax weights' rounding: 16 bits, or fp8's 2.6% of each, which averages out over the keys.
    assert relative_l1(got.double() - mean, exact) <= (0.03 if fp8_values else 1e-3)


@pytest.mark.parametrize("fp8_values", VALUES_IN_FP8)
def test_eight_bit_attention_over_parts_of_the_keys_merges(architecture: Architecture, fp8_values: bool) -> None:
    """Each part is centred by its own mean, and the log-sum-exp knows of it."""
    if architecture == "sm_80" and fp8_values:
        pytest.skip("sm_80 has no fp8")
    q, k, v = half(130, 128), long_tailed(300, 128, 1), long_tailed(300, 128, 2)
    k[170:] += 1.5
    parts = []
    with dispatch.pretend(architecture):
        for some in (slice(0, 170), slice(170, 300)):
            values = kernels.quantise_v(v[some], 2) if fp8_values else v[some]
            qk = kernels.EightBitQK(*reference.quantise_qk(q, k[some], 2))
            out, lse = kernels.eight_bit_attention_with_lse(qk, values, 2, 0.05, out_dtype=torch.float16)
            assert torch.equal(out, kernels.eight_bit_attention(qk, values, 2, 0.05, out_dtype=torch.float16))
            _, wanted = reference.attention_with_lse(q.double(), k[some], v[some], 2, 0.05)
            assert (lse - wanted).abs().max() < 0.1
            parts.append((out, lse))
    exact = reference.attention(q.double(), k, v, 2, 0.05)
    merged = kernels.merge_attention(parts)
    assert cosine(merged, exact) >= 0.998
    assert relative_l1(merged, exact) <= 0.07


def test_the_log_sum_exp_of_blocks_in_eight_bits() -> None:
    q, k, v = qkv(200, 300, 64)
    blocks = kernels.select_blocks(q, k, 2, 0.6, least_similarity=-1)
    qk = kernels.EightBitQK(*reference.quantise_qk(q, k, 2))
    _, lse = kernels.eight_bit_attention_with_lse(qk, v, 2, blocks=blocks, out_dtype=torch.float16)
    _, wanted = reference.block_sparse_attention_with_lse(q.double(), k, v, 2, blocks.listed, blocks.counts)
    assert (lse - wanted).abs().max() < 0.1


@pytest.mark.parametrize("heads", [2, 5, 7])  # rows of one power of two, of two, and with a ragged end
@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_norm_rope_and_quantisation_in_one(heads: int, dtype: torch.dtype) -> None:
    width = 64 * heads
    q, k, v = qkv(150, 150, width)
    weights, angles = noise(2, width, seed=5, dtype=torch.float32), noise(150, 32, seed=6, dtype=torch.float32) * 9
    qk = kernels.qk_norm_rope_quantised(q, k, weights[0], weights[1], angles.cos(), angles.sin(), heads, dtype=dtype)
    rotated = reference.qk_norm_rope(q.double(), k.double(), weights[0], weights[1], angles.cos(), angles.sin(), heads)
    for got, wanted in zip(qk, reference.quantise_qk(*rotated, heads, dtype), strict=True):
        assert got.shape == wanted.shape
        different = (got.float() - wanted.float()).abs() > 1e-3 * wanted.float().abs() + 1e-5
        assert different.float().mean() < (1e-2 if dtype == torch.int8 else 6e-2)  # fp8 is rounded otherwise by the interpreter
    if dtype == torch.float8_e4m3fn:
        return
    got = kernels.eight_bit_attention(qk, v, heads, out_dtype=torch.float16)
    exact = reference.attention(*rotated, v, heads)
    assert cosine(got, exact) >= 0.999
    assert relative_l1(got, exact) <= 0.03


@pytest.mark.parametrize("length", [1, 128, 300])
@pytest.mark.parametrize("dtype", HALVES)
def test_block_means(length: int, dtype: torch.dtype) -> None:
    x = noise(length, 128, dtype=dtype) + 0.7
    x[:1] = 0  # a token without a direction
    got = block_means(x, 2, 128)
    for one, exact in zip(got, reference.block_means(x.double(), 2, 128), strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one.double(), exact, atol=1e-5)


@pytest.mark.parametrize("k_len", [600, 512, 513])
def test_block_sparse_attention(architecture: Architecture, k_len: int) -> None:
    q, k, v = qkv(200, k_len, 64)
    blocks = kernels.select_blocks(q, k, 2, 0.4, least_similarity=-1)
    with dispatch.pretend(architecture):
        got, lse = kernels.block_sparse_attention_with_lse(q, k, v, 2, blocks)
    exact, wanted = reference.block_sparse_attention_with_lse(q.double(), k, v, 2, blocks.listed, blocks.counts)
    assert (lse - wanted).abs().max() < 1e-2
    assert relative_l1(got, exact) < 1e-3
    assert relative_l1(got, reference.attention(q.double(), k, v, 2)) > 0.05  # something was left out


def test_block_sparse_attention_with_full_lists_is_dense() -> None:
    q, k, v = qkv(200, 300, 64)
    got = kernels.block_sparse_attention(q, k, v, 2, kernels.select_blocks(q, k, 2, 1.0))
    assert_as_exact_as_torch(got, torch_in_16_bits(q, k, v, 2), reference.attention(q.double(), k, v, 2))


@pytest.mark.parametrize("fp8_values", VALUES_IN_FP8)
def test_block_sparse_attention_in_eight_bits(fp8_values: bool) -> None:
    q, k, v = qkv(200, 300, 64)
    blocks = kernels.select_blocks(q, k, 2, 0.6, least_similarity=-1)
    exact = reference.block_sparse_attention(q.double(), k, v, 2, blocks.listed, blocks.counts)
    values = kernels.quantise_v(v, 2) if fp8_values else v
    qk = kernels.EightBitQK(*reference.quantise_qk(q, k, 2))
    got = kernels.eight_bit_attention(qk, values, 2, blocks=blocks, out_dtype=torch.float16)
    assert cosine(got, exact) >= 0.998
    assert relative_l1(got, exact) <= 0.07


def test_eight_bit_linear() -> None:
    for rows, inner, outer in ((130, 200, 72), (5, 128, 130)):
        x, weight, bias = half(rows, inner), half(outer, inner, seed=1), half(outer, seed=2)
        quantised, packed = kernels.quantise_rows(x, torch.int8), kernels.quantise_weight(weight, torch.int8)
        got = kernels.linear_eight_bit(quantised, packed, bias, torch.float32)
        restored = (quantised[0].double() * quantised[1].double()) @ (packed.values.double() * packed.scale.double()).t()
        assert torch.allclose(got.double(), restored + bias.double(), atol=1e-3, rtol=1e-5)
        assert relative_l1(got, x.double() @ weight.double().t() + bias.double()) < 0.02


def operators() -> list[tuple[str, tuple[object, ...]]]:
    q, k, v = qkv(5, 7, 64)
    qk = reference.quantise_qk(q, k, 2)
    frames = [x[:6].view(2, 3, 64) for x in (k, v)]
    blocks = (torch.zeros(2, 1, 1, dtype=torch.int32), torch.ones(2, 1, dtype=torch.int32))
    rows = reference.quantise_rows(q, torch.int8)
    nothing = (None, None, None, None)
    return [
        ("attention", (q, k, v, 2, None)),
        ("attention_with_lse", (q, k, v, 2, None)),
        ("text_image_attention", (q, k, v, k, v, 2)),
        ("framewise_attention", (q[:4], *frames, 2)),
        ("class_attention_map", (q, k, torch.ones(2, 7), 2)),
        ("block_sparse_attention", (q, k, v, *blocks, 2, None)),
        ("quantise_qk", (q, k, *nothing, 2, 0.0, torch.int8)),
        *([("quantise_v", (v, 2))] if HAS_FP8 else []),
        ("block_means", (q, 2, 4)),
        ("eight_bit_attention", (*qk, v, *nothing, 2, None, torch.float16)),
        ("linear_eight_bit", (*rows, *rows, None, torch.float16)),
    ]


@pytest.mark.parametrize(("operator", "arguments"), operators(), ids=lambda x: x if isinstance(x, str) else "")
def test_operators_tell_the_compiler_the_truth(operator: str, arguments: tuple[object, ...]) -> None:
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.infinite_talk, operator).default, arguments, test_utils=checks)
