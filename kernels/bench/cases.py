"""What is measured: each operation at production shape, its floor, its peers, and the truth for a sample of its output.

The same cases feed the offline compilation gates, with meta tensors in place of data.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels import reference
from kernels.quantise_qk import EightBitQK
from kernels.quantise_v import EightBitV
from kernels.reference import K_BLOCK, K_GROUP, Q_BLOCK
from kernels.self_attention import flash_attention_3
from kernels.self_attention_sparse import BlockList

WIDTH, HEADS, HEAD_DIM, FFN = 5120, 40, 128, 13_824
TEXT_KEYS, IMAGE_KEYS, AUDIO_KEYS = 512, 257, 32
FP8 = torch.float8_e4m3fn

Call = Callable[[], Any]
Rate = Literal["bytes", "bf16", "fp8", "int8"]


@dataclass(frozen=True)
class Shape:
    """Latent frames and token rows and columns of 81 video frames."""

    name: str
    frames: int
    rows: int
    columns: int

    @property
    def tokens(self) -> int:
        """Tokens of the whole clip."""
        return self.frames * self.rows * self.columns


SHAPES = (Shape("480p", 21, 30, 52), Shape("720p", 21, 45, 80))


@dataclass(frozen=True)
class Built:
    """A case with its data: our call, its peers, and the fp32 truth for the part of the output that ``sample`` takes."""

    ours: Call
    peers: dict[str, Call] = field(default_factory=dict)
    sample: Callable[[Any], Tensor] | None = None
    exact: Call | None = None


@dataclass(frozen=True)
class Case:
    """An operation: which ceiling its floor is set by, how much of it the work takes, and how to build it."""

    name: str
    rate: Rate
    work: Callable[[Shape], float]
    build: Callable[[Shape, str], Built]
    # Architectures that do not have the operation's type; the reason stands in the settings or in dispatch.
    absent: tuple[str, ...] = ()


def noise(*size: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Fresh normal data, or a meta tensor."""
    return torch.randn(*size, device=device, dtype=torch.float32).to(dtype)


def _activations(count: int, shape: Shape, device: str) -> list[Tensor]:
    return [noise(shape.tokens, WIDTH, device=device) for _ in range(count)]


def _vectors(count: int, device: str) -> list[Tensor]:
    return [noise(WIDTH, device=device, dtype=torch.float32) for _ in range(count)]


