"""Classifier-free guidance over words and speech: which forwards a step needs, and how they become one velocity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor
from torch.linalg import vector_norm

APG_MOMENTUM = -0.75
APG_NORM = 55.0
"""Adaptive projected guidance as the public pipeline sets it; what is parallel to the prediction counts nothing."""

_FRAME = (-1, -2, -4)  # norms and products of [C, T, h, w] are taken for every latent frame


class Branch(Enum):
    """What a forward is told: the prompt or the negative prompt, the speech or silence."""

    FULL = (True, True)
    NO_TEXT = (False, True)
    NO_AUDIO = (True, False)
    NOTHING = (False, False)

    @property
    def prompt(self) -> bool:
        """Whether it reads the prompt, else the negative prompt."""
        return self.value[0]

    @property
    def speech(self) -> bool:
        """Whether it hears the speech, else silence."""
        return self.value[1]


@dataclass(frozen=True)
class Guidance:
    """How strongly words and speech steer.

    With u, d, c the predictions for nothing, for speech alone and for all, three forwards give
    ``u + text (c - d) + audio (d - u)``; without text guidance two give ``n + audio (c - n)``, n the prediction for the
    prompt alone; without any one gives c. A scale of 1 is no guidance.

    Args:
        text, audio: scales.
        apg: project each difference away from the prediction and limit it (adaptive projected guidance, arXiv:2410.02416).
    """

    text: float
    audio: float
    apg: bool = False

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The forwards of a step."""
        if self.text != 1:
            return Branch.FULL, Branch.NO_TEXT, Branch.NOTHING
        return (Branch.FULL, Branch.NO_AUDIO) if self.audio != 1 else (Branch.FULL,)


class Guide:
    """Joins the predictions of one take, step after step: APG remembers earlier steps."""

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance
        self._averages: dict[str, Tensor] = {}

    def join(self, predictions: Mapping[Branch, Tensor]) -> Tensor:
        """One prediction ``[C, T, h, w]`` from those of :attr:`Guidance.branches`, each fp32 of the same shape."""
        full = predictions[Branch.FULL]
        guidance = self._guidance
        if guidance.text != 1:
            spoken = predictions[Branch.NO_TEXT]
            text = self._steer("text", full - spoken, full)
            audio = self._steer("audio", spoken - predictions[Branch.NOTHING], full)
            return full + (guidance.text - 1) * text + (guidance.audio - 1) * audio
        if guidance.audio != 1:
            return full + (guidance.audio - 1) * self._steer("audio", full - predictions[Branch.NO_AUDIO], full)
        return full

    def _steer(self, kind: str, difference: Tensor, full: Tensor) -> Tensor:
        if not self._guidance.apg:
            return difference
        if kind in self._averages:
            difference = difference + APG_MOMENTUM * self._averages[kind]
        self._averages[kind] = difference
        norm = vector_norm(difference, dim=_FRAME, keepdim=True)
        difference = difference * (APG_NORM / norm.clamp(min=1e-12)).clamp(max=1)
        direction = full / vector_norm(full, dim=_FRAME, keepdim=True).clamp(min=1e-12)
        return difference - (difference * direction).sum(dim=_FRAME, keepdim=True) * direction
