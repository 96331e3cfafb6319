"""Self-attention in 8 bits: int8 or fp8 scores, and values in 16 bits or fp8 (SageAttention, arXiv:2410.02367, 2411.10958).

    out = softmax(q k^T * scale) (v - centre) + centre        q, k and v as ``quantise_qk`` and ``quantise_v`` give them

Approximate: cosine to the exact result 0.999 with 16-bit values, 0.998 with fp8, on data like the model's. What was taken from
all keys would have moved all scores of a query by one number: softmax does not miss it, and the log-sum-exp gets it back. Bytes
and floor are those of ``_flash``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference
from kernels._flash import FlashInputs, empty_lse, start_flash
from kernels._operation import operation, room
from kernels._rows import contiguous_channels
from kernels._softmax import head_dim_obstacle
from kernels.dispatch import Option, choose, runs_plain, triton_obstacle
from kernels.quantise import eight_bit_obstacle
from kernels.quantise_qk import EightBitQK
from kernels.quantise_v import EightBitV
from kernels.self_attention import SIXTEEN_BIT
from kernels.self_attention_sparse import BlockList

EIGHT_BIT = (torch.int8, torch.float8_e4m3fn)


def eight_bit_attention(
    qk: EightBitQK,
    v: Tensor | EightBitV,
    num_heads: int,
    scale: float | None = None,
    *,
    blocks: BlockList | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Attention -> [Lq, H*D] in out_dtype; v is [Lk, H*D] in 16 bits or ``quantise_v`` of it; blocks restricts the keys seen."""
    return eight_bit_attention_with_lse(qk, v, num_heads, scale, blocks=blocks, out_dtype=out_dtype)[0]


def eight_bit_attention_with_lse(
    qk: EightBitQK,
    v: Tensor | EightBitV,
    num_heads: int,
    scale: float | None = None,
    *,
    blocks: BlockList | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor]:
    """``eight_bit_attention`` and the natural log-sum-exp of every query's scores, of those seen, [H, Lq] fp32."""
    values, exponent, centre = v if isinstance(v, EightBitV) else (v, None, None)
    block_list, block_count = (None, None) if blocks is None else (blocks.listed, blocks.counts)
    serve = _plain_attention if runs_plain(qk.q) else _eight_bit_op
    return serve(*qk, values, exponent, centre, block_list, block_count, num_heads, scale, out_dtype)


def _plain_attention(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    k_centre: Tensor,
    v: Tensor,
    v_exponent: Tensor | None,
    v_centre: Tensor | None,
    block_list: Tensor | None,
    block_count: Tensor | None,
    num_heads: int,
    scale: float | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    wide_q, wide_k = reference.dequantise_qk(q, q_scale, k, k_scale, k_centre)
    if v_exponent is not None and v_centre is not None:
        v = reference.dequantise_v(v, v_exponent, v_centre, k.shape[0])
    if block_list is not None and block_count is not None:
        out, lse = reference.block_sparse_attention_with_lse(wide_q, wide_k, v, num_heads, block_list, block_count, scale)
    else:
        out, lse = reference.attention_with_lse(wide_q, wide_k, v, num_heads, scale)
    return out.to(out_dtype), lse.float()


# The log-sum-exp is 4 bytes for each query and head of 256: too little for an operator without it.
@operation("eight_bit_attention", fake=lambda q, *rest: (room(q, rest[-1]), empty_lse(q, rest[-3])))
def _eight_bit_op(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    k_centre: Tensor,
    v: Tensor,
    v_exponent: Tensor | None,
    v_centre: Tensor | None,
    block_list: Tensor | None,
    block_count: Tensor | None,
    num_heads: int,
    scale: float | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    setting = "flash_8bit_16bit" if v_exponent is None else "flash_8bit_fp8"
    obstacle = (
        triton_obstacle(setting, q, EIGHT_BIT) or eight_bit_obstacle(q, q.dtype) or head_dim_obstacle(q.shape[-1], num_heads)
    )
    if v_exponent is None and v.dtype not in SIXTEEN_BIT:
        obstacle = obstacle or f"values are {v.dtype}, neither 16 bits nor quantise_v's"
    triton = Option("triton", "8-bit tensor cores", obstacle)
    if choose("eight_bit_attention", (triton, Option("reference", "plain torch serves everything"))) == "reference":
        return _plain_attention(
            q, q_scale, k, k_scale, k_centre, v, v_exponent, v_centre, block_list, block_count, num_heads, scale, out_dtype
        )
    inputs = FlashInputs(q, k, contiguous_channels(v), q_scale, k_scale, k_centre, v_exponent, v_centre, block_list, block_count)
    return start_flash(setting, inputs, num_heads, scale, out_dtype)
