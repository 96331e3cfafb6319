"""The forwards of a take: what they are told, and their predictions step by step; here in one process, in ``crew`` in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from model_store.infinitetalk.attention import Attention
from model_store.infinitetalk.guidance import Branch
from model_store.infinitetalk.step_skipping import KeptBlocks
from model_store.infinitetalk.transformer import InfiniteTalkTransformer


@dataclass(frozen=True)
class Told:
    """What the forwards of a take are told; see the transformer's arguments.

    What is the same for several takes should be the same tensor object: what follows from it is computed once.

    Args:
        prompt, negative: ``[n, text_dim]``.
        speech, silence: ``[1, F, 5, 12, 768]``.
        clip: ``[257, image_dim]``.
        condition: ``[20, T, h, w]``.
    """

    prompt: Tensor
    negative: Tensor
    speech: Tensor
    silence: Tensor
    clip: Tensor
    condition: Tensor


class Forwards(Protocol):
    """Computes the predictions of one take after another."""

    def begin(self, told: Told, keeps: bool) -> None:
        """The next take; ``keeps`` says whether steps of it will skip the blocks."""

    def predict(
        self, latent: Tensor, time: float, branches: Sequence[Branch], skip: bool, how: Attention, before: Callable[[], None]
    ) -> Mapping[Branch, Tensor]:
        """The predictions of one step, fp32 ``[16, T, h, w]`` each.

        Args:
            latent: noisy, ``[16, T, h, w]``.
            time: 0..1000.
            branches: what is asked for.
            skip: add what the blocks added before instead of running them.
            how: tokens attend to one another.
            before: called before every forward, or all that run at a time; may raise to stop.
        """


class LocalForwards:
    """Forwards of this process; a :class:`Forwards`."""

    def __init__(self, transformer: InfiniteTalkTransformer) -> None:
        self._transformer = transformer
        self._told: Told | None = None
        self._kept: dict[Branch, KeptBlocks | None] = {}

    def begin(self, told: Told, keeps: bool) -> None:
        """See :class:`Forwards`."""
        self._told = told
        self._kept = {branch: KeptBlocks() if keeps else None for branch in Branch}

    def predict(
        self, latent: Tensor, time: float, branches: Sequence[Branch], skip: bool, how: Attention, before: Callable[[], None]
    ) -> Mapping[Branch, Tensor]:
        """See :class:`Forwards`."""
        found = {}
        for branch in branches:
            before()
            found[branch] = self.forward(latent, time, branch, skip, how)
        return found

    def forward(self, latent: Tensor, time: float, branch: Branch, skip: bool, how: Attention) -> Tensor:
        """One prediction."""
        told = self._told
        if told is None:
            raise ValueError("no take was begun")
        prediction: Tensor = self._transformer(
            latent,
            time,
            told.prompt if branch.prompt else told.negative,
            told.clip,
            told.condition,
            told.speech if branch.speech else told.silence,
            kept=self._kept[branch],
            skip=skip,
            how=how,
        )
        return prediction
