"""How the video's tokens attend to one another: exactly, or quicker and nearly so.

In 8 bits every token is still seen, by rounded scores and weights (SageAttention, arXiv:2410.02367). With ``keep`` below 1 each
block of tokens sees only those blocks that it resembles most, its neighbours in the picture and in time, and what cannot be
judged by a mean (SpargeAttention, arXiv:2502.18137).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kernels import (
    attention,
    block_sparse_attention,
    eight_bit_attention,
    eight_bit_values,
    quantise_qk,
    select_blocks,
)

_WHOLE_STEPS = 0.25  # the first steps lay out the picture; leaving blocks out there is what sparse attention is said to show by


@dataclass(frozen=True)
class Attention:
    """How.

    Args:
        eight_bit: scores and weights in 8 bits.
        keep: share of the blocks that are seen, above 0; 1 sees all.
    """

    eight_bit: bool = False
    keep: float = 1.0

    def at(self, step: int, steps: int) -> Attention:
        """How at a step: all blocks are seen in the first quarter of the steps."""
        return replace(self, keep=1.0) if step < math.ceil(_WHOLE_STEPS * steps) else self


EXACT = Attention()
"""The attention that the model was trained with."""


def attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, how: Attention, near: Sequence[int]) -> Tensor:
    """Self-attention.

    Args:
        q, k: after norm and rotary, ``[N, dim]``.
        v: ``[N, dim]``.
        num_heads: heads in dim.
        how: see :class:`Attention`.
        near: how many tokens away a row's and a frame's neighbours are.

    Returns:
        ``[N, dim]`` in v's dtype.
    """
    blocks = None if how.keep == 1 else select_blocks(q, k, num_heads, how.keep, near=near)
    if how.eight_bit:
        qk, values = quantise_qk(q, k, num_heads), eight_bit_values(v, num_heads)
        return eight_bit_attention(qk, values, num_heads, blocks=blocks, out_dtype=v.dtype)
    if blocks is not None:
        return block_sparse_attention(q, k, v, num_heads, blocks)
    return attention(q, k, v, num_heads)
