"""Self-attention in 16 bits, exact: softmax(q k^T * scale) v, and its log-sum-exp for merging.

Served by cuDNN, FlashAttention-2 (``fa2``, torch's own) or the Triton kernel of ``_flash``, in the order that published figures
give for each architecture at head_dim 128 and long sequences, not causal: on sm_90 cuDNN bf16 595-631 TFLOP/s against 480-560
for Triton; on sm_80 and sm_89 FlashAttention-2, cuDNN being slower there. Torch itself prefers cuDNN on the same devices. The
bench compares them on a device at hand, and ``INFINITETALK_KERNELS=attention=...`` chooses another. FlashAttention-3 (``fa3``,
arXiv:2407.08608) serves where its package is installed and it is asked for: published figures put it level with cuDNN, and none
was measured here.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import reference
from kernels._flash import FlashInputs, empty_lse, start_flash
from kernels._operation import operation, room
from kernels._softmax import head_dim_obstacle, rows_obstacle
from kernels._triton import INTERPRETED
from kernels.dispatch import Option, choose, runs_plain, triton_obstacle

SIXTEEN_BIT = (torch.bfloat16, torch.float16)

_CUDNN_DEVICES = ((9, 0), (10, 0))
# cuDNN before 9.15.1 reads past the end of lengths that are no multiple of 128 (pytorch/pytorch#169849).
_CUDNN_ODD_LENGTHS, _CUDNN_TILE = 91_501, 128
_WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

_log = logging.getLogger(__name__)
_cudnn_failures: dict[torch.device, str] = {}
"""Devices whose cuDNN took an attention on and then failed, with what it said."""


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None = None) -> Tensor:
    """q [Lq, H*D], k and v [Lk, H*D] -> [Lq, H*D] in q's dtype; scale is 1/sqrt(D) unless given, and positive."""
    if runs_plain(q):
        return reference.attention(q, k, v, num_heads, scale)
    return _attention_op(q, k, v, num_heads, scale)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """``attention`` and the natural log-sum-exp of every query's scaled scores [H, Lq] fp32, for ``merge_attention``."""
    if runs_plain(q):
        return reference.attention_with_lse(q, k, v, num_heads, scale)
    return _attention_lse_op(q, k, v, num_heads, scale)


