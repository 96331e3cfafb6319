"""Listening: 16 kHz speech in windows -> what the recogniser and a spectrum say about every 20 ms.

The windows lie on one fixed grid (a window for every :data:`BLOCK_FRAMES` frames of video), each is heard on its own with
some speech before and after it, and nothing else is remembered. So what is heard at a moment never depends on what was
asked before, and memory and the wait for the first frames do not depend on the length of the speech.

Recogniser: hama 1.7 (Apache-2.0), CTC log-posteriors at 50 Hz. It is sensitive to level, so each window is brought to one
level, measured over the seconds around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hama import ASRModel
from numpy.typing import NDArray

from model_store.engine import FPS, SPEECH_RATE, Speech
from model_store.portrait.phonemes import GROUPS, group_matrix

BLOCK_FRAMES = 72
"""Video frames that one window answers for."""

HOP = SPEECH_RATE // 50
"""Samples between two answers of the recogniser (20 ms)."""

BLOCK_HOPS = BLOCK_FRAMES * 50 // FPS
LOOK_AHEAD_HOPS = 24
"""A window answers for this much more than its frames' own time (0.48 s), so that what comes next can be prepared."""

CONTEXT_HOPS = 36
"""Speech heard before and after what a window answers for: 0.72 s; with less the recogniser misses sounds at the edges."""

LEVEL_SECONDS = 6.0
"""The level of speech is judged from this long before to this long after a block."""

LEVEL_FLOOR_DB = -60.0
"""Speech is taken to be no quieter than this (RMS below full scale): what lies far under it is silence, not whispering."""

RECOGNISER_LEVEL_DB = -17.0
MELS = 24
_FFT = 512


@dataclass(frozen=True)
class Heard:
    """What is known about ``T`` hops of 20 ms.

    Args:
        posteriors: ``[T, groups]``, probability of each group of labels (:data:`~model_store.portrait.phonemes.GROUPS`).
        mels: ``[T, 2, MELS]``, two spectra (10 ms apart) a hop, dB above the level of speech around.
    """

    posteriors: NDArray[np.float32]
    mels: NDArray[np.float32]


def _mel_filters() -> NDArray[np.float32]:
    def mel(hertz: float) -> float:
        return 2595.0 * float(np.log10(1.0 + hertz / 700.0))

    points = 700.0 * (10.0 ** (np.linspace(mel(60.0), mel(7600.0), MELS + 2) / 2595.0) - 1.0)
    bins = np.arange(_FFT // 2 + 1) * SPEECH_RATE / _FFT
    rising = (bins[:, None] - points[None, :-2]) / (points[1:-1] - points[:-2])
    falling = (points[None, 2:] - bins[:, None]) / (points[2:] - points[1:-1])
    filters = np.clip(np.minimum(rising, falling), 0.0, None)
    return (filters / np.maximum(filters.sum(axis=0), 1e-6)).astype(np.float32)


_FILTERS = _mel_filters()
_TAPER = np.hanning(400).astype(np.float32)


def spectrum_db(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mel spectra ``[n, MELS]`` in dB (re full scale) of ``n * 160 + 240`` samples, one each 10 ms, 25 ms long."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, len(_TAPER))[:: HOP // 2]
    power = np.abs(np.fft.rfft(windows * _TAPER, _FFT)).astype(np.float32) ** 2
    return np.asarray(10.0 * np.log10(power @ _FILTERS / float(np.sum(_TAPER)) + 1e-12), np.float32)


def level_db(speech: Speech, start: int, stop: int) -> float:
    """Level of the loud parts of the speech around samples ``start..stop``: 95th percentile of 20 ms RMS, in dB."""
    margin = int(LEVEL_SECONDS * SPEECH_RATE)
    first, last = max(0, start - margin), min(speech.samples, stop + margin)
    hops = (last - first) // HOP
    if hops < 1:
        return LEVEL_FLOOR_DB
    around = speech.read(first, first + hops * HOP).reshape(hops, HOP)
    rms = np.sqrt(np.mean(around**2, axis=1))
    return max(LEVEL_FLOOR_DB, float(20.0 * np.log10(np.percentile(rms, 95.0) + 1e-9)))


def _read_mirrored(speech: Speech, start: int, stop: int) -> NDArray[np.float32]:
    """Samples ``start..stop``; before its beginning and after its end the speech is mirrored.

    Room noise that sets in with the first sample, or breaks off with the last, would sound like a puff of breath.
    """
    samples = speech.read(start, stop)
    if start < 0:
        samples[: min(0, stop) - start] = speech.read(-min(0, stop), -start)[::-1]
    if stop > speech.samples:
        first = max(start, speech.samples)
        samples[first - start :] = speech.read(2 * speech.samples - stop, 2 * speech.samples - first)[::-1]
    return samples


class Listener:
    """Hears blocks of one speech.

    Args:
        speech: what to listen to.
    """

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._model = ASRModel()
        self._groups = group_matrix(self._model.decoder_tokens)

    def hear(self, block: int) -> Heard:
        """What window ``block`` hears: the hops it answers for, and :data:`CONTEXT_HOPS` before and after them.

        Window ``block`` answers for hops ``block * BLOCK_HOPS + LOOK_AHEAD_HOPS`` up to the next window's; the first one
        also for those before. Takes about 0.35 s of one core.
        """
        first = block * BLOCK_HOPS + LOOK_AHEAD_HOPS - CONTEXT_HOPS
        hops = BLOCK_HOPS + 2 * CONTEXT_HOPS
        start, stop = first * HOP, (first + hops) * HOP
        level = level_db(self._speech, start, stop)
        # The taper of a spectrum is 400 samples around the middle of its 160.
        samples = _read_mirrored(self._speech, start - 120, stop + 120)
        mels = (spectrum_db(samples) - level).reshape(hops, 2, MELS)
        window = samples[120:-120]
        if float(np.max(np.abs(window))) < 10.0 ** ((level - 50.0) / 20.0):
            silent = np.zeros((hops, len(GROUPS)), np.float32)
            silent[:, 0] = 1.0
            return Heard(silent, mels)
        gain = 10.0 ** ((RECOGNISER_LEVEL_DB - level) / 20.0)
        return Heard(self._recognise(np.clip(window * np.float32(gain), -1.0, 1.0)), mels)

    def _recognise(self, window: NDArray[np.float32]) -> NDArray[np.float32]:
        log_posteriors, _ = self._model.session.run(
            ["log_probs", "out_lengths"],
            {
                "waveform": window[None],
                "waveform_lengths": np.array([len(window)], np.int64),
            },
        )
        hops = len(window) // HOP
        return np.asarray(np.exp(log_posteriors[0, :hops]) @ self._groups, np.float32)
