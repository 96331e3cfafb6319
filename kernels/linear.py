"""Linear layers in 8 bits: y = (x8 @ w8^T) * x_scale[row] * w_scale[column] + bias, and which layers take part.

The input comes quantised from the operation before it (``layer_norm_quantised``, ``residual_gate_norm_quantised``,
``gelu_tanh_quantised``, ``quantise_rows``), so no bf16 copy of it is written. fp8 runs on torch's row-wise ``_scaled_mm``
(sm_89 and newer); int8, for sm_80, on the kernel here, which scales and adds the bias in registers before the only write.
Floor: 2 * L * K * N operations over the tensor cores' 8-bit rate.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation
from kernels._triton import jit, launch, tl
from kernels.dispatch import Option, architecture, choose, runs_plain, triton_obstacle
from kernels.settings import launch_settings


class EightBitWeight(NamedTuple):
    """A Linear's weight [N, K] in int8 or fp8 e4m3 with one fp32 scale for each output channel [N, 1]."""

    values: Tensor
    scale: Tensor


Precision = Literal["bf16", "eight_bit"]

# Which of the transformer's Linear layers run in 8 bits, by their names in the checkpoint; the first pattern that fits decides.
LAYER_PRECISION: tuple[tuple[str, Precision, str], ...] = (
    (r"^(patch|text)_embedding|^img_emb", "bf16", "run once a job or on few channels: nothing to gain"),
    (r"^time_(embedding|projection)", "bf16", "one row, and every modulation in the network rests on it"),
    (r"^audio_proj", "bf16", "once a chunk, and the lips rest on it"),
    (r"^head", "bf16", "64 outputs, and its error goes straight into the latent"),
    (r"cross_attn\.(k|v|k_img|v_img)$|audio_cross_attn\.kv_linear$", "bf16", "cached for a job or a chunk: nothing to gain"),
    (r"^blocks\.\d+\.self_attn\.[qkvo]$", "eight_bit", "15% of the arithmetic at 480p; inputs are layer-normed"),
    (r"^blocks\.\d+\.cross_attn\.[qo]$", "eight_bit", "7% of the arithmetic at 480p"),
    (r"^blocks\.\d+\.audio_cross_attn\.(q_linear|proj)$", "eight_bit", "7% of the arithmetic at 480p"),
    (r"^blocks\.\d+\.ffn\.[02]$", "eight_bit", "20% of the arithmetic at 480p; GELU's long tail is met by a scale for each row"),
)


def layer_precision(name: str) -> Precision:
    """The precision of a Linear layer by its checkpoint name without ``.weight``; bf16 for names that no pattern knows."""
    return next((precision for pattern, precision, _ in LAYER_PRECISION if re.search(pattern, name)), "bf16")


