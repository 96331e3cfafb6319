"""v in 8 bits for ``self_attention_eight_bit``: fp8, transposed, every group of keys with an exponent of its own.

    v - centre ~ v8 * 2^exponent[head, group of K_GROUP keys]        v8 [channels, keys], keys in ``reference.V_ORDER``

fp8 tensor cores read both operands along the keys, hence the transpose. The softmax's weights sum to one, so what is taken from
all values alike comes back whole: any centre near the mean will do (arXiv:2411.10958 takes the mean), and that of a few hundred
tokens is near. An exponent for each group is added to the group's scores where SageAttention has a scale for each channel: fp8
carries its own exponent, so a channel needs none, and a group's is known as soon as the group is read. Bytes, with X = one
[tokens, channels] bf16 tensor: 1.5X; floor: that over the memory's bandwidth.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation
from kernels._rows import contiguous_channels, require_rows
from kernels._sample import start_sample
from kernels._softmax import head_dim_obstacle, tile_pointers
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.quantise import eight_bit_obstacle
from kernels.reference import K_GROUP
from kernels.settings import launch_settings


class EightBitV(NamedTuple):
    """fp8 values [H*D, Lk padded to K_GROUP] in ``V_ORDER``, exponent [H, ceil(Lk / K_GROUP)] and centre [H*D] fp32."""

    values: Tensor
    exponent: Tensor
    centre: Tensor


def quantise_v(v: Tensor, num_heads: int) -> EightBitV:
    """v [L, H*D] to fp8, transposed and centred. ``eight_bit_attention`` needs sm_89 or newer for it."""
    return EightBitV(*(reference.quantise_v(v, num_heads) if runs_plain(v) else _quantise_v_op(v, num_heads)))


def eight_bit_values(v: Tensor, num_heads: int) -> Tensor | EightBitV:
    """v [L, H*D] as ``eight_bit_attention`` is quickest with it where v lives: in fp8, or as it is where there is none."""
    return v if eight_bit_obstacle(v, torch.float8_e4m3fn) else quantise_v(v, num_heads)


@jit
@no_type_check
def _transpose_kernel(v, centre, exponents, values, rows, stride, padded, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    head = tl.program_id(1)
    row = block * BLOCK
    channel = head * HEAD_DIM
    channels = tl.arange(0, HEAD_DIM)
    place = tl.arange(0, BLOCK)
    # The key that belongs to each place, see reference.V_ORDER. Rows are read in that order, so that nothing is moved later.
    key = place // 16 * 16 + place // 2 % 2 * 8 + place // 4 % 4 * 2 + place % 2
    inside = (key < rows - row)[:, None]
    pointers = v + row.to(tl.int64) * stride + channel + (key[:, None] * stride + channels[None, :])
    tile = tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    tile = tl.where(inside, tile - tl.load(centre + channel + channels)[None, :], 0.0)
    exponent = tl.log2(tl.maximum(tl.max(tl.max(tl.abs(tile), 1), 0), 1e-12) / 448.0)
    tl.store(exponents + head * tl.num_programs(0) + block, exponent)
    # The exponent is rounded, so the largest value may come to lie a little above what fp8 holds.
    tile = tl.clamp(tile * tl.exp2(-exponent), -448.0, 448.0).to(values.dtype.element_ty)
    tl.store(tile_pointers(values + row, channel, padded, BLOCK, HEAD_DIM), tl.trans(tile))


def _rooms(v: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = -(-v.shape[0] // K_GROUP)
    values = torch.empty((v.shape[1], groups * K_GROUP), dtype=torch.float8_e4m3fn, device=v.device)
    exponent = torch.empty((num_heads, groups), dtype=torch.float32, device=v.device)
    return values, exponent, torch.empty((v.shape[1],), dtype=torch.float32, device=v.device)


@operation("quantise_v", fake=_rooms)
def _quantise_v_op(v: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    obstacle = eight_bit_obstacle(v, torch.float8_e4m3fn) or head_dim_obstacle(v.shape[1], num_heads)
    if not use_triton("quantise_v", v, setting="quantise_values", obstacle=obstacle):
        return reference.quantise_v(v, num_heads)
    v = contiguous_channels(v)
    require_rows("v", v)
    arch = architecture(v)
    assert arch is not None
    values, exponent, _ = _rooms(v, num_heads)
    centre, _ = start_sample(reference.sample_rows(v), num_heads)
    launch(
        _transpose_kernel,
        (exponent.shape[1], num_heads),
        v,
        centre,
        exponent,
        values,
        v.shape[0],
        v.stride(0),
        values.shape[1],
        HEAD_DIM=v.shape[1] // num_heads,
        BLOCK=K_GROUP,
        num_warps=launch_settings("quantise_values", arch).num_warps,
    )
    return values, exponent, centre