def _tables(shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    angles = noise(shape.tokens, HEAD_DIM // 2, device=device, dtype=torch.float32) * 100
    return angles.cos(), angles.sin()


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _x(shape: Shape, copies: float) -> float:
    return copies * shape.tokens * WIDTH * 2


def _first_rows(out: Any) -> Tensor:
    first: Tensor = (out[0] if isinstance(out, tuple) else out)[:256]
    return first


def _second_first_rows(out: Any) -> Tensor:
    second: Tensor = out[1][:256]
    return second


def _restored_rows(out: Any) -> Tensor:
    restored: Tensor = out[0][:256].float() * out[1][:256]
    return restored


def _modulate(shape: Shape, device: str) -> Built:
    (x,), (shift, scale) = _activations(1, shape, device), _vectors(2, device)
    return Built(
        lambda: kernels.layer_norm_modulate(x, shift, scale),
        {"torch.compile": lambda: _compiled(reference.layer_norm_modulate)(x, shift, scale)},
        _first_rows,
        lambda: reference.layer_norm_modulate(x[:256].float(), shift, scale),
    )


def _modulate_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    (x,), (shift, scale) = _activations(1, shape, device), _vectors(2, device)
    return Built(
        lambda: kernels.layer_norm_quantised(x, shift=shift, scale=scale, dtype=dtype),
        {"torch.compile": lambda: _compiled(reference.layer_norm_quantised)(x, shift=shift, scale=scale, dtype=dtype)},
        _restored_rows,
        lambda: reference.layer_norm_modulate(x[:256].float(), shift, scale),
    )


def _residual(shape: Shape, device: str) -> Built:
    (x, y), (gate, shift, scale) = _activations(2, shape, device), _vectors(3, device)
    return Built(
        lambda: kernels.residual_gate_norm(x, y, gate, shift=shift, scale=scale),
        {"torch.compile": lambda: _compiled(reference.residual_gate_norm)(x, y, gate, shift=shift, scale=scale)},
        _second_first_rows,
        lambda: reference.residual_gate_norm(x[:256].float(), y[:256].float(), gate, shift=shift, scale=scale)[1],
    )


def _residual_affine(shape: Shape, device: str) -> Built:
    (x, y), (weight, bias) = _activations(2, shape, device), _vectors(2, device)
    return Built(
        lambda: kernels.residual_gate_norm(x, y, None, weight=weight, bias=bias),
        {"torch.compile": lambda: _compiled(reference.residual_gate_norm)(x, y, None, weight=weight, bias=bias)},
        _second_first_rows,
        lambda: reference.residual_gate_norm(x[:256].float(), y[:256].float(), None, weight=weight, bias=bias)[1],
    )


def _residual_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    (x, y), (gate, shift, scale) = _activations(2, shape, device), _vectors(3, device)
    return Built(lambda: kernels.residual_gate_norm_quantised(x, y, gate, shift=shift, scale=scale, dtype=dtype))


def _rms(shape: Shape, device: str) -> Built:
    (x,), (weight,) = _activations(1, shape, device), _vectors(1, device)
    return Built(
        lambda: kernels.rms_norm(x, weight),
        {"torch.compile": lambda: _compiled(reference.rms_norm)(x, weight)},
        _first_rows,
        lambda: reference.rms_norm(x[:256].float(), weight),
    )


def _qk_norm_rope(shape: Shape, device: str) -> Built:
    (q, k), (qw, kw), (cos, sin) = _activations(2, shape, device), _vectors(2, device), _tables(shape, device)
    # Our call turns its operands, each time; the others are given their own.
    rows, copies = (q[:256].float(), k[:256].float()), (q.clone(), k.clone())

    def turned() -> tuple[Tensor, Tensor]:
        kernels.qk_norm_rope_(q, k, qw, kw, cos, sin, HEADS)
        return q, k

    return Built(
        turned,
        {"torch.compile": lambda: _compiled(reference.qk_norm_rope)(*copies, qw, kw, cos, sin, HEADS)},
        _first_rows,
        lambda: reference.qk_norm_rope(*rows, qw, kw, cos[:256], sin[:256], HEADS)[0],
    )


def _qk_norm_rope_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    (q, k), (qw, kw), (cos, sin) = _activations(2, shape, device), _vectors(2, device), _tables(shape, device)
    return Built(lambda: kernels.qk_norm_rope_quantised(q, k, qw, kw, cos, sin, HEADS, dtype=dtype))


def _quantise_qk(shape: Shape, device: str) -> Built:
    q, k = _activations(2, shape, device)
    return Built(lambda: kernels.quantise_qk(q, k, HEADS))


def _rope_1d(shape: Shape, device: str) -> Built:
    (x,), positions = _activations(1, shape, device), noise(shape.tokens, device=device, dtype=torch.float32) * 12
    return Built(
        lambda: kernels.rope_1d(x, positions, HEADS),
        {"torch.compile": lambda: _compiled(reference.rope_1d)(x, positions, HEADS)},
        _first_rows,
        lambda: reference.rope_1d(x[:256].float(), positions[:256], HEADS),
    )


def _gelu(shape: Shape, device: str) -> Built:
    x = noise(shape.tokens, FFN, device=device)
    return Built(
        lambda: kernels.gelu_tanh(x),
        {"torch": lambda: F.gelu(x, approximate="tanh")},
        _first_rows,
        lambda: reference.gelu_tanh(x[:256].float()),
    )


def _gelu_quantised(dtype: torch.dtype, shape: Shape, device: str) -> Built:
    x = noise(shape.tokens, FFN, device=device)
    return Built(
        lambda: kernels.gelu_tanh_quantised(x, dtype),
        {"torch.compile": lambda: _compiled(reference.gelu_tanh_quantised)(x, dtype)},
        _restored_rows,
        lambda: reference.gelu_tanh(x[:256].float()),
    )


def _quantise_v(shape: Shape, device: str) -> Built:
    (v,) = _activations(1, shape, device)
    return Built(lambda: kernels.quantise_v(v, HEADS), {"torch.compile": lambda: _compiled(reference.quantise_v)(v, HEADS)})


def _heads(x: Tensor) -> Tensor:
    """[L, H*D] -> [1, H, L, D] without a copy, as torch's attention takes it."""
    return x.view(1, x.shape[0], HEADS, HEAD_DIM).transpose(1, 2)


def _tokens(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[2], WIDTH)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _tokens(F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v)))


