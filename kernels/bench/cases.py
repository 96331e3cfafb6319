"""Every case: the operations at production shape, with their floors and bars. They also feed the gates on compilation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from kernels.bench import attention, fusions
from kernels.bench.case import FFN, FP8, WIDTH, Bar, Built, Case, Rate, Shape
from kernels.bench.linear import linear

# Floors count each operand once, in and out.
_MEMORY_BOUND = Bar(share=0.8, times=((("torch.compile", "torch"), 1.0),))
_QUANTISING = Bar(share=0.8, times=((("torch.compile",), 1.0),), cosine=0.998, relative_l1=0.07)
_SIXTEEN_BIT = ("sdpa", "sdpa flash", "sdpa cudnn", "fa3")
_DENSE = Bar(times=((_SIXTEEN_BIT, 0.98),))
_INT8_BF16 = Bar(times=((_SIXTEEN_BIT, 1.2), (("sageattention",), 1.15)), cosine=0.999, relative_l1=0.03)
_FP8_VALUES = Bar(times=((_SIXTEEN_BIT, 1.2), (("sageattention",), 1.15)), cosine=0.998, relative_l1=0.07)
_HALF = Bar(times=((("dense kernel",), 1.6),))
_LINEAR = Bar(cosine=0.998, relative_l1=0.07)


def _x(shape: Shape, copies: float) -> float:
    """Bytes of so many activations in bf16."""
    return copies * shape.tokens * WIDTH * 2


def _attention_work(shape: Shape, share: float = 1.0) -> float:
    return 4.0 * shape.tokens**2 * WIDTH * share


def _linear_work(shape: Shape) -> float:
    return 2.0 * shape.tokens * WIDTH * FFN


def _case(name: str, rate: Rate, work: Callable[[Shape], float], bar: Bar, build: Callable[..., Built], *first: object) -> Case:
    makes_fp8 = FP8 in first or any(isinstance(word, str) and "fp8" in word for word in first) or build is fusions.quantise_v
    built = functools.partial(build, *first) if first else build
    return Case(name, rate, work, built, bar, ("sm_80",) if makes_fp8 else ())


_KEYS = attention.TEXT_KEYS + attention.IMAGE_KEYS

CASES: tuple[Case, ...] = (
    _case("LN + modulate", "bytes", lambda s: _x(s, 2), _MEMORY_BOUND, fusions.modulate),
    _case("LN + modulate -> fp8", "bytes", lambda s: _x(s, 1.5), _QUANTISING, fusions.modulate_quantised, FP8),
    _case("LN + modulate -> int8", "bytes", lambda s: _x(s, 1.5), _QUANTISING, fusions.modulate_quantised, torch.int8),
    _case("gate + residual + LN + modulate", "bytes", lambda s: _x(s, 4), _MEMORY_BOUND, fusions.residual),
    _case("residual + affine LN", "bytes", lambda s: _x(s, 4), _MEMORY_BOUND, fusions.residual_affine),
    _case("gate + residual + LN + modulate -> fp8", "bytes", lambda s: _x(s, 3.5), _QUANTISING, fusions.residual_quantised, FP8),
    _case(
        "gate + residual + LN + modulate -> int8",
        "bytes",
        lambda s: _x(s, 3.5),
        _QUANTISING,
        fusions.residual_quantised,
        torch.int8,
    ),
    _case("RMS norm", "bytes", lambda s: _x(s, 2), _MEMORY_BOUND, fusions.rms),
    _case("RMS norm + RoPE of q and k", "bytes", lambda s: _x(s, 4), _MEMORY_BOUND, fusions.qk_norm_rope),
    _case(
        "RMS norm + RoPE of q and k -> int8",
        "bytes",
        lambda s: _x(s, 3),
        _QUANTISING,
        fusions.qk_norm_rope_quantised,
        torch.int8,
    ),
    _case("RMS norm + RoPE of q and k -> fp8", "bytes", lambda s: _x(s, 3), _QUANTISING, fusions.qk_norm_rope_quantised, FP8),
    _case("q and k -> int8", "bytes", lambda s: _x(s, 3), _QUANTISING, fusions.quantise_qk),
    _case("V -> fp8, transposed", "bytes", lambda s: _x(s, 1.5), _QUANTISING, fusions.quantise_v),
    _case("RoPE at positions", "bytes", lambda s: _x(s, 2), _MEMORY_BOUND, fusions.rope_1d),
    _case("GELU", "bytes", lambda s: 4.0 * s.tokens * FFN, _MEMORY_BOUND, fusions.gelu),
    _case("GELU -> fp8", "bytes", lambda s: 3.0 * s.tokens * FFN, _QUANTISING, fusions.gelu_quantised, FP8),
    _case("GELU -> int8", "bytes", lambda s: 3.0 * s.tokens * FFN, _QUANTISING, fusions.gelu_quantised, torch.int8),
    _case("audio attention, one person", "bytes", lambda s: _x(s, 2), _MEMORY_BOUND, attention.framewise, 1),
    _case("audio attention, two people", "bytes", lambda s: _x(s, 2), _MEMORY_BOUND, attention.framewise, 2),
    _case(
        "text + image attention",
        "bf16",
        lambda s: 4.0 * s.tokens * _KEYS * WIDTH,
        Bar(times=((("2 x sdpa + add", "2 x sdpa cudnn + add"), 1.3),)),
        attention.text_image,
    ),
    _case("two-person map", "bf16", lambda s: 2.0 * s.tokens * s.rows * s.columns * WIDTH, Bar(), attention.class_map),
    _case("self-attention, dispatched", "bf16", _attention_work, _DENSE, attention.self_attention, "dispatch"),
    _case("self-attention, Triton with log-sum-exp", "bf16", _attention_work, Bar(), attention.self_attention, "lse"),
    _case(
        "self-attention, int8 + bf16 values, with quantisation",
        "int8",
        _attention_work,
        _INT8_BF16,
        attention.self_attention,
        "int8 + bf16",
    ),
    _case(
        "self-attention, int8 + fp8 values, with quantisation",
        "fp8",
        _attention_work,
        _FP8_VALUES,
        attention.self_attention,
        "int8 + fp8",
    ),
    _case(
        "self-attention, fp8 + fp8 values, with quantisation",
        "fp8",
        _attention_work,
        _FP8_VALUES,
        attention.self_attention,
        "fp8 + fp8",
    ),
    _case("half the blocks, bf16", "bf16", lambda s: _attention_work(s, 0.5), _HALF, attention.sparse, "bf16"),
    _case("half the blocks, int8 + bf16 values", "int8", lambda s: _attention_work(s, 0.5), _HALF, attention.sparse, "int8 bf16"),
    _case("half the blocks, int8 + fp8 values", "fp8", lambda s: _attention_work(s, 0.5), _HALF, attention.sparse, "int8 fp8"),
    _case("means of blocks", "bytes", lambda s: _x(s, 1), _MEMORY_BOUND, fusions.block_means),
    _case("choosing half of the blocks", "bytes", lambda s: _x(s, 2), Bar(), attention.selection),
    _case("linear 5120 -> 13824, fp8", "fp8", _linear_work, _LINEAR, linear, FP8, WIDTH, FFN),
    _case("linear 5120 -> 13824, int8", "int8", _linear_work, _LINEAR, linear, torch.int8, WIDTH, FFN),
    _case("linear 13824 -> 5120, int8", "int8", _linear_work, _LINEAR, linear, torch.int8, FFN, WIDTH),
)
