"""Speech in: any recording, as the 16 kHz mono that engines listen to, read by windows from a temporary file."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

from model_store.engine import SPEECH_RATE
from model_store.errors import InfiniteTalkError
from service.media.audio import AudioInfo, decode_audio, probe_audio
from service.media.files import output_error
from service.media.loudness import LoudnessMeter

MIN_SECONDS = 0.3
"""The shortest speech that is performed: a short "yes"."""

TARGET_LOUDNESS = -23.0
"""Loudness, in LUFS, at which engines hear the speech (EBU R 128)."""

SILENT_BELOW = -60.0
"""A recording whose gated loudness, in LUFS, is below this holds no speech to follow."""

_CANCELLED_BY = 20.0
"""Decibels between the loudest channel and the mix from which on the channels count as cancelling each other out."""

_SLACK_SECONDS = 0.1
"""By how much a recording may exceed the limit: encoders pad."""

_BYTES = 4

# How much of a channel goes into the mix (ITU-R BS.775, the centre first because it carries speech); the rest counts 0.5.
_MIX = {"FC": 1.0, "FL": 0.7071, "FR": 0.7071, "LFE": 0.0, "LFE2": 0.0}


class SpeechFile:
    """Speech that an engine reads: a :class:`model_store.engine.Speech` over a temporary file without a name.

    The file vanishes with :meth:`close`, and with the process however that ends. ``read`` may be called from several threads. Use
    as a context manager.

    Attributes:
        info: what the recording's header says.
        start: second of the recording at which this speech begins.
        loudness: gated loudness of the mono mix in LUFS before it was brought to :data:`TARGET_LOUDNESS`.
    """

    def __init__(self, file: BinaryIO, samples: int, info: AudioInfo, start: float, loudness: float) -> None:
        self._file = file
        self._samples = samples
        self._gain = np.float32(10 ** ((TARGET_LOUDNESS - loudness) / 20))
        self.info = info
        self.start = start
        self.loudness = loudness

    @property
    def samples(self) -> int:
        return self._samples

    @property
    def seconds(self) -> float:
        """Length of the speech."""
        return self._samples / SPEECH_RATE

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        window = np.zeros(stop - start, np.float32)
        first, last = max(start, 0), min(stop, self._samples)
        if last > first:
            data = os.pread(self._file.fileno(), (last - first) * _BYTES, first * _BYTES)
            window[first - start : last - start] = np.clip(np.frombuffer(data, np.float32) * self._gain, -1, 1)
        return window

    def close(self) -> None:
        """Delete the temporary file."""
        self._file.close()

    def __enter__(self) -> SpeechFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_speech(
    path: Path, *, max_seconds: float, start: float = 0.0, seconds: float | None = None, workdir: Path | None = None
) -> SpeechFile:
    """Decode a recording, or a part of it, into speech for an engine.

    The channels are mixed down (centre 1, left and right 0.71, others 0.5, no low-frequency channel; where that cancels the sound
    out, as in a stereo file with one side inverted, the loudest channel alone is taken), resampled to 16 kHz as a stream, and
    brought to :data:`TARGET_LOUDNESS` by one gain, measured after BS.1770 on the 16 kHz mix and applied while reading. The
    temporary file takes 64 kB a second; memory does not grow with length.

    Args:
        path: the recording; see :func:`service.media.audio.probe_audio` for what is read.
        max_seconds: the longest speech that is accepted. Told from the header where that can be believed, else while decoding,
            which stops there.
        start: second at which the speech begins.
        seconds: length that is wanted; None is all the rest. It may exceed what there is.
        workdir: folder for the temporary file; None is the system's.

    Raises:
        InfiniteTalkError: as :func:`service.media.audio.probe_audio`, and ``audio_too_long``, ``audio_too_short`` (below
            :data:`MIN_SECONDS`), ``audio_silent``, ``audio_damaged`` (all ``param="audio"``); ``start_invalid``
            (``param="start"``), ``seconds_invalid`` (``param="seconds"``); ``no_space``.
    """
    if not (math.isfinite(start) and start >= 0):
        raise InfiniteTalkError("start_invalid", f"start is {start:g}: choose a second from 0 on.", param="start")
    if seconds is not None and not (math.isfinite(seconds) and seconds >= MIN_SECONDS):
        raise InfiniteTalkError("seconds_invalid", f"seconds is {seconds:g}: choose {MIN_SECONDS:g} or more.", param="seconds")
    if seconds is not None and seconds > max_seconds:
        raise InfiniteTalkError(
            "seconds_invalid", f"seconds is {seconds:g}, the limit is {max_seconds:g}: choose less.", param="seconds"
        )
    info = probe_audio(path)
    # Lengths of files without an index are estimates, sometimes by a factor: only a clear excess is believed.
    if info.seconds is not None and seconds is None and info.seconds - start > max(2 * max_seconds, max_seconds + 10):
        raise _too_long(info.seconds, max_seconds)
    file: BinaryIO = tempfile.TemporaryFile(dir=workdir)  # noqa: SIM115 - the SpeechFile closes it
    try:
        weights = _mix_weights(info.channels)
        samples, loudness, channels = _transcode(path, info, weights, file, start, seconds, max_seconds)
        if len(weights) > 1 and max(channels) - loudness > _CANCELLED_BY and max(channels) >= SILENT_BELOW:
            weights = np.eye(len(weights), dtype=np.float32)[channels.index(max(channels))]
            samples, loudness, _ = _transcode(path, info, weights, file, start, seconds, max_seconds)
        _require_speech(samples, loudness, start)
        return SpeechFile(file, samples, info, start, loudness)
    except OSError as error:
        file.close()
        raise output_error(Path("the temporary speech"), error) from error
    except BaseException:
        file.close()
        raise


def _transcode(
    path: Path,
    info: AudioInfo,
    weights: NDArray[np.float32],
    file: BinaryIO,
    start: float,
    seconds: float | None,
    max_seconds: float,
) -> tuple[int, float, list[float]]:
    """Write the mix into ``file``; number of samples, its loudness, and each channel's level, the last two in LUFS and dB."""
    file.seek(0)
    file.truncate()
    resampler = soxr.ResampleStream(info.rate, SPEECH_RATE, 1, dtype="float32")
    meter = LoudnessMeter(SPEECH_RATE)
    samples = heard = 0
    energies = np.zeros(len(weights))

    def put(block: NDArray[np.float32]) -> None:
        nonlocal samples
        meter.add(block)
        file.write(block.tobytes())
        samples += len(block)

    for block in decode_audio(path, start, seconds):
        heard += block.shape[1]
        if heard > (max_seconds + _SLACK_SECONDS) * info.rate:
            raise _too_long(None if info.seconds is None else max(info.seconds, heard / info.rate), max_seconds)
        energies += np.square(block, dtype=np.float64).sum(axis=1)
        put(resampler.resample_chunk(weights @ block))
    put(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    file.flush()
    levels = 10 * np.log10(np.maximum(energies / max(heard, 1), 1e-30))
    return samples, meter.loudness(), [float(level) for level in levels]


def _mix_weights(channels: tuple[str, ...]) -> NDArray[np.float32]:
    weights = np.array([_MIX.get(name, 0.5) for name in channels], np.float32)
    if not weights.any():  # nothing but a low-frequency channel
        weights[:] = 1
    return weights / weights.sum()


def _require_speech(samples: int, loudness: float, start: float) -> None:
    if samples == 0 and start > 0:
        raise InfiniteTalkError(
            "start_invalid", f"The recording ends before second {start:g}: choose another start.", param="start"
        )
    length = samples / SPEECH_RATE
    if length < MIN_SECONDS:
        raise InfiniteTalkError(
            "audio_too_short",
            f"There are {length:.2f} s of sound: at least {MIN_SECONDS:g} s of speech are needed.",
            param="audio",
        )
    if loudness < SILENT_BELOW:
        raise InfiniteTalkError(
            "audio_silent",
            "The recording is silent"
            + (f" (loudness {loudness:.0f} LUFS)" if math.isfinite(loudness) else "")
            + ": check the microphone, or choose another part or file.",
            param="audio",
        )


def _too_long(length: float | None, limit: float) -> InfiniteTalkError:
    says = "longer than the limit of" if length is None or length <= limit else f"{_clock(length)} long, the limit is"
    return InfiniteTalkError(
        "audio_too_long",
        f"The recording is {says} {_clock(limit)}: choose a part with start and seconds.",
        param="audio",
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
