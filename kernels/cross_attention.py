"""Cross-attention over short lists of keys: text and image together, and audio frame by frame.

    text_image[l]    = softmax(q[l] k_text^T / sqrt(D)) v_text + softmax(q[l] k_image^T / sqrt(D)) v_image
    framewise[t, s]  = softmax(q[t, s] k[t]^T / sqrt(D)) v[t]

One program holds a tile of queries of one head and walks all its keys; the two softmaxes of text and image share the query
tile and are added in registers, so nothing between them touches memory. Products in 16 bits, sums and softmax in fp32.
Floors: framewise reads q and writes the output, 2X bytes over the memory's bandwidth (the keys, 32 a frame, come from L2);
text_image is bound by arithmetic, 4 * L * (512 + 257) * H * D operations over the tensor cores' rate.
"""

from __future__ import annotations

from typing import no_type_check

import torch
from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._softmax import LOG2_E, attend_all, head_dim_obstacle, load_tile, rows_obstacle, store_tile, tail_block
from kernels._triton import jit, launch, tl
from kernels.dispatch import Option, architecture, choose, runs_plain, triton_obstacle
from kernels.settings import launch_settings

_DTYPES = (torch.bfloat16, torch.float16)


def text_image_attention(q: Tensor, k_text: Tensor, v_text: Tensor, k_image: Tensor, v_image: Tensor, num_heads: int) -> Tensor:
    """attention(q, k_text, v_text) + attention(q, k_image, v_image): q [L, H*D], keys [K, H*D] -> [L, H*D] in q's dtype."""
    if runs_plain(q):
        return reference.text_image_attention(q, k_text, v_text, k_image, v_image, num_heads)
    return _text_image_op(q, k_text, v_text, k_image, v_image, num_heads)


def framewise_attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Each frame's queries over its own keys: q [T*S, H*D], k and v [T, K, H*D] -> [T*S, H*D] in q's dtype."""
    if q.shape[0] % k.shape[0]:
        raise ValueError(f"{q.shape[0]} queries do not split into {k.shape[0]} frames")
    return reference.framewise_attention(q, k, v, num_heads) if runs_plain(q) else _framewise_op(q, k, v, num_heads)


@jit
@no_type_check
def _text_image_kernel(
    q,
    k_text,
    v_text,
    k_image,
    v_image,
    out,
    length,
    text_keys,
    image_keys,
    q_stride,
    k_text_stride,
    v_text_stride,
    k_image_stride,
    v_image_stride,
    out_stride,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TEXT_TAIL: tl.constexpr,
    IMAGE_TAIL: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M
    channel = tl.program_id(1) * HEAD_DIM
    query = load_tile(q + channel, row, length, q_stride, HEAD_DIM, BLOCK_M, True)
    # The picture comes first, since its 257 keys leave a rest: behind a loop that would keep the matrix instructions of the
    # whole kernel from overlapping on Hopper (ptxas C7515).
    image = attend_all(
        query,
        k_image + channel,
        v_image + channel,
        k_image_stride,
        v_image_stride,
        image_keys,
        factor,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_N,
        IMAGE_TAIL,
    )
    text = attend_all(
        query,
        k_text + channel,
        v_text + channel,
        k_text_stride,
        v_text_stride,
        text_keys,
        factor,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_N,
        TEXT_TAIL,
    )
    store_tile(out + channel, text + image, row, length, out_stride, HEAD_DIM, BLOCK_M)


@jit
@no_type_check
def _framewise_kernel(
    q,
    k,
    v,
    out,
    frame_queries,
    frame_keys,
    q_stride,
    k_stride,
    v_stride,
    k_frame_stride,
    v_frame_stride,
    out_stride,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL_N: tl.constexpr,
):
    # Heads are the fastest axis: programs that run together read and write whole rows of q and of the output.
    channel = tl.program_id(0) * HEAD_DIM
    row = tl.program_id(1) * BLOCK_M
    frame = tl.program_id(2).to(tl.int64)
    query = load_tile(q + channel + frame * frame_queries * q_stride, row, frame_queries, q_stride, HEAD_DIM, BLOCK_M, True)
    mixed = attend_all(
        query,
        k + channel + frame * k_frame_stride,
        v + channel + frame * v_frame_stride,
        k_stride,
        v_stride,
        frame_keys,
        factor,
        HEAD_DIM,
        BLOCK_M,
        BLOCK_N,
        TAIL_N,
    )
    store_tile(out + channel + frame * frame_queries * out_stride, mixed, row, frame_queries, out_stride, HEAD_DIM, BLOCK_M)


def _uses_triton(name: str, num_heads: int, q: Tensor, *others: Tensor) -> bool:
    obstacle = triton_obstacle(name, q, _DTYPES) or head_dim_obstacle(q.shape[-1], num_heads) or rows_obstacle(q, *others)
    if any(x.dtype != q.dtype for x in others):
        obstacle = obstacle or "keys and values are not of the queries' dtype"
    triton = Option("triton", "one launch, nothing between the steps touches memory", obstacle)
    return choose(name, (triton, Option("reference", "plain torch serves everything"))) == "triton"


@operation("text_image_attention", fake=lambda q, *_: room(q))
def _text_image_op(q: Tensor, k_text: Tensor, v_text: Tensor, k_image: Tensor, v_image: Tensor, num_heads: int) -> Tensor:
    if not _uses_triton("text_image_attention", num_heads, q, k_text, v_text, k_image, v_image):
        return reference.text_image_attention(q, k_text, v_text, k_image, v_image, num_heads)
    arch = architecture(q)
    assert arch is not None
    settings = launch_settings("text_image_attention", arch)
    out = room(q)
    head_dim = q.shape[1] // num_heads
    launch(
        _text_image_kernel,
        (-(-q.shape[0] // settings.block_m), num_heads),
        q,
        k_text,
        v_text,
        k_image,
        v_image,
        out,
        q.shape[0],
        k_text.shape[0],
        k_image.shape[0],
        *(x.stride(0) for x in (q, k_text, v_text, k_image, v_image, out)),
        head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim,
        BLOCK_M=settings.block_m,
        BLOCK_N=settings.block_n,
        TEXT_TAIL=tail_block(k_text.shape[0], settings.block_n),
        IMAGE_TAIL=tail_block(k_image.shape[0], settings.block_n),
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return out


@operation("framewise_attention", fake=lambda q, *_: room(q))
def _framewise_op(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    if not _uses_triton("framewise_attention", num_heads, q, k, v):
        return reference.framewise_attention(q, k, v, num_heads)
    arch = architecture(q)
    assert arch is not None
    settings = launch_settings("framewise_attention", arch)
    frames, frame_keys = k.shape[:2]
    frame_queries = q.shape[0] // frames
    # A frame's 32 or 64 keys are one block; longer lists take blocks of the settings' size.
    block_n = min(settings.block_n, max(16, 1 << (frame_keys.bit_length() - 1)))
    out = room(q)
    head_dim = q.shape[1] // num_heads
    launch(
        _framewise_kernel,
        (num_heads, -(-frame_queries // settings.block_m), frames),
        q,
        k,
        v,
        out,
        frame_queries,
        frame_keys,
        q.stride(0),
        k.stride(1),
        v.stride(1),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim,
        BLOCK_M=settings.block_m,
        BLOCK_N=block_n,
        TAIL_N=tail_block(frame_keys, block_n),
        num_warps=settings.num_warps,
        num_stages=settings.num_stages,
    )
    return out