def quantise_weight(weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> EightBitWeight:
    """A Linear's weight [N, K] to int8 or fp8, once, in plain torch."""
    return EightBitWeight(*reference.quantise_rows(weight, dtype))


def linear_eight_bit(
    x: tuple[Tensor, Tensor], weight: EightBitWeight, bias: Tensor | None, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """x = (values [L, K], row scales [L, 1]) of the weight's 8-bit type, bias [N] or None -> [L, N] in out_dtype."""
    values, scale = x
    if values.dtype != weight.values.dtype:
        raise ValueError(f"input is {values.dtype} and weight {weight.values.dtype}: quantise both to one type")
    if runs_plain(values):
        return _plain_linear(values, scale, weight.values, weight.scale, bias, out_dtype)
    return _linear_op(values, scale, weight.values, weight.scale, bias, out_dtype)


@jit
@no_type_check
def _int8_linear_kernel(
    x,
    x_scale,
    weight,
    weight_scale,
    bias,
    out,
    rows,
    columns,
    inner,
    x_stride,
    weight_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    # Programs go down GROUP row tiles before the next column tile, so that a band of the weight stays in L2.
    program = tl.program_id(0)
    row_tiles = tl.cdiv(rows, BLOCK_M)
    band = GROUP * tl.cdiv(columns, BLOCK_N)
    first = program // band * GROUP
    height = min(row_tiles - first, GROUP)
    row = (first + program % band % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = program % band // height * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows past the end wrap round to real ones: loads need no mask, and what they give is not written.
    x_pointers = x + (row % rows).to(tl.int64)[:, None] * x_stride + k[None, :]
    weight_pointers = weight + (column % columns).to(tl.int64)[:, None] * weight_stride + k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.int32)
    for start in range(0, inner, BLOCK_K):
        if WHOLE_K:
            x_tile = tl.load(x_pointers + start)
            weight_tile = tl.load(weight_pointers + start)
        else:
            x_tile = tl.load(x_pointers + start, mask=(k < inner - start)[None, :], other=0)
            weight_tile = tl.load(weight_pointers + start, mask=(k < inner - start)[None, :], other=0)
        acc = tl.dot(x_tile, tl.trans(weight_tile), acc, out_dtype=tl.int32)
    result = acc.to(tl.float32) * tl.load(x_scale + row % rows)[:, None] * tl.load(weight_scale + column % columns)[None, :]
    if bias is not None:
        result += tl.load(bias + column % columns).to(tl.float32)[None, :]
    pointers = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(pointers, result.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


def _plain_linear(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    result = (values.float() @ weight.float().t()) * scale * weight_scale.t()
    return (result if bias is None else result + bias.float()).to(out_dtype)


@operation(
    "linear_eight_bit",
    fake=lambda x, _s, w, _ws, _b, out_dtype: torch.empty((x.shape[0], w.shape[0]), dtype=out_dtype, device=x.device),
)
def _linear_op(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    options = (
        Option("scaled_mm", "torch's row-wise fp8 product", _scaled_mm_obstacle(values, weight, out_dtype)),
        Option("triton", "int8 with scales and bias in registers", triton_obstacle("int8_linear", values, (torch.int8,))),
        Option("reference", "plain torch serves everything"),
    )
    chosen = choose("linear_eight_bit", options)
    if chosen == "reference":
        return _plain_linear(values, scale, weight, weight_scale, bias, out_dtype)
    if chosen == "scaled_mm":
        product: Tensor = torch._scaled_mm(
            values.contiguous(),
            weight.contiguous().t(),
            scale_a=scale,
            scale_b=weight_scale.t(),
            bias=None if bias is None else bias.to(out_dtype),
            out_dtype=out_dtype,
            use_fast_accum=True,  # what its sums lose is a hundredth of what rounding to fp8 does
        )
        return product
    arch = architecture(values)
    assert arch is not None
    settings = launch_settings("int8_linear", arch)
    values, weight = values.contiguous(), weight.contiguous()
    rows, inner = values.shape
    columns = weight.shape[0]
    out = torch.empty((rows, columns), dtype=out_dtype, device=values.device)
    launch(
        _int8_linear_kernel,
        (-(-rows // settings.block_m) * -(-columns // settings.block_n),),
        values,
        scale,
        weight,
        weight_scale,
        bias,
        out,
        rows,
        columns,
        inner,
        values.stride(0),
        weight.stride(0),
        BLOCK_M=settings.block_m,
        BLOCK_N=settings.block_n,
        BLOCK_K=settings.block_k,
        WHOLE_K=inner % settings.block_k == 0,
        GROUP=8,
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return out


def _scaled_mm_obstacle(values: Tensor, weight: Tensor, out_dtype: torch.dtype) -> str | None:
    if values.dtype != torch.float8_e4m3fn:
        return "it takes fp8, not int8"
    if values.device.type != "cuda" or torch.cuda.get_device_capability(values.device) < (8, 9):
        return "fp8 products need a GPU of compute capability 8.9 or newer"
    if weight.shape[0] % 16 or weight.shape[1] % 16 or out_dtype != torch.bfloat16:
        return "its row-wise form takes multiples of 16 and writes bf16"
    return None