def _text_image(shape: Shape, device: str) -> Built:
    (q,) = _activations(1, shape, device)
    text = [noise(TEXT_KEYS, WIDTH, device=device) for _ in range(2)]
    image = [noise(IMAGE_KEYS, WIDTH, device=device) for _ in range(2)]
    return Built(
        lambda: kernels.text_image_attention(q, text[0], text[1], image[0], image[1], HEADS),
        {"2 x sdpa + add": lambda: _sdpa(q, text[0], text[1]) + _sdpa(q, image[0], image[1])},
        _first_rows,
        lambda: reference.text_image_attention(q[:256].float(), text[0], text[1], image[0], image[1], HEADS),
    )


def _framewise(people: int, shape: Shape, device: str) -> Built:
    (q,) = _activations(1, shape, device)
    k, v = (noise(shape.frames, people * AUDIO_KEYS, WIDTH, device=device) for _ in range(2))

    def sdpa() -> Tensor:
        heads = [x.view(shape.frames, -1, HEADS, HEAD_DIM).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).reshape(q.shape)

    return Built(
        lambda: kernels.framewise_attention(q, k, v, HEADS),
        {"sdpa": sdpa},
        _first_rows,
        lambda: reference.attention(q[:256].float(), k[0], v[0], HEADS),
    )


def _class_map(shape: Shape, device: str) -> Built:
    (q,) = _activations(1, shape, device)
    k = q[: shape.rows * shape.columns]
    masks = (noise(3, k.shape[0], device=device) > 0).to(torch.float32)
    return Built(
        lambda: kernels.class_attention_map(q, k, masks, HEADS),
        {},
        lambda out: out[:, :256],
        lambda: reference.class_attention_map(q[:256].float(), k, masks, HEADS),
    )


def _self_attention(kind: str, shape: Shape, device: str) -> Built:
    q, k, v = _activations(3, shape, device)
    return Built(_self_attention_call(kind, q, k, v), _attention_peers(q, k, v), _first_rows, _attention_truth(q, k, v))


def _attention_truth(q: Tensor, k: Tensor, v: Tensor) -> Call:
    return lambda: reference.attention(q[:256].float(), k, v, HEADS)


def _self_attention_call(kind: str, q: Tensor, k: Tensor, v: Tensor) -> Call:
    if kind == "dispatch":
        return lambda: kernels.attention(q, k, v, HEADS)
    if kind == "lse":
        return lambda: kernels.attention_with_lse(q, k, v, HEADS)
    dtype = FP8 if kind.startswith("fp8") else torch.int8
    if kind.endswith("bf16"):
        return lambda: kernels.eight_bit_attention(kernels.quantise_qk(q, k, HEADS, dtype), v, HEADS)
    return lambda: kernels.eight_bit_attention(kernels.quantise_qk(q, k, HEADS, dtype), kernels.quantise_v(v, HEADS), HEADS)


def _attention_peers(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Call]:
    def cudnn() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return _sdpa(q, k, v)

    def flex() -> Tensor:
        attend = _compiled(import_module("torch.nn.attention.flex_attention").flex_attention)
        return _tokens(attend(_heads(q), _heads(k), _heads(v)))

    peers: dict[str, Call] = {"sdpa": lambda: _sdpa(q, k, v), "sdpa cudnn": cudnn, "flex": flex}
    if find_spec("flash_attn_interface"):
        peers["fa3"] = lambda: flash_attention_3(q, k, v, HEADS, None)
    if find_spec("sageattention"):
        peers["sageattention"] = lambda: _tokens(import_module("sageattention").sageattn(_heads(q), _heads(k), _heads(v)))
    return peers


