"""Noise to latent video: Euler steps along the flow (arXiv:2210.02747) that the transformer predicts.

``t = linspace(1000, 1, steps), then 0``, shifted towards noise: ``t/1000 = s u / (1 + (s - 1) u)``. Each step moves the
latent by the guided velocity times the step's length, in fp32. The transformer predicts noise minus video, so moving down in
t subtracts it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from model_store.infinitetalk.attention import EXACT, Attention
from model_store.infinitetalk.forwards import Forwards
from model_store.infinitetalk.guidance import Guidance, Guide

T_MAX = 1000.0


def timesteps(steps: int, shift: float) -> list[float]:
    """Times of the steps and the 0 at which the last one ends: ``steps + 1`` falling numbers from 1000."""
    if steps == 1:
        return [T_MAX, 0.0]
    even = [T_MAX + (1.0 - T_MAX) * i / (steps - 1) for i in range(steps)]
    return [T_MAX * shift * (t / T_MAX) / (1 + (shift - 1) * (t / T_MAX)) for t in even] + [0.0]


def noise(seed: int, frame: int, shape: tuple[int, ...]) -> Tensor:
    """Normal noise that depends on the seed and a take's first frame alone, drawn on the CPU, so alike on every device."""
    digest = hashlib.sha256(f"{seed} {frame}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Sampling:
    """How a latent is sampled.

    Args:
        steps: denoising steps.
        shift: above 1 spends more steps on noisy latents.
        guidance: see :class:`Guidance`.
        skipped: steps that use again what the blocks added before, see ``step_skipping.skipped_steps``.
        attention: how tokens attend to one another.
    """

    steps: int
    shift: float
    guidance: Guidance
    skipped: frozenset[int] = field(default_factory=frozenset)
    attention: Attention = EXACT


def denoise(
    forwards: Forwards,
    latent: Tensor,
    given: Tensor,
    sampling: Sampling,
    on_step: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Sample one take.

    Args:
        forwards: of this take, begun.
        latent: noise ``[16, T, h, w]``.
        given: the clean beginning ``[16, t, h, w]``, t < T: it stands in the latent at every forward.
        sampling: how.
        on_step: called with the number of finished steps, before the forwards that run at a time and after the last; may raise
            to stop.

    Returns:
        The video's latent, fp32 ``[16, T, h, w]``.
    """
    times = timesteps(sampling.steps, sampling.shift)
    latent = latent.float().clone()
    guide = Guide(sampling.guidance)
    for step, (now, following) in enumerate(itertools.pairwise(times)):
        latent[:, : given.shape[1]] = given
        before = partial(on_step, step)
        how = sampling.attention.at(step, sampling.steps)
        predictions = forwards.predict(latent, now, sampling.guidance.branches, step in sampling.skipped, how, before)
        latent -= guide.join(predictions) * ((now - following) / T_MAX)
    on_step(sampling.steps)
    return latent
