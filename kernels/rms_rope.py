"""RMS norm over the full width and interleaved rotary position, together or alone, on one tensor or on q and k in one launch.

    normed = x / sqrt(mean(x^2) + eps) * weight                       over all heads * head_dim channels, before the head split
    (out[2i], out[2i+1]) = rotate((normed[2i], normed[2i+1]), angle)  in every head, cos and sin given per token and pair

One program a row and tensor, the row in registers, fp32 arithmetic; a pair is neighbours in one thread's registers, so the
rotation moves nothing. Bytes: 2X a tensor (4X for q and k) plus 512 bytes of cos and sin a row; the floor is that over the
memory's bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import no_type_check

from torch import Tensor

from kernels import reference
from kernels._operation import operation, room
from kernels._rows import contiguous_channels, cut_row, read_part, require_rows, write_part
from kernels._triton import jit, launch, tl
from kernels.dispatch import architecture, runs_plain, use_triton
from kernels.settings import launch_settings


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight: x [L, D], weight [D] -> [L, D] in x's dtype."""
    return reference.rms_norm(x, weight, eps) if runs_plain(x) else _rms_norm_op(x, weight, eps)


def qk_norm_rope_(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    eps: float = 1e-6,
) -> None:
    """RMS norm of q and k [L, H*D] over the full width, then rotary by cos, sin [L, D/2] in every head, both in place."""
    serve = _plain_qk_norm_rope if runs_plain(q) else _qk_norm_rope_op
    serve(q, k, q_weight, k_weight, cos, sin, num_heads, eps)


def rope_1d(x: Tensor, positions: Tensor, num_heads: int, theta: float = 1e4) -> Tensor:
    """Interleaved rotary of x [L, H*D] at real positions [L]: pair i turns by position * theta^(-2i/D) -> [L, H*D]."""
    return reference.rope_1d(x, positions, num_heads, theta) if runs_plain(x) else _rope_1d_op(x, positions, num_heads, theta)


