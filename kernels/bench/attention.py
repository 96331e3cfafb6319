"""Cases of attention: over text, picture and speech, over classes of keys, and of the video to itself."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from kernels import reference
from kernels.bench.case import FP8, HEAD_DIM, HEADS, SAMPLE, WIDTH, Built, Call, Shape, activations, compiled, first_rows, noise
from kernels.quantise_qk import EightBitQK
from kernels.quantise_v import EightBitV
from kernels.reference import K_BLOCK, K_GROUP, Q_BLOCK
from kernels.self_attention import flash_attention_3
from kernels.self_attention_sparse import BlockList

TEXT_KEYS, IMAGE_KEYS, AUDIO_KEYS = 512, 257, 32


def _heads(x: Tensor) -> Tensor:
    """[L, H*D] -> [1, H, L, D] without a copy, as torch's attention takes it."""
    return x.view(1, x.shape[0], HEADS, HEAD_DIM).transpose(1, 2)


def _tokens(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[2], WIDTH)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _tokens(F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v)))


def _by(backend: SDPBackend, call: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(backend):
        return call()


def text_image(shape: Shape, device: str) -> Built:
    """Text and picture: two softmaxes, one launch."""
    (q,) = activations(1, shape, device)
    text = [noise(TEXT_KEYS, WIDTH, device=device) for _ in range(2)]
    image = [noise(IMAGE_KEYS, WIDTH, device=device) for _ in range(2)]

    def twice() -> Tensor:
        return _sdpa(q, text[0], text[1]) + _sdpa(q, image[0], image[1])

    return Built(
        lambda: kernels.text_image_attention(q, text[0], text[1], image[0], image[1], HEADS),
        {"2 x sdpa + add": twice, "2 x sdpa cudnn + add": lambda: _by(SDPBackend.CUDNN_ATTENTION, twice)},
        first_rows,
        lambda: reference.text_image_attention(q[:SAMPLE].float(), text[0], text[1], image[0], image[1], HEADS),
    )


def framewise(people: int, shape: Shape, device: str) -> Built:
    """Speech: every frame sees its own keys."""
    (q,) = activations(1, shape, device)
    k, v = (noise(shape.frames, people * AUDIO_KEYS, WIDTH, device=device) for _ in range(2))

    def sdpa() -> Tensor:
        heads = [x.view(shape.frames, -1, HEADS, HEAD_DIM).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(heads[0], heads[1], heads[2]).transpose(1, 2).reshape(q.shape)

    return Built(
        lambda: kernels.framewise_attention(q, k, v, HEADS),
        {"sdpa": sdpa, "torch.compile": lambda: compiled(reference.framewise_attention)(q, k, v, HEADS)},
        first_rows,
        lambda: reference.attention(q[:SAMPLE].float(), k[0], v[0], HEADS),
    )


def class_map(shape: Shape, device: str) -> Built:
    """The two-person map: attention over classes of keys."""
    (q,) = activations(1, shape, device)
    k = q[: shape.rows * shape.columns]
    masks = (noise(3, k.shape[0], device=device) > 0).to(torch.float32)
    return Built(
        lambda: kernels.class_attention_map(q, k, masks, HEADS),
        {},
        lambda out: out[:, :SAMPLE],
        lambda: reference.class_attention_map(q[:SAMPLE].float(), k, masks, HEADS),
    )


def self_attention(kind: str, shape: Shape, device: str) -> Built:
    """All tokens to all tokens; in 8 bits with quantising them."""
    q, k, v = activations(3, shape, device)
    truth = lambda: reference.attention(q[:SAMPLE].float(), k, v, HEADS)  # noqa: E731
    return Built(_self_attention_call(kind, q, k, v), _attention_peers(q, k, v), first_rows, truth)


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
    def flex() -> Tensor:
        attend = compiled(import_module("torch.nn.attention.flex_attention").flex_attention)
        return _tokens(attend(_heads(q), _heads(k), _heads(v)))

    peers: dict[str, Call] = {
        "sdpa": lambda: _sdpa(q, k, v),
        "sdpa flash": lambda: _by(SDPBackend.FLASH_ATTENTION, lambda: _sdpa(q, k, v)),
        "sdpa cudnn": lambda: _by(SDPBackend.CUDNN_ATTENTION, lambda: _sdpa(q, k, v)),
        "flex": flex,
    }
    if find_spec("flash_attn_interface"):
        peers["fa3"] = lambda: flash_attention_3(q, k, v, HEADS, None)
    if find_spec("sageattention"):
        own = k.clone()  # it takes the mean from its keys in place
        peers["sageattention"] = lambda: _tokens(import_module("sageattention").sageattn(_heads(q), _heads(own), _heads(v)))
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


def sparse(kind: str, shape: Shape, device: str) -> Built:
    """Half of the blocks, beside the same kernel over all of them."""
    blocks = _half_of_the_blocks(shape, device)
    if kind == "bf16":
        q, k, v = activations(3, shape, device)
        seen = blocks.listed[:, : SAMPLE // Q_BLOCK], blocks.counts[:, : SAMPLE // Q_BLOCK]
        return Built(
            lambda: kernels.block_sparse_attention(q, k, v, HEADS, blocks),
            {"dense kernel": lambda: kernels.attention_with_lse(q, k, v, HEADS)},
            first_rows,
            lambda: reference.block_sparse_attention(q[:SAMPLE].float(), k, v, HEADS, *seen),
            alike=False,
        )
    qk, values = _prepared_eight_bit(shape, device, kind.removeprefix("int8 "))
    return Built(
        lambda: kernels.eight_bit_attention(qk, values, HEADS, blocks=blocks),
        {"dense kernel": lambda: kernels.eight_bit_attention(qk, values, HEADS)},
        alike=False,
    )


def selection(shape: Shape, device: str) -> Built:
    """Choosing half of the blocks; random data resembles itself nowhere, so that guard is off."""
    q, k = activations(2, shape, device)
    near = (shape.columns, shape.rows * shape.columns)
    return Built(lambda: kernels.select_blocks(q, k, HEADS, 0.5, near=near, least_similarity=-1))
