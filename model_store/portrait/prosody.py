"""How it is said: loudness, pitch, emphasis and pauses for every video frame, from the sound alone.

Everything is a function of the few seconds around a frame and lies on the grid of the video's blocks, like
:mod:`~model_store.portrait.speech`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS, SAMPLES_PER_FRAME, SPEECH_RATE, Speech
from model_store.portrait.speech import BLOCK_FRAMES, level_db

Floats = NDArray[np.float64]

PITCH_WINDOW = 1024
"""Samples (64 ms) that a pitch is read from: three periods of the lowest voice."""

LOWEST_HERTZ, HIGHEST_HERTZ = 65.0, 420.0
VOICED = 0.45
"""A frame is voiced when its normalised autocorrelation reaches this."""

PAUSE_FRAMES = 6
"""A gap of at least 0.24 s is a pause; shorter ones are closures and catches of breath."""


@dataclass(frozen=True)
class Prosody:
    """One value a frame, each ``[T]``.

    Args:
        loudness: dB above the level of the speech around; the loud parts are near 0, silence is far below.
        pitch: semitones above 55 Hz, 0 where unvoiced.
        voiced: whether there is a pitch.
    """

    loudness: Floats
    pitch: Floats
    voiced: NDArray[np.bool_]


def _pitch(windows: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Pitch by normalised autocorrelation of ``[T, PITCH_WINDOW]``."""
    size = 2 * PITCH_WINDOW
    shaped = (windows - windows.mean(axis=1, keepdims=True)) * np.hanning(PITCH_WINDOW)
    lags = np.fft.irfft(np.abs(np.fft.rfft(shaped, size)) ** 2, size)[:, :PITCH_WINDOW]
    taper = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(PITCH_WINDOW), size)) ** 2, size)[:PITCH_WINDOW]
    shortest, longest = int(SPEECH_RATE / HIGHEST_HERTZ), int(SPEECH_RATE / LOWEST_HERTZ)
    # Dividing by the taper's own autocorrelation undoes its fall (Boersma 1993); the slight slope prefers the first of
    # several equal peaks, which is the true period.
    peaks = lags[:, shortest:longest] / (lags[:, :1] + 1e-9) / (taper[shortest:longest] / taper[0])
    peaks = peaks * np.linspace(1.0, 0.85, longest - shortest)
    best = np.argmax(peaks, axis=1)
    height = peaks[np.arange(len(peaks)), best]
    return 12.0 * np.log2(SPEECH_RATE / (best + shortest) / 55.0), height > VOICED


class Voice:
    """Prosody of one speech, block by block.

    Args:
        speech: what is said.
    """

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._level = lru_cache(maxsize=16)(self._measure_level)
        self._block = lru_cache(maxsize=16)(self._measure_block)

    def _measure_level(self, block: int) -> float:
        at = block * BLOCK_FRAMES * SAMPLES_PER_FRAME
        return level_db(self._speech, at, at)

    def _measure_block(self, block: int) -> Prosody:
        start = block * BLOCK_FRAMES * SAMPLES_PER_FRAME
        margin = (PITCH_WINDOW - SAMPLES_PER_FRAME) // 2
        samples = self._speech.read(start - margin, start + BLOCK_FRAMES * SAMPLES_PER_FRAME + margin).astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(samples, PITCH_WINDOW)[::SAMPLES_PER_FRAME]
        rms = np.sqrt(np.mean(windows[:, margin : margin + SAMPLES_PER_FRAME] ** 2, axis=1))
        # The level is known at the block's two ends; in between it glides, so that no block begins with a step.
        glide = (np.arange(BLOCK_FRAMES) + 0.5) / BLOCK_FRAMES
        level = self._level(block) * (1 - glide) + self._level(block + 1) * glide
        loudness = np.maximum(20.0 * np.log10(rms + 1e-9) - level, -80.0)
        pitch, voiced = _pitch(windows)
        voiced &= loudness > -28.0
        return Prosody(loudness, np.where(voiced, pitch, 0.0), voiced)

    def blocks(self, first: int, last: int) -> Prosody:
        """Prosody of the frames of blocks ``first`` .. ``last`` (both included)."""
        parts = [self._block(block) for block in range(first, last + 1)]
        return Prosody(
            np.concatenate([part.loudness for part in parts]),
            np.concatenate([part.pitch for part in parts]),
            np.concatenate([part.voiced for part in parts]),
        )


def moving_mean(values: Floats, reach: int) -> Floats:
    """Mean over ``reach`` frames to each side, the ends repeated."""
    padded = np.pad(values, reach, mode="edge")
    return np.asarray(np.convolve(padded, np.full(2 * reach + 1, 1.0 / (2 * reach + 1)), mode="valid"))


def moving_max(values: Floats, reach: int) -> Floats:
    """Greatest value within ``reach`` frames to each side."""
    padded = np.pad(values, reach, mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1))


def speaking(prosody: Prosody) -> NDArray[np.bool_]:
    """Frames that belong to a phrase; pauses of at least :data:`PAUSE_FRAMES` do not."""
    # Between the quietest and the loudest of the seconds around, so that a noisy room has its pauses too.
    floor = -moving_max(-moving_mean(prosody.loudness, 2), 2 * FPS)
    threshold = np.clip(0.6 * floor, -32.0, -9.0)
    loud = (moving_mean(prosody.loudness, 1) > threshold).astype(np.float64)
    half = PAUSE_FRAMES // 2
    closed = -moving_max(-moving_max(loud, half), half)
    return np.asarray(closed > 0.5)


def emphasis(prosody: Prosody) -> Floats:
    """Strength of stress where it peaks (0.3 .. 1), 0 elsewhere: louder and higher than the seconds around."""
    weight = prosody.voiced.astype(np.float64)
    reach = 2 * FPS
    around = moving_mean(prosody.pitch * weight, reach) / np.maximum(moving_mean(weight, reach), 1e-3)
    raised = np.clip((prosody.pitch - around) / 5.0, -0.5, 1.0) * weight
    loud = np.clip((moving_mean(prosody.loudness, 2) + 16.0) / 16.0, 0.0, 1.2)
    stress = 0.55 * loud + 0.45 * moving_mean(raised, 2)
    above = stress - moving_mean(stress, reach)
    peak = (stress >= moving_max(stress, 8)) & (above > 0.12) & (moving_mean(weight, 2) > 0.35)
    # Two equal neighbours would both be peaks: the first counts.
    peak[1:] &= ~peak[:-1]
    return np.where(peak, np.clip(0.3 + 1.2 * above, 0.3, 1.0), 0.0)
