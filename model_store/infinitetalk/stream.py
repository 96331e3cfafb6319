"""The streaming loop: endless video from takes of 81 frames, each continuing the one before (InfiniteTalk, arXiv:2508.14033).

Every take sees two pictures: its *reference*, the photo or the source video's frame at that moment, which tells who and
where; and the clean latents of the last frames made, its *motion*, from which it goes on moving. Memory does not grow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from model_store.engine import Frames, Picture, Plan
from model_store.infinitetalk.audio_windows import WINDOW, frame_windows, latent_frames
from model_store.infinitetalk.colour import ColourCorrection
from model_store.infinitetalk.condition import reference_condition
from model_store.infinitetalk.crew import Crew
from model_store.infinitetalk.forwards import Forwards, LocalForwards, Told
from model_store.infinitetalk.image_encoder import ImageEncoder
from model_store.infinitetalk.sampler import Sampling, denoise, noise
from model_store.infinitetalk.scenes import SceneCuts
from model_store.infinitetalk.takes import TAKE_FRAMES, Take, overlap, takes
from model_store.infinitetalk.transformer import InfiniteTalkTransformer
from model_store.infinitetalk.vae import VideoAutoencoder


class Rows(Protocol):
    """Speech vectors, 25 a second; see ``speech_encoder.SpeechRows``."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """``[stop - start, 12, 768]``."""


@dataclass(frozen=True)
class Models:
    """What the loop computes with.

    Args:
        transformer, vae, image_encoder: the models, in this process.
        crew: other processes with the same transformer, where there are several.
    """

    transformer: InfiniteTalkTransformer
    vae: VideoAutoencoder
    image_encoder: ImageEncoder
    crew: Crew | None = None


@dataclass(frozen=True)
class Script:
    """What is performed.

    Args:
        text, negative: vectors of the prompt and of what to avoid, ``[n, 4096]``.
        speech: vectors of the speech.
        picture: the reference at the model's size, RGB uint8 ``[H, W, 3]``, at a frame number of the output.
        changes: whether the reference does: a source video.
        seed: noise follows from it.
    """

    text: Tensor
    negative: Tensor
    speech: Rows
    picture: Callable[[int], Picture]
    changes: bool
    seed: int


@dataclass(frozen=True)
class State:
    """All that the next chunk needs of the earlier ones.

    Args:
        scene: first frame of the scene that is running.
        motion: clean latents of the last frames made, fp32 ``[16, 1..3, h, w]``; None where a scene begins.
    """

    scene: int = 0
    motion: Tensor | None = None


@dataclass(frozen=True)
class _Reference:
    """A picture in every form that a take wants it in."""

    pixels: Tensor
    clip: Tensor
    condition: Tensor
    correction: ColourCorrection


OnWork = Callable[[int, int, int], None]
"""Called with chunk, units done and units of the chunk; a unit is a step, or a take's decoding. May raise to stop."""


def _add(on_work: OnWork, index: int, before: int, total: int, done: int) -> None:
    on_work(index, before + done, total)