def merge_attention(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """One attention from (output [L, H*D], log-sum-exp [H, L]) over disjoint parts of the keys, in plain torch -> [L, H*D]."""
    return reference.merge_attention(parts)


def sixteen_bit_obstacle(setting: str, num_heads: int, q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the Triton kernel cannot serve 16-bit attention of these tensors, or None."""
    obstacle = triton_obstacle(setting, q, SIXTEEN_BIT) or head_dim_obstacle(q.shape[-1], num_heads) or rows_obstacle(q, k, v)
    if obstacle is None and not q.dtype == k.dtype == v.dtype:
        return "q, k and v differ in dtype"
    return obstacle


def _fa2(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None) -> Tensor:
    with sdpa_kernel(_WITHOUT_CUDNN, set_priority=True):
        return _sdpa(q, k, v, num_heads, scale)


def cudnn_or_fa2(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None) -> Tensor:
    """``attention`` by cuDNN, and from its first failure on by FlashAttention-2.

    What cuDNN turns down beforehand goes to the next back end by torch's own rules. It may also find no plan, or miss one of its
    libraries, only when it is run.
    """
    try:
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *_WITHOUT_CUDNN], set_priority=True):
            return _sdpa(q, k, v, num_heads, scale)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        said = next(iter(str(error).splitlines()), "no reason given")
        _cudnn_failures[q.device] = said
        _log.warning("cuDNN's attention failed on %s, FlashAttention-2 serves from here on: %s", q.device, said)
    return _fa2(q, k, v, num_heads, scale)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None) -> Tensor:
    heads = [x.reshape(1, x.shape[0], num_heads, -1).transpose(1, 2) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], scale=scale)
    return out.transpose(1, 2).reshape(q.shape)


@operation("attention", fake=lambda q, *_: room(q))
def _attention_op(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None) -> Tensor:
    triton = Option("triton", "the kernel of this library", sixteen_bit_obstacle("flash_16bit", num_heads, q, k, v))
    fa2 = Option("fa2", "FlashAttention-2, torch's own", None if q.device.type == "cuda" else "no GPU")
    cudnn = Option("cudnn", "the fastest published 16-bit kernel for long sequences", cudnn_obstacle(q, k, num_heads))
    plain = Option("reference", "plain torch serves everything")
    fa3 = Option("fa3", "FlashAttention-3, asked for", _fa3_obstacle(q, num_heads))
    chosen = choose("attention", (cudnn, fa2, triton, plain, fa3) if not INTERPRETED else (triton, plain, fa3))
    if chosen == "fa3":
        return flash_attention_3(q, k, v, num_heads, scale)
    if chosen == "cudnn":
        return cudnn_or_fa2(q, k, v, num_heads, scale)
    if chosen == "fa2":
        return _fa2(q, k, v, num_heads, scale)
    if chosen == "reference":
        return reference.attention(q, k, v, num_heads, scale)
    return start_flash("flash_16bit", FlashInputs(q, k, v), num_heads, scale, q.dtype)[0]


def cudnn_obstacle(q: Tensor, k: Tensor, num_heads: int) -> str | None:
    """Why cuDNN does not serve these tensors, or None."""
    if q.device in _cudnn_failures:
        return f"cuDNN failed before: {_cudnn_failures[q.device]}"
    if q.device.type != "cuda" or not torch.backends.cudnn.is_available():
        return "cuDNN is not available"
    if q.dtype not in SIXTEEN_BIT:
        return f"cuDNN's attention takes 16 bits, not {q.dtype}"
    if torch.cuda.get_device_capability(q.device) not in _CUDNN_DEVICES:
        return "cuDNN's attention is ahead on devices of 9.0 and 10.0 only"
    version = torch.backends.cudnn.version() or 0
    if version < _CUDNN_ODD_LENGTHS and (q.shape[0] % _CUDNN_TILE or k.shape[0] % _CUDNN_TILE):
        return f"cuDNN {version} is not safe for lengths that are no multiple of {_CUDNN_TILE}; 9.15.1 is"
    head_dim = q.shape[-1] // num_heads
    return None if head_dim % 8 == 0 and head_dim <= 128 else f"head_dim {head_dim} is not a multiple of 8 up to 128"


def flash_attention_3(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None) -> Tensor:
    """``attention`` by the package ``flash_attn_interface``, on Hopper."""
    heads = [x.reshape(1, x.shape[0], num_heads, -1) for x in (q, k, v)]
    answer = import_module("flash_attn_interface").flash_attn_func(*heads, softmax_scale=scale)
    out: Tensor = answer[0] if isinstance(answer, tuple) else answer  # earlier releases give the log-sum-exp, too
    return out.reshape(q.shape)


@functools.cache
def _has_flash_attention_3() -> bool:
    return find_spec("flash_attn_interface") is not None


def _fa3_obstacle(q: Tensor, num_heads: int) -> str | None:
    if not _has_flash_attention_3():
        return "FlashAttention-3 (the package flash_attn_interface) is not installed"
    if q.device.type != "cuda" or torch.cuda.get_device_capability(q.device) != (9, 0):
        return "FlashAttention-3 is for Hopper"
    if q.dtype not in SIXTEEN_BIT:
        return f"FlashAttention-3 takes 16 bits here, not {q.dtype}"
    return None if q.shape[-1] // num_heads in (64, 128) else f"head_dim {q.shape[-1] // num_heads} is neither 64 nor 128"


@operation("attention_with_lse", fake=lambda q, _k, _v, num_heads, _s: (room(q), empty_lse(q, num_heads)))
def _attention_lse_op(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float | None) -> tuple[Tensor, Tensor]:
    triton = Option("triton", "the kernel of this library", sixteen_bit_obstacle("flash_16bit", num_heads, q, k, v))
    if choose("attention_with_lse", (triton, Option("reference", "plain torch serves everything"))) == "reference":
        out, lse = reference.attention_with_lse(q, k, v, num_heads, scale)
        return out, lse.float()
    return start_flash("flash_16bit", FlashInputs(q, k, v), num_heads, scale, q.dtype)
