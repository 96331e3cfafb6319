"""Speech and a seed in, the dials of every frame out: where listening, the mouth and the rest of the body meet."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, Speech
from model_store.portrait import articulation, motion
from model_store.portrait.chance import Chance
from model_store.portrait.channels import Channels
from model_store.portrait.phonemes import VISEMES
from model_store.portrait.prosody import Voice
from model_store.portrait.speech import BLOCK_FRAMES, BLOCK_HOPS, CONTEXT_HOPS, LOOK_AHEAD_HOPS, Listener
from model_store.portrait.visemes import see

_STEPS_PER_FRAME = articulation.RATE // FPS
_BLOCK_STEPS = BLOCK_FRAMES * _STEPS_PER_FRAME
_MOTION_BLOCKS = -(-motion.REACH // BLOCK_FRAMES)


class Performer:
    """Performs one speech, frame by frame, at 25 fps.

    A performer keeps no state that matters: whatever is asked, in whatever order or pieces, by however many performers in
    however many processes, a frame is always the same, bit for bit. It works in blocks of
    :data:`~model_store.portrait.speech.BLOCK_FRAMES` frames on a fixed grid and remembers only the last few.

    Args:
        speech: what is said.
        seed: 0 .. 2**32 - 1. Head, eyes and body follow from it; the lips do not.
        expressiveness: 0 (head, brows and body still, apart from breath and blinks) .. 1 (natural) .. 2 (theatrical).
    """

    def __init__(self, speech: Speech, *, seed: int, expressiveness: float) -> None:
        self._listener = Listener(speech)
        self._voice = Voice(speech)
        self._chance = Chance(seed)
        self._expressiveness = float(expressiveness)
        self._heard = lru_cache(maxsize=2)(self._hear)
        self._block = lru_cache(maxsize=3)(self._perform_block)

    def perform(self, start: int, stop: int) -> Channels:
        """The dials of frames ``start`` .. ``stop`` (those beyond the end of the speech mean nothing).

        The first block asked for takes two windows of listening, each further one in order takes one.
        """
        if not 0 <= start <= stop:
            raise ValueError(f"frames {start}..{stop} are not a range")
        if start == stop:
            return Channels.rest(0)
        first, last = start // BLOCK_FRAMES, (stop - 1) // BLOCK_FRAMES
        blocks = [self._block(block) for block in range(first, last + 1)]
        cut = slice(start - first * BLOCK_FRAMES, stop - first * BLOCK_FRAMES)
        return Channels(**{f.name: np.concatenate([getattr(b, f.name) for b in blocks])[cut] for f in fields(Channels)})

    def _hear(self, window: int) -> NDArray[np.float32]:
        return see(self._listener.hear(window))

    def _visemes(self, window: int) -> NDArray[np.float32]:
        """Visemes ``[2 * BLOCK_HOPS, visemes]`` of the hops that a window answers for; before the speech there is silence."""
        if window >= 0:
            return self._heard(window)[2 * CONTEXT_HOPS : 2 * (CONTEXT_HOPS + BLOCK_HOPS)]
        silence = np.zeros((2 * BLOCK_HOPS, len(VISEMES)), np.float32)
        silence[:, 0] = 1.0
        # The first hops of the speech belong to no window of their own; the first window has heard them too.
        lead = self._heard(0)[2 * (CONTEXT_HOPS - LOOK_AHEAD_HOPS) : 2 * CONTEXT_HOPS]
        silence[-len(lead) :] = lead
        return silence

    def _perform_block(self, block: int) -> Channels:
        first = block * BLOCK_FRAMES
        prosody = self._voice.blocks(block - _MOTION_BLOCKS, block + _MOTION_BLOCKS)
        body = motion.move(prosody, first - _MOTION_BLOCKS * BLOCK_FRAMES, self._chance, self._expressiveness)
        within = slice(_MOTION_BLOCKS * BLOCK_FRAMES, (_MOTION_BLOCKS + 1) * BLOCK_FRAMES)

        visemes = np.concatenate([self._visemes(block - 1), self._visemes(block)])
        # The two windows answer from LOOK_AHEAD_HOPS into the block before to as much into the block after.
        back, ahead = articulation.REACH_BACK, articulation.REACH_AHEAD
        begin = _BLOCK_STEPS - 2 * LOOK_AHEAD_HOPS
        planned = slice(begin - back, begin + _BLOCK_STEPS + ahead)
        frame_loudness = prosody.loudness[(_MOTION_BLOCKS - 1) * BLOCK_FRAMES : (_MOTION_BLOCKS + 2) * BLOCK_FRAMES]
        at = (np.arange(-back, _BLOCK_STEPS + ahead) + 0.5) / _STEPS_PER_FRAME - 0.5 + BLOCK_FRAMES
        loudness = np.interp(at, np.arange(len(frame_loudness)), frame_loudness)
        mouth = articulation.mouth(visemes[planned], loudness)
        dials = {name: _to_frames(steps[back:-ahead]) for name, steps in mouth.items()}
        dials |= {name: values[within] for name, values in body.items()}
        return Channels(**{name: np.ascontiguousarray(values, np.float32) for name, values in dials.items()})


def _to_frames(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """One value a frame: what a shutter open for its first half sees, so that the mouth is never ahead of a late label."""
    return np.asarray(steps.reshape(-1, _STEPS_PER_FRAME)[:, : _STEPS_PER_FRAME // 2].mean(axis=1))
