"""Every operation in plain torch: the single truth that the kernels, their tests and the benches are held against.

Arithmetic is fp32 (fp64 where an input is fp64), whatever the inputs' dtype; results come back in the first input's
dtype unless a docstring says otherwise. Nothing here needs Triton or a GPU. Activations are unbatched and token-major,
``[tokens, heads * head_dim]``, the layout a Linear writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Explicit scores are made for this many elements at a time, so that the truth of a long sequence fits in memory.
_SCORE_ELEMENTS = 1 << 24


def _working_dtype(*tensors: Tensor | None) -> torch.dtype:
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _split_heads(x: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """[..., L, H*D] -> [..., H, L, D]."""
    return x.to(dtype).reshape(*x.shape[:-1], num_heads, -1).transpose(-3, -2)


def _merge_heads(x: Tensor) -> Tensor:
    """[..., H, L, D] -> [..., L, H*D]."""
    return x.transpose(-3, -2).flatten(-2)


def affine_modulated_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor | None, scale: Tensor | None, eps: float
) -> Tensor:
    """(LN(x) * weight + bias) * (1 + scale) + shift over the last axis, in the working dtype; what is None is left out."""
    dtype = _working_dtype(x, weight, bias, shift, scale)
    affine = [None if t is None else t.to(dtype) for t in (weight, bias)]
    h = F.layer_norm(x.to(dtype), x.shape[-1:], affine[0], affine[1], eps)
    if scale is not None:
        h = h * (1 + scale.to(dtype))
    return h if shift is None else h + shift.to(dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-6) -> Tensor:
    """LN(x) * weight + bias over the last axis, [L, D] -> [L, D]; weight and bias are [D] or None."""
    return affine_modulated_norm(x, weight, bias, None, None, eps).to(x.dtype)


def layer_norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, *, out_dtype: torch.dtype | None = None
) -> Tensor:
    """LN(x) * (1 + scale) + shift, [L, D] -> [L, D]; shift and scale are [D]. The adaptive norm of DiT (arXiv:2212.09748)."""
    return affine_modulated_norm(x, None, None, shift, scale, eps).to(out_dtype or x.dtype)


def layer_norm_quantised(
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor]:
    """``quantise_rows`` of the layer norm, affine and/or modulated: [L, D] -> values [L, D], row scales [L, 1]."""
    return quantise_rows(affine_modulated_norm(x, weight, bias, shift, scale, eps), dtype)


def residual_gate_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """(x + gate * y, h): a gated residual and the next layer norm of it, both [L, D] in x's dtype.

    h = (LN(x + gate * y) * weight + bias) * (1 + scale) + shift; whatever is None is left out. The norm reads the sum as
    it is stored, rounded to x's dtype, so that h is what a separate norm of the returned sum would give.
    """
    total = _gated_sum(x, y, gate)
    return total, affine_modulated_norm(total, weight, bias, shift, scale, eps).to(x.dtype)


def residual_gate_norm_quantised(
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> tuple[Tensor, Tensor, Tensor]:
    """``residual_gate_norm`` with ``quantise_rows`` of its norm: sum [L, D], values [L, D], row scales [L, 1]."""
    total = _gated_sum(x, y, gate)
    return (total, *quantise_rows(affine_modulated_norm(total, weight, bias, shift, scale, eps), dtype))


def _gated_sum(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    dtype = _working_dtype(x, y, gate)
    update = y.to(dtype) if gate is None else gate.to(dtype) * y.to(dtype)
    return (x.to(dtype) + update).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, [L, D] -> [L, D] (arXiv:1910.07467)."""
    dtype = _working_dtype(x, weight)
    return (_rms(x.to(dtype), eps) * weight.to(dtype)).to(x.dtype)


def _rms(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> Tensor:
    """Turn each pair (2i, 2i+1) of every head of x [L, H*D] by the angle whose cosine and sine are cos, sin [L, D/2]."""
    even, odd = x.reshape(x.shape[0], num_heads, -1, 2).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-3)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """RMS norm of q and k [L, H*D] over the full width, then interleaved rotary by cos, sin [L, D/2] in every head."""
    dtype = _working_dtype(q, k, q_weight, k_weight, cos, sin)
    cos, sin = cos.to(dtype), sin.to(dtype)

    def one(x: Tensor, weight: Tensor) -> Tensor:
        return _rotate(_rms(x.to(dtype), eps) * weight.to(dtype), cos, sin, num_heads).to(x.dtype)

    return one(q, q_weight), one(k, k_weight)