def _prepared_eight_bit(shape: Shape, device: str, values: str) -> tuple[EightBitQK, Tensor | EightBitV]:
    """Operands of the right types; scales are those of normal data, which does not need quantising to be timed."""
    length = shape.tokens
    groups = -(-length // K_GROUP)
    q, k = ((noise(length, WIDTH, device=device) * 30).clamp(-127, 127).to(torch.int8) for _ in range(2))
    q_scale = torch.full((HEADS, length), 1 / 30, device=device)
    k_scale, k_centre = torch.full((HEADS, groups), 1 / 30, device=device), torch.zeros(WIDTH, device=device)
    qk = EightBitQK(q, q_scale, k, k_scale, k_centre)
    if values == "bf16":
        return qk, noise(length, WIDTH, device=device)
    exponent, centre = torch.full((HEADS, groups), -7.0, device=device), torch.zeros(WIDTH, device=device)
    return qk, EightBitV((noise(WIDTH, groups * K_GROUP, device=device) * 100).to(FP8), exponent, centre)


def _half_of_the_blocks(shape: Shape, device: str) -> BlockList:
    rows, blocks = -(-shape.tokens // Q_BLOCK), -(-shape.tokens // K_BLOCK)
    kept = torch.rand(HEADS, rows, blocks, device=device).argsort(-1)[..., : blocks // 2].sort(-1).values
    return BlockList(kept.to(torch.int32), torch.full((HEADS, rows), blocks // 2, device=device, dtype=torch.int32))


def _sparse(kind: str, shape: Shape, device: str) -> Built:
    blocks = _half_of_the_blocks(shape, device)
    if kind == "bf16":
        q, k, v = _activations(3, shape, device)
        return Built(
            lambda: kernels.block_sparse_attention(q, k, v, HEADS, blocks),
            {"dense kernel": lambda: kernels.attention_with_lse(q, k, v, HEADS)},
        )
    qk, values = _prepared_eight_bit(shape, device, kind.removeprefix("int8 "))
    return Built(
        lambda: kernels.eight_bit_attention(qk, values, HEADS, blocks=blocks),
        {"dense kernel": lambda: kernels.eight_bit_attention(qk, values, HEADS)},
    )


def _linear(dtype: torch.dtype, inner: int, outer: int, shape: Shape, device: str) -> Built:
    x, weight = noise(shape.tokens, inner, device=device), noise(outer, inner, device=device)
    bias = noise(outer, device=device)
    quantised = kernels.quantise_rows(x, dtype) if device != "meta" else _empty_rows(x, dtype)
    packed = kernels.EightBitWeight(*_empty_rows(weight, dtype)) if device == "meta" else kernels.quantise_weight(weight, dtype)
    return Built(
        lambda: kernels.linear_eight_bit(quantised, packed, bias),
        {"bf16 linear": lambda: F.linear(x, weight, bias)},
        _first_rows,
        lambda: F.linear(x[:256].float(), weight.float(), bias.float()),
    )


def _empty_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=dtype, device=x.device), torch.empty((x.shape[0], 1), device=x.device)


def _self_attention_work(shape: Shape, share: float = 1.0) -> float:
    return 4.0 * shape.tokens**2 * WIDTH * share


def _case(name: str, rate: Rate, work: Callable[[Shape], float], build: Callable[..., Built], *first: object) -> Case:
    absent = ("sm_80",) if FP8 in first or any(isinstance(f, str) and "fp8" in f for f in first) or build is _quantise_v else ()
    return Case(name, rate, work, functools.partial(build, *first) if first else build, absent)


CASES: tuple[Case, ...] = (
    _case("LN + modulate", "bytes", lambda s: _x(s, 2), _modulate),
    _case("LN + modulate -> fp8", "bytes", lambda s: _x(s, 1.5), _modulate_quantised, FP8),
    _case("LN + modulate -> int8", "bytes", lambda s: _x(s, 1.5), _modulate_quantised, torch.int8),
    _case("gate + residual + LN + modulate", "bytes", lambda s: _x(s, 4), _residual),
    _case("residual + affine LN", "bytes", lambda s: _x(s, 4), _residual_affine),
    _case("gate + residual + LN + modulate -> fp8", "bytes", lambda s: _x(s, 3.5), _residual_quantised, FP8),
    _case("gate + residual + LN + modulate -> int8", "bytes", lambda s: _x(s, 3.5), _residual_quantised, torch.int8),
    _case("RMS norm", "bytes", lambda s: _x(s, 2), _rms),
    _case("RMS norm + RoPE of q and k", "bytes", lambda s: _x(s, 4), _qk_norm_rope),
    _case("RMS norm + RoPE of q and k -> int8", "bytes", lambda s: _x(s, 3), _qk_norm_rope_quantised, torch.int8),
    _case("RMS norm + RoPE of q and k -> fp8", "bytes", lambda s: _x(s, 3), _qk_norm_rope_quantised, FP8),
    _case("q and k -> int8", "bytes", lambda s: _x(s, 3), _quantise_qk),
    _case("RoPE at positions", "bytes", lambda s: _x(s, 2), _rope_1d),
    _case("GELU", "bytes", lambda s: 4.0 * s.tokens * FFN, _gelu),
    _case("GELU -> fp8", "bytes", lambda s: 3.0 * s.tokens * FFN, _gelu_quantised, FP8),
    _case("GELU -> int8", "bytes", lambda s: 3.0 * s.tokens * FFN, _gelu_quantised, torch.int8),
    _case("V -> fp8, transposed", "bytes", lambda s: _x(s, 1.5), _quantise_v),
    _case("audio attention, one person", "bytes", lambda s: _x(s, 2), _framewise, 1),
    _case("audio attention, two people", "bytes", lambda s: _x(s, 2), _framewise, 2),
    _case("text + image attention", "bf16", lambda s: 4.0 * s.tokens * (TEXT_KEYS + IMAGE_KEYS) * WIDTH, _text_image),
    _case("two-person map", "bf16", lambda s: 2.0 * s.tokens * s.rows * s.columns * WIDTH, _class_map),
    _case("self-attention, dispatched", "bf16", _self_attention_work, _self_attention, "dispatch"),
    _case("self-attention, Triton with log-sum-exp", "bf16", _self_attention_work, _self_attention, "lse"),
    _case("self-attention, int8 + bf16 values, with quantisation", "int8", _self_attention_work, _self_attention, "int8 + bf16"),
    _case("self-attention, int8 + fp8 values, with quantisation", "fp8", _self_attention_work, _self_attention, "int8 + fp8"),
    _case("self-attention, fp8 + fp8 values, with quantisation", "fp8", _self_attention_work, _self_attention, "fp8 + fp8"),
    _case("half the blocks, bf16", "bf16", lambda s: _self_attention_work(s, 0.5), _sparse, "bf16"),
    _case("half the blocks, int8 + bf16 values", "int8", lambda s: _self_attention_work(s, 0.5), _sparse, "int8 bf16"),
    _case("half the blocks, int8 + fp8 values", "fp8", lambda s: _self_attention_work(s, 0.5), _sparse, "int8 fp8"),
    _case("linear 5120 -> 13824, fp8", "fp8", lambda s: 2.0 * s.tokens * WIDTH * FFN, _linear, FP8, WIDTH, FFN),
    _case("linear 5120 -> 13824, int8", "int8", lambda s: 2.0 * s.tokens * WIDTH * FFN, _linear, torch.int8, WIDTH, FFN),
    _case("linear 13824 -> 5120, int8", "int8", lambda s: 2.0 * s.tokens * WIDTH * FFN, _linear, torch.int8, FFN, WIDTH),
)