@jit
@no_type_check
def rotated_part(values, cos, sin, columns_of_pairs, PAIRS: tl.constexpr, PART: tl.constexpr):
    """A part of a row, whole heads, turned by the row's cosines and sines."""
    even, odd = tl.split(tl.reshape(values, [PART // 2, 2]))
    pair = columns_of_pairs % PAIRS
    c = tl.load(cos + pair).to(tl.float32)
    s = tl.load(sin + pair).to(tl.float32)
    return tl.reshape(tl.join(even * c - odd * s, even * s + odd * c), [PART])


@jit
@no_type_check
def turned_row(
    x, weight, cos, sin, width, eps, PAIRS: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, RAGGED: tl.constexpr
):
    """Both parts of a row (no TAIL: the head twice), normed where there is a weight and turned where there are tables, and one
    over its root mean square."""
    head = read_part(x, tl.arange(0, HEAD), width, False)
    tail = head
    if TAIL > 0:
        tail = read_part(x, HEAD + tl.arange(0, TAIL), width, RAGGED)
    rstd = 1.0
    if weight is not None:
        squares = tl.sum(head * head, 0)
        if TAIL > 0:
            squares += tl.sum(tail * tail, 0)
        rstd = tl.rsqrt(squares / width + eps)
        head = head * rstd * read_part(weight, tl.arange(0, HEAD), width, False)
        if TAIL > 0:
            tail = tail * rstd * read_part(weight, HEAD + tl.arange(0, TAIL), width, RAGGED)
    if cos is not None:
        head = rotated_part(head, cos, sin, tl.arange(0, HEAD // 2), PAIRS, HEAD)
        if TAIL > 0:
            tail = rotated_part(tail, cos, sin, HEAD // 2 + tl.arange(0, TAIL // 2), PAIRS, TAIL)
    return head, tail, rstd


@jit
@no_type_check
def _rms_rope_kernel(
    q,
    k,
    q_weight,
    k_weight,
    cos,
    sin,
    q_out,
    k_out,
    q_stride,
    k_stride,
    q_out_stride,
    k_out_stride,
    width,
    eps,
    PAIRS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if cos is not None:
        cos += row * PAIRS
        sin += row * PAIRS
    if tl.program_id(1) == 0:
        _one_row(q + row * q_stride, q_weight, cos, sin, q_out + row * q_out_stride, width, eps, PAIRS, HEAD, TAIL, RAGGED)
    elif k is not None:
        _one_row(k + row * k_stride, k_weight, cos, sin, k_out + row * k_out_stride, width, eps, PAIRS, HEAD, TAIL, RAGGED)


@jit
@no_type_check
def _one_row(
    x,
    weight,
    cos,
    sin,
    out,
    width,
    eps,
    PAIRS: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
):
    head, tail, _ = turned_row(x, weight, cos, sin, width, eps, PAIRS, HEAD, TAIL, RAGGED)
    write_part(out, tl.arange(0, HEAD), head, width, False)
    if TAIL > 0:
        write_part(out, HEAD + tl.arange(0, TAIL), tail, width, RAGGED)


def start_rms_rope(
    tensors: Sequence[tuple[Tensor, Tensor | None, Tensor]],
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    eps: float,
) -> None:
    """Run the kernel on one or two (input [L, H*D], norm weight or None, output), which may be the input."""
    inputs = [contiguous_channels(x) for x, _, _ in tensors]
    outputs = [out for _, _, out in tensors]
    for x in (*inputs, *outputs):
        require_rows("q and k", x)
    length, width = inputs[0].shape
    if any(x.shape != inputs[0].shape for x in inputs):
        raise ValueError(f"q and k differ in shape: {[tuple(x.shape) for x in inputs]}")
    if width % (2 * num_heads):
        raise ValueError(f"{width} channels do not split into {num_heads} heads of pairs")
    pairs = width // num_heads // 2
    tables = [None if t is None else t.contiguous() for t in (cos, sin)]
    if any(t is not None and t.shape != (length, pairs) for t in tables):
        raise ValueError(f"cos and sin must be [{length}, {pairs}]")
    arch = architecture(inputs[0])
    assert arch is not None
    weights = [None if w is None else w.contiguous() for _, w, _ in tensors]
    second = len(inputs) > 1
    launch(
        _rms_rope_kernel,
        (length, len(inputs)),
        inputs[0],
        inputs[1] if second else None,
        weights[0],
        weights[1] if second else None,
        *tables,
        outputs[0],
        outputs[1] if second else None,
        inputs[0].stride(0),
        inputs[1].stride(0) if second else 0,
        outputs[0].stride(0),
        outputs[1].stride(0) if second else 0,
        width,
        eps,
        PAIRS=pairs,
        **cut_row(width),
        num_warps=launch_settings("rms_rope", arch).num_warps,
    )


@operation("rms_norm", fake=lambda x, *_: room(x))
def _rms_norm_op(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if not use_triton("rms_norm", x, setting="rms_rope"):
        return reference.rms_norm(x, weight, eps)
    out = room(x)
    start_rms_rope([(x, weight, out)], None, None, 1, eps)
    return out


def _plain_qk_norm_rope(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, num_heads: int, eps: float
) -> None:
    turned_q, turned_k = reference.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, num_heads, eps)
    q.copy_(turned_q)
    k.copy_(turned_k)


@operation("qk_norm_rope_", fake=lambda *_: None, mutates=("q", "k"))
def _qk_norm_rope_op(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, cos: Tensor, sin: Tensor, num_heads: int, eps: float
) -> None:
    obstacle = None if q.stride(-1) == k.stride(-1) == 1 else "channels are not contiguous"
    if use_triton("qk_norm_rope_", q, setting="rms_rope", obstacle=obstacle):
        start_rms_rope([(q, q_weight, q), (k, k_weight, k)], cos, sin, num_heads, eps)
    else:
        _plain_qk_norm_rope(q, k, q_weight, k_weight, cos, sin, num_heads, eps)


@operation("rope_1d", fake=lambda x, *_: room(x))
def _rope_1d_op(x: Tensor, positions: Tensor, num_heads: int, theta: float) -> Tensor:
    if not use_triton("rope_1d", x, setting="rms_rope"):
        return reference.rope_1d(x, positions, num_heads, theta)
    cos, sin = reference.rope_tables(positions.float(), x.shape[-1] // num_heads, theta)
    out = room(x)
    start_rms_rope([(x, None, out)], cos, sin, num_heads, 0.0)
    return out