def rope_tables(positions: Tensor, head_dim: int, theta: float = 1e4) -> tuple[Tensor, Tensor]:
    """cos and sin [L, head_dim/2] of positions [L]: pair i turns by position * theta^(-2i/head_dim) (arXiv:2104.09864)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=positions.dtype) / head_dim)
    angles = positions.unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()


def rope_1d(x: Tensor, positions: Tensor, num_heads: int, theta: float = 1e4) -> Tensor:
    """Interleaved rotary of x [L, H*D] at real positions [L], the same in every head -> [L, H*D]."""
    dtype = _working_dtype(x, positions)
    cos, sin = rope_tables(positions.to(dtype), x.shape[-1] // num_heads, theta)
    return _rotate(x.to(dtype), cos, sin, num_heads).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form (arXiv:1606.08415), any shape."""
    return F.gelu(x.to(_working_dtype(x)), approximate="tanh").to(x.dtype)


def gelu_tanh_quantised(x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """``quantise_rows`` of ``gelu_tanh``: [L, D] -> values [L, D], row scales [L, 1]."""
    return quantise_rows(F.gelu(x.to(_working_dtype(x)), approximate="tanh"), dtype)


# A block list has one entry for Q_BLOCK queries and K_BLOCK keys; keys in 8 bits share one scale, and values one exponent, in
# groups of K_GROUP.
Q_BLOCK = 128
K_BLOCK = 128
K_GROUP = 128

# So many rows tell what to centre 8-bit operands by and how far keys reach, and how much further than them the others may.
SAMPLE_ROWS = 256
SAMPLE_MARGIN = 1.25

# The key at each place of 16 in a transposed V. The tensor cores leave a thread the scores of keys 2t, 2t + 1, 2t + 8 and 2t + 9,
# and take from it 8-bit weights of four keys side by side: with V in this order they are the same, and none changes hands.
V_ORDER = tuple(8 * b + 2 * t + j for t in range(4) for b in range(2) for j in range(2))

# The largest magnitude that quantisation uses; -128 is left out so that int8 is symmetric.
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def to_eight_bits(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round x, already scaled into range, to int8 (half to even) or fp8 e4m3."""
    return (x.round() if dtype == torch.int8 else x).to(dtype)


def quantise_rows(x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    """x [L, D] in 8 bits: values [L, D] int8 or fp8 e4m3, row scales [L, 1] fp32 = max|row| / largest; x ~ values * scales."""
    wide = x.to(_working_dtype(x))
    scales = wide.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST[dtype]
    return to_eight_bits(wide / scales, dtype), scales.float()


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of [..., Lq, D] over [..., Lk, D]: the output and the natural log-sum-exp of the scaled scores [..., Lq]."""
    rows = max(1, _SCORE_ELEMENTS // max(1, q.shape[:-2].numel() * k.shape[-2]))
    outputs, lses = [], []
    for start in range(0, q.shape[-2], rows):
        part = q[..., start : start + rows, :]
        scores = part @ k.transpose(-1, -2) * scale
        lse = scores.logsumexp(-1)
        outputs.append((scores - lse.unsqueeze(-1)).exp() @ v)
        lses.append(lse)
    return torch.cat(outputs, dim=-2), torch.cat(lses, dim=-1)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """``attention`` and the log-sum-exp of each query's scaled scores, [H, Lq] in the working dtype, natural logarithm."""
    dtype = _working_dtype(q, k, v)
    qh, kh, vh = (_split_heads(x, num_heads, dtype) for x in (q, k, v))
    out, lse = _softmax_attention(qh, kh, vh, qh.shape[-1] ** -0.5 if scale is None else scale)
    return _merge_heads(out).to(q.dtype), lse


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None = None) -> Tensor:
    """Softmax attention of q [Lq, H*D] over k, v [Lk, H*D] -> [Lq, H*D]; scale is 1/sqrt(D) unless given."""
    return attention_with_lse(q, k, v, num_heads, scale)[0]


def text_image_attention(q: Tensor, k_text: Tensor, v_text: Tensor, k_image: Tensor, v_image: Tensor, num_heads: int) -> Tensor:
    """attention(q, k_text, v_text) + attention(q, k_image, v_image): two separate softmaxes, summed. [Lq, H*D] -> [Lq, H*D]."""
    dtype = _working_dtype(q, k_text, v_text, k_image, v_image)
    q_wide = q.to(dtype)
    return (attention(q_wide, k_text, v_text, num_heads) + attention(q_wide, k_image, v_image, num_heads)).to(q.dtype)


def framewise_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Attention in which each frame sees its own keys: q [T*S, H*D], k and v [T, K, H*D] -> [T*S, H*D]."""
    dtype = _working_dtype(q, k, v)
    frames = k.shape[0]
    qh, kh, vh = (_split_heads(x, num_heads, dtype) for x in (q.reshape(frames, -1, q.shape[-1]), k, v))
    out, _ = _softmax_attention(qh, kh, vh, qh.shape[-1] ** -0.5)
    return _merge_heads(out).flatten(0, 1).to(q.dtype)


def class_attention_map(q: Tensor, k: Tensor, masks: Tensor, num_heads: int) -> Tensor:
    """How much each query attends to each class of keys: q [N, H*D], k [S, H*D], masks [C, S] -> [C, N] fp32.

    Softmax over all S keys, the probabilities under each mask summed and divided by the mask's token count, mean over heads.
    An empty mask gives zero. fp64 inputs give an fp64 map.
    """
    dtype = _working_dtype(q, k)
    qh, kh = (_split_heads(x, num_heads, dtype) for x in (q, k))
    classes = masks.to(dtype)
    values = (classes / classes.sum(-1, keepdim=True).clamp(min=1)).t().expand(num_heads, -1, -1)
    out, _ = _softmax_attention(qh, kh, values, qh.shape[-1] ** -0.5)
    return out.mean(0).t().contiguous()


def merge_attention(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over all keys from (output [L, H*D], log-sum-exp [H, L]) over disjoint parts of them -> [L, H*D].

    Each part's weight is its share of the softmax's denominator (ring attention, arXiv:2310.01889).
    """
    lses = torch.stack([lse for _, lse in parts])
    shares = torch.softmax(lses, dim=0)
    num_heads = lses.shape[1]
    dtype = _working_dtype(lses, *(out for out, _ in parts))
    merged = sum(
        (_split_heads(out, num_heads, dtype) * share.unsqueeze(-1) for (out, _), share in zip(parts, shares, strict=True)),
        start=torch.zeros((), dtype=dtype, device=lses.device),
    )
    return _merge_heads(merged).to(parts[0][0].dtype)


def sample_rows(x: Tensor) -> Tensor:
    """The rows of x [L, D] that stand for all where 8-bit operands are centred and scaled: SAMPLE_ROWS, evenly apart."""
    return x[:: -(-x.shape[0] // SAMPLE_ROWS)]


def quantise_qk(
    q: Tensor, k: Tensor, num_heads: int, dtype: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q and k [L, H*D] in 8 bits: (q, q_scale [H, Lq], k, k_scale [H, ceil(Lk / K_GROUP)], centre of k [H*D] fp32).

    The mean of K's ``sample_rows`` is taken away first: it adds the same number to all scores of a query, which softmax does not
    see, and it is what spoils 8-bit keys (arXiv:2410.02367). A scale for each query and head, and for each head of K the one
    that SAMPLE_MARGIN times the sample's largest value just fits; a group of K_GROUP keys that reaches further has its own.
    """
    wide = _working_dtype(q, k)
    centre = sample_rows(k).mean(0, dtype=wide)
    qh, kh = (_split_heads(x, num_heads, wide) for x in (q, k.to(wide) - centre))
    q_scale = qh.abs().amax(-1).clamp(min=1e-12) / LARGEST[dtype]
    limits = sample_rows(kh.transpose(0, 1)).abs().amax((0, 2)).unsqueeze(-1) * SAMPLE_MARGIN
    peaks = F.pad(kh.abs().amax(-1), (0, -k.shape[0] % K_GROUP)).unflatten(-1, (-1, K_GROUP)).amax(-1)
    k_scale = torch.maximum(peaks, limits).clamp(min=1e-12) / LARGEST[dtype]
    each_key = k_scale.repeat_interleave(K_GROUP, dim=-1)[:, : k.shape[0], None]
    values = [_merge_heads(to_eight_bits(x, dtype)) for x in (qh / q_scale.unsqueeze(-1), kh / each_key)]
    return values[0], q_scale.float(), values[1], k_scale.float(), centre.float()


def quantise_v(v: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """v [L, H*D] as fp8 e4m3, transposed, keys in V_ORDER in every 16.

    Returns values [H*D, L padded with zeros to K_GROUP], exponent [H, ceil(L / K_GROUP)] and centre [H*D], so that in each
    head and group v ~ values^T * 2^exponent + centre, which is the mean of V's ``sample_rows``; attention adds it back to its
    output, since the weights of a query sum to one (arXiv:2411.10958).
    """
    centre = sample_rows(v).mean(0, dtype=_working_dtype(v)).float()
    padded = F.pad(v.to(_working_dtype(v)) - centre, (0, 0, 0, -v.shape[0] % K_GROUP))
    groups = padded.reshape(-1, K_GROUP, num_heads, v.shape[1] // num_heads)
    exponent = (groups.abs().amax((1, 3)).clamp(min=1e-12) / LARGEST[torch.float8_e4m3fn]).log2()
    scaled = groups * (-exponent).exp2()[:, None, :, None]
    ordered = scaled.unflatten(1, (-1, len(V_ORDER)))[:, :, list(V_ORDER)].flatten(0, 2).flatten(1)
    largest = LARGEST[torch.float8_e4m3fn]
    return ordered.clamp(-largest, largest).to(torch.float8_e4m3fn).t().contiguous(), exponent.t().contiguous().float(), centre


def dequantise_qk(q: Tensor, q_scale: Tensor, k: Tensor, k_scale: Tensor, k_centre: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 q and k [L, H*D] from what ``quantise_qk`` gives."""
    num_heads = q_scale.shape[0]
    each_key = k_scale.repeat_interleave(K_GROUP, dim=-1)[:, : k.shape[0], None]
    qh, kh = (_split_heads(x.float(), num_heads, torch.float32) for x in (q, k))
    return _merge_heads(qh * q_scale.unsqueeze(-1)), _merge_heads(kh * each_key) + k_centre


def dequantise_v(values: Tensor, exponent: Tensor, centre: Tensor, length: int) -> Tensor:
    """fp32 v [L, H*D] from what ``quantise_v`` gives."""
    ordered = values.float().t().unflatten(0, (-1, len(V_ORDER)))
    natural = torch.empty_like(ordered)
    natural[:, list(V_ORDER)] = ordered
    groups = natural.reshape(exponent.shape[1], K_GROUP, exponent.shape[0], -1)
    return (groups * exponent.t().exp2()[:, None, :, None]).flatten(0, 1).flatten(1)[:length] + centre


def block_means(x: Tensor, num_heads: int, block: int) -> tuple[Tensor, Tensor]:
    """Of blocks of x [L, H*D], the last one ragged: mean tokens [H, blocks, D] and their tokens' mean cosine [H, blocks]."""
    heads = _split_heads(x, num_heads, _working_dtype(x))
    length = heads.shape[1]
    missing = -length % block
    parts = F.pad(heads, (0, 0, 0, missing)).unflatten(1, (-1, block))
    counts = torch.full((parts.shape[1], 1), block, device=x.device)
    counts[-1] -= missing
    directions = parts / torch.linalg.vector_norm(parts, dim=-1, keepdim=True).clamp(min=1e-12)
    # The squared length of the mean unit vector is the mean of all pairwise cosines.
    return parts.sum(2) / counts, (directions.sum(2) / counts).square().sum(-1)


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, block_list: Tensor, block_count: Tensor, scale: float | None = None
) -> Tensor:
    """The output of ``block_sparse_attention_with_lse``, [Lq, H*D]."""
    return block_sparse_attention_with_lse(q, k, v, num_heads, block_list, block_count, scale)[0]


def block_sparse_attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, block_list: Tensor, block_count: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in which Q_BLOCK queries see only the K_BLOCK-key blocks listed for them.

    q [Lq, H*D], k and v [Lk, H*D]; block_list [H, ceil(Lq / Q_BLOCK), widest], of whose last axis the first block_count
    [H, ceil(Lq / Q_BLOCK)] entries count, ascending. Also the natural log-sum-exp of the scores seen, [H, Lq].
    """
    dtype = _working_dtype(q, k, v)
    qh, kh, vh = (_split_heads(x, num_heads, dtype) for x in (q, k, v))
    scale = qh.shape[-1] ** -0.5 if scale is None else scale
    blocks = -(-k.shape[0] // K_BLOCK)
    listed = torch.arange(block_list.shape[-1], device=q.device) < block_count.unsqueeze(-1)
    seen = torch.zeros((*block_count.shape, blocks + 1), dtype=torch.bool, device=q.device)
    seen.scatter_(-1, torch.where(listed, block_list.long(), blocks), True)
    out, lse = torch.empty_like(qh), torch.empty_like(qh[..., 0])
    for index, rows in enumerate(range(0, q.shape[0], Q_BLOCK)):
        keys = seen[:, index, :blocks].repeat_interleave(K_BLOCK, dim=-1)[:, None, : k.shape[0]]
        scores = (qh[:, rows : rows + Q_BLOCK] @ kh.transpose(-1, -2) * scale).masked_fill(~keys, float("-inf"))
        out[:, rows : rows + Q_BLOCK] = scores.softmax(-1) @ vh
        lse[:, rows : rows + Q_BLOCK] = scores.logsumexp(-1)
    return _merge_heads(out).to(q.dtype), lse
