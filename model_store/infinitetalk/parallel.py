"""One forward computed by several processes, one a GPU: each holds a part of the tokens, and for attention a part of the heads.

Tokens are divided within every latent frame, so that each process has all frames and speech meets its frames. Around
self-attention two all-to-all exchanges turn parts of the tokens into parts of the heads and back (DeepSpeed Ulysses,
arXiv:2309.14509); everything else needs no exchange. Every process calls the transformer with the same arguments and gets the
whole prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from model_store.infinitetalk.attention import Attention, attend
from model_store.infinitetalk.transformer import InfiniteTalkTransformer


class SequenceShare:
    """This process's part of the tokens; a ``transformer.TokenShare``.

    Args:
        group: of the processes that compute together; all, unless given. ``torch.distributed`` must be initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    def split(self, tokens: Tensor, frames: int) -> Tensor:
        """``[N, ...] -> [N / processes, ...]``: an equal part of every latent frame."""
        by_frame = tokens.unflatten(0, (frames, -1))
        if by_frame.shape[1] % self._size:
            raise ValueError(f"{by_frame.shape[1]} tokens a frame cannot be divided among {self._size} processes")
        return by_frame.chunk(self._size, dim=1)[self._rank].flatten(0, 1).contiguous()

    def join(self, tokens: Tensor, frames: int) -> Tensor:
        """``[N / processes, ...] -> [N, ...]``, in every process."""
        parts = [torch.empty_like(tokens) for _ in range(self._size)]
        dist.all_gather(parts, tokens.contiguous(), group=self._group)
        return torch.cat([part.unflatten(0, (frames, -1)) for part in parts], dim=1).flatten(0, 1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, num_heads: int, how: Attention, near: Sequence[int]) -> Tensor:
        """``attend`` of this process's queries to the keys of all processes, each ``[N / processes, dim]``."""
        if num_heads % self._size:
            raise ValueError(f"{num_heads} heads cannot be divided among {self._size} processes")
        by_heads = torch.cat([x.unflatten(1, (self._size, -1)) for x in (q, k, v)], dim=-1)
        mine = self._exchange(by_heads.transpose(0, 1)).flatten(0, 1)
        q, k, v = (x.contiguous() for x in mine.chunk(3, dim=-1))
        result = attend(q, k, v, num_heads // self._size, how, near)
        return self._exchange(result.unflatten(0, (self._size, -1))).transpose(0, 1).flatten(1)

    def _exchange(self, parts: Tensor) -> Tensor:
        """Part p of ``[processes, ...]`` goes to process p; what came from each, in their order."""
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self._group)
        return received


def share_tokens(model: InfiniteTalkTransformer, group: dist.ProcessGroup | None = None) -> None:
    """Make ``model`` one of several that compute every forward together, the same in each process of ``group``.

    Raises:
        ValueError: the model's heads cannot be divided among the processes.
    """
    size = dist.get_world_size(group)
    if model.config.num_heads % size:
        raise ValueError(f"{model.config.num_heads} heads cannot be divided among {size} processes")
    model.share = SequenceShare(group)