class Loop:
    """The loop over one script.

    Args:
        models: what computes.
        script: what is performed.
        plan: the chunks; its size is that of ``script.picture``.
        sampling: how.
    """

    def __init__(self, models: Models, script: Script, plan: Plan, sampling: Sampling) -> None:
        self._models, self._script, self._plan, self._sampling = models, script, plan, sampling
        self._reference: _Reference | None = None
        self._forwards: Forwards = models.crew or LocalForwards(models.transformer)
        # One silence for the whole job: its keys and values are computed once.
        config = models.transformer.config
        self._silence = torch.zeros(1, TAKE_FRAMES, WINDOW, config.audio_blocks, config.audio_channels)

    def run(self, first: int, state: State, on_work: OnWork) -> Iterator[tuple[Frames, State]]:
        """Frames ``[T, H, W, 3]`` of every chunk from ``first`` on, as soon as it is decoded, and what the next one needs."""
        cuts = SceneCuts(self._script.picture, self._plan.frames) if self._script.changes else None
        for index in range(first, self._plan.chunks):
            start, stop = self._plan.span(index)
            begins = cuts.within(start, stop, state.scene) if cuts is not None else []
            todo = takes(start, stop, state.scene, begins)
            units = self._sampling.steps + 1
            total = len(todo) * units
            parts, tail = [], torch.empty(0)
            for number, take in enumerate(todo):
                tell = partial(_add, on_work, index, number * units, total)
                frames, tail = self._perform(take, state.motion if take.overlap else None, tell)
                parts.append(frames)
            scene = begins[-1] if begins else state.scene
            motion = None
            if index + 1 < self._plan.chunks:
                motion = self._models.vae.encode(tail[:, tail.shape[1] - overlap(stop - scene) :])
            on_work(index, total, total)
            state = State(scene, motion)
            yield np.concatenate(parts), state

    def _perform(self, take: Take, motion: Tensor | None, tell: Callable[[int], None]) -> tuple[Frames, Tensor]:
        """A take's frames that are kept, uint8, and the last of them, corrected, ``[3, 1..9, H, W]`` in -1..1."""
        script, models = self._script, self._models
        tell(0)
        reference = self._look(take.first)
        audio = self._hear(take.first)
        given = models.vae.encode(reference.pixels.unsqueeze(1)) if motion is None else motion.to(reference.condition.device)
        shape = (given.shape[0], latent_frames(TAKE_FRAMES), *given.shape[2:])
        told = Told(script.text, script.negative, audio, self._silence, reference.clip, reference.condition)
        self._forwards.begin(told, keeps=bool(self._sampling.skipped))
        start = noise(script.seed, take.first, shape).to(given.device)
        latent = denoise(self._forwards, start, given, self._sampling, tell)
        return self._develop(take, latent, reference.correction, lambda: tell(self._sampling.steps))

    def _develop(
        self, take: Take, latent: Tensor, correction: ColourCorrection, tell: Callable[[], None]
    ) -> tuple[Frames, Tensor]:
        """Decode as far as frames are kept, group by group, and correct the colours."""
        parts: list[Frames] = []
        tail: list[Tensor] = []
        position = take.first
        for group in self._models.vae.decode_stream(latent):
            tell()
            end = position + group.shape[1]
            kept = group[:, max(0, take.start - position) : max(0, take.stop - position)]
            if kept.shape[1]:
                kept = correction.apply(kept)
                tail = [*tail, kept][-3:]  # three groups hold nine frames or more, but at the very beginning
                pixels = (kept * 127.5 + 127.5).round_().to(torch.uint8)
                parts.append(pixels.permute(1, 2, 3, 0).contiguous().cpu().numpy())
            position = end
            if position >= take.stop:
                break
        return np.concatenate(parts), torch.cat(tail, dim=1)

    def _look(self, frame: int) -> _Reference:
        """The reference of a take; a photo is looked at once."""
        if self._reference is not None and not self._script.changes:
            return self._reference
        models = self._models
        picture = torch.from_numpy(np.ascontiguousarray(self._script.picture(frame))).permute(2, 0, 1)
        pixels = picture.float() / 127.5 - 1
        self._reference = _Reference(
            pixels,
            models.image_encoder.embed(pixels),
            reference_condition(models.vae, pixels, TAKE_FRAMES),
            ColourCorrection.towards(pixels),
        )
        return self._reference

    def _hear(self, frame: int) -> Tensor:
        """Speech windows of a take, ``[1, 81, 5, 12, 768]``; beyond the speech's end its last vector goes on."""
        reach = WINDOW // 2
        last = len(self._script.speech)
        first = min(max(0, frame - reach), last - 1)
        rows = self._script.speech.rows(first, min(last, frame + TAKE_FRAMES + reach))
        return frame_windows(rows, frame - first, TAKE_FRAMES).unsqueeze(0)
