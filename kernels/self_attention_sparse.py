"""Block-sparse self-attention in 16 bits, and a training-free choice of which blocks of keys each block of queries sees.

The choice follows SpargeAttention (arXiv:2502.18137): blocks whose tokens resemble each other are judged by their means, the
best-scoring key blocks are kept, and blocks whose tokens do not resemble each other, which a mean would misjudge, are kept
whole. What is near in space and time is kept too. Blocks are reference.Q_BLOCK queries by reference.K_BLOCK keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels._flash import FlashInputs, empty_lse, start_flash
from kernels._operation import operation, room
from kernels.block_means import block_means
from kernels.dispatch import Option, choose, runs_plain
from kernels.reference import K_BLOCK, Q_BLOCK
from kernels.self_attention import sixteen_bit_obstacle


class BlockList(NamedTuple):
    """For each block of queries the key blocks it sees, ascending.

    listed is [H, query blocks, widest] int32; of each last axis the first counts [H, query blocks] int32, at least 1, count.
    """

    listed: Tensor
    counts: Tensor

    def density(self, key_blocks: int) -> float:
        """The share of all (query block, key block) pairs that is kept."""
        return float(self.counts.float().mean()) / key_blocks


def block_sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, blocks: BlockList, scale: float | None = None
) -> Tensor:
    """Attention of q [Lq, H*D] over those of k, v [Lk, H*D] that its blocks list -> [Lq, H*D]; exact for full lists."""
    return block_sparse_attention_with_lse(q, k, v, num_heads, blocks, scale)[0]


def block_sparse_attention_with_lse(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, blocks: BlockList, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """``block_sparse_attention`` and the natural log-sum-exp of every query's scores of those seen, [H, Lq] fp32."""
    if runs_plain(q):
        return _plain(q, k, v, blocks.listed, blocks.counts, num_heads, scale)
    return _block_sparse_op(q, k, v, blocks.listed, blocks.counts, num_heads, scale)


def select_blocks(
    q: Tensor,
    k: Tensor,
    num_heads: int,
    keep: float,
    *,
    near: Sequence[int] = (),
    least_similarity: float = 0.5,
) -> BlockList:
    """Choose key blocks for q [Lq, H*D] over k [Lk, H*D].

    Args:
        q, k: after norm and rotary, any float dtype.
        num_heads: heads in the last axis.
        keep: share of key blocks kept for each block of queries, above 0, up to 1; guards and neighbours may keep more.
        near: how many tokens away, either way, the neighbours stand whose blocks are always kept, of tokens that attend to one
            another: a row of the picture, a frame. A query block's own tokens are neighbours then, too; none without any.
        least_similarity: mean cosine between the tokens of a block below which the block is kept whole.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
    q_mean, q_similarity = block_means(q, num_heads, Q_BLOCK)
    k_mean, k_similarity = block_means(k, num_heads, K_BLOCK)
    scores = q_mean @ k_mean.transpose(-1, -2)
    blocks = scores.shape[-1]
    always = (k_similarity < least_similarity).unsqueeze(-2).expand_as(scores)
    if near:
        always = always | _neighbours(q.shape[0], k.shape[0], near, q.device)
    ranked = scores.masked_fill(always, float("inf")).argsort(dim=-1, descending=True)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept.scatter_(-1, ranked[..., : max(1, round(keep * blocks))], True)
    kept |= always | (q_similarity < least_similarity).unsqueeze(-1)
    return _as_list(kept)


def _neighbours(q_len: int, k_len: int, near: Sequence[int], device: torch.device) -> Tensor:
    """Key blocks that overlap a query block as it stands or shifted by a distance, either way: [query blocks, key blocks]."""
    first = torch.arange(0, q_len, Q_BLOCK, device=device).unsqueeze(-1)
    last = (first + Q_BLOCK - 1).clamp(max=q_len - 1)
    keys_first = torch.arange(0, k_len, K_BLOCK, device=device).unsqueeze(0)
    keys_last = (keys_first + K_BLOCK - 1).clamp(max=k_len - 1)
    found = torch.zeros((first.shape[0], keys_first.shape[1]), dtype=torch.bool, device=device)
    for shift in (0, *near, *(-distance for distance in near)):
        found |= (first + shift <= keys_last) & (last + shift >= keys_first)
    return found


def _as_list(kept: Tensor) -> BlockList:
    """The ascending list of a mask [H, query blocks, key blocks]."""
    blocks = kept.shape[-1]
    index = torch.arange(blocks, device=kept.device, dtype=torch.int32)
    listed = torch.where(kept, index, blocks).sort(dim=-1).values
    count = kept.sum(-1, dtype=torch.int32)
    # What stands after a row's count is never read; it is kept a valid block so that no reader can go astray.
    return BlockList(listed.clamp(max=blocks - 1).to(torch.int32).contiguous(), count)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, block_list: Tensor, block_count: Tensor, num_heads: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    out, lse = reference.block_sparse_attention_with_lse(q, k, v, num_heads, block_list, block_count, scale)
    return out, lse.float()


# The log-sum-exp is 4 bytes for each query and head of 256: too little for an operator without it.
@operation("block_sparse_attention", fake=lambda q, _k, _v, _l, _c, num_heads, _s: (room(q), empty_lse(q, num_heads)))
def _block_sparse_op(
    q: Tensor, k: Tensor, v: Tensor, block_list: Tensor, block_count: Tensor, num_heads: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    obstacle = sixteen_bit_obstacle("flash_16bit", num_heads, q, k, v)
    triton = Option("triton", "blocks that are not listed cost nothing", obstacle)
    if choose("block_sparse_attention", (triton, Option("reference", "plain torch serves everything"))) == "reference":
        return _plain(q, k, v, block_list, block_count, num_heads, scale)
    inputs = FlashInputs(q, k, v, block_list=block_list.contiguous(), block_count=block_count.contiguous())
    return start_flash("flash_16bit", inputs, num_heads, scale, q.dtype)
