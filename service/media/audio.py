"""The one way recordings are decoded: what engines hear and what is heard in the video come from the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from model_store.errors import InfiniteTalkError
from service.media import files, sniff

Samples = NDArray[np.float32]
"""Sound of ``[channels, n]`` samples, nominally in -1..1."""

MAX_CHANNELS = 8
MIN_RATE, MAX_RATE = 4_000, 768_000

_BLOCK_SECONDS = 1.0

_LOUDEST_SAMPLE = 100.0
"""Float samples beyond this (+40 dB over full scale) are garbage, or integers stored as floats."""

_BAD_SHARE = 0.1
"""Share of packets, or of samples, that may be unusable before the recording counts as damaged."""

_LEAST_BYTES_A_SECOND = 32
"""Less than any codec writes, silence included: a header that promises more seconds than this is not believed."""

_PLANES = {"u8p": "u1", "s16p": "i2", "s32p": "i4", "s64p": "i8", "fltp": "f4", "dblp": "f8"}

_READABLE = "use a WAV, MP3, FLAC, OGG or M4A recording"
_DAMAGED = "is damaged or cut short: export it again"


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header and first frame say.

    Args:
        kind: the file's kind, for sentences ("an MP3 file").
        codec: FFmpeg's name of the codec (``mp3``, ``pcm_s16le``, ...).
        rate: sample rate in Hz, as decoded.
        layout: FFmpeg's name of the channel layout (``mono``, ``5.1``, ``8 channels``, ...).
        channels: names of the channels in order (``FL``, ``FR``, ...); ``NONE`` where the file does not say.
        seconds: length that the header promises; None when it does not say, or says what cannot be.
    """

    kind: str
    codec: str
    rate: int
    layout: str
    channels: tuple[str, ...]
    seconds: float | None


def probe_audio(path: Path) -> AudioInfo:
    """Look at a recording without decoding more than its first frame.

    Read are WAV, MP3, FLAC, OGG (Vorbis, Opus), M4A/AAC, and the sound track of an MP4 or WebM file, told by content.

    Raises:
        InfiniteTalkError: with ``param="audio"``: ``audio_not_found``, ``audio_unreadable``, ``audio_empty``,
            ``audio_unsupported`` (not a recording, or of a kind that is not read), ``audio_missing`` (a video without sound),
            ``audio_damaged``.
    """
    kind, size = _kind(path)
    with _open(path, kind) as container:
        for frame in _frames(container, kind):
            stream = _stream(container)
            channels = tuple(channel.name for channel in frame.layout.channels)
            if not 1 <= len(channels) <= MAX_CHANNELS:
                raise _error(
                    "audio_unsupported", f"The recording has {len(channels)} channels: mix it down to {MAX_CHANNELS} or fewer."
                )
            if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
                raise _error(
                    "audio_unsupported", f"The recording has {frame.sample_rate} samples a second: export it at 16000 to 48000."
                )
            return AudioInfo(
                kind.name,
                stream.codec_context.name,
                frame.sample_rate,
                frame.layout.name,
                channels,
                _promised_seconds(container, stream, size),
            )
    raise _error("audio_damaged", f"No sound can be decoded from the recording, {kind.name} that {_DAMAGED}.")


def decode_audio(path: Path, start: float = 0.0, seconds: float | None = None) -> Iterator[Samples]:
    """Decode a recording, or a part of it, in blocks of about a second, so that any length needs the same memory.

    Time 0 is the first sample that the decoder puts out: padding that the container declares is left out, a start offset and
    gaps between timestamps are ignored. Samples that are not numbers, or far outside -1..1, become 0; packets that cannot be
    decoded are left out.

    Args:
        path: a file that :func:`probe_audio` accepts.
        start: first second that is wanted.
        seconds: length that is wanted; None is all the rest.

    Yields:
        float32 ``[channels, n]`` at the recording's own rate.

    Raises:
        InfiniteTalkError: as :func:`probe_audio`, and ``audio_damaged`` when more than a tenth of it is unusable.
    """
    kind, _ = _kind(path)
    with _open(path, kind) as container:
        frames = _frames(container, kind)
        first = next(frames, None)
        if first is None:
            return
        rate, layout = first.sample_rate, first.layout.name
        skip = round(start * rate)
        left = None if seconds is None else round(seconds * rate)
        kept: list[Samples] = []
        held = total = bad = 0
        frame: AudioFrame | None = first
        while frame is not None and (left is None or left > 0):
            if frame.sample_rate != rate or frame.layout.name != layout:
                raise _error("audio_damaged", "The recording changes its sample rate or channels midway: export it anew.")
            samples = samples_of(frame)
            wrong = ~(np.abs(samples) <= _LOUDEST_SAMPLE)  # also true for what is not a number
            bad += int(np.count_nonzero(wrong))
            total += samples.size
            samples[wrong] = 0
            if skip:
                dropped = min(skip, samples.shape[1])
                skip -= dropped
                samples = samples[:, dropped:]
            if left is not None:
                samples = samples[:, :left]
                left -= samples.shape[1]
            kept.append(samples)
            held += samples.shape[1]
            if held >= _BLOCK_SECONDS * rate:
                yield np.concatenate(kept, axis=1)
                kept, held = [], 0
            frame = next(frames, None)
        if bad > _BAD_SHARE * total:
            raise _error(
                "audio_damaged",
                f"{100 * bad / total:.0f}% of the recording's samples are not numbers, or far outside -1..1: "
                "export it again as 16-bit.",
            )
        if held:
            yield np.concatenate(kept, axis=1)


def samples_of(frame: AudioFrame) -> Samples:
    """A frame's samples as float32 ``[channels, n]``, a copy."""
    channels = len(frame.layout.channels)
    if frame.format.is_planar:
        # PyAV's own conversion counts planes by a terminator that eight channels leave no room for, and reads beyond them.
        kind = _PLANES[frame.format.name]
        values = np.stack([np.frombuffer(memoryview(plane), kind, frame.samples) for plane in frame.planes[:channels]])
    else:
        values = frame.to_ndarray().reshape(-1, channels).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if np.issubdtype(values.dtype, np.integer):
        return (values / float(2 ** (values.dtype.itemsize * 8 - 1))).astype(np.float32)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is handled as unusable
        return values.astype(np.float32)


def frame_of(samples: Samples, layout: str, rate: int, time: int = 0) -> AudioFrame:
    """The inverse: float32 ``[channels, n]`` as a planar frame that begins at sample ``time``."""
    frame = AudioFrame("fltp", layout, samples.shape[1])
    for plane, channel in zip(frame.planes, samples, strict=False):  # see samples_of
        plane.update(channel.astype(np.float32).tobytes())
    frame.sample_rate = rate
    frame.pts, frame.time_base = time, Fraction(1, rate)
    return frame


def _error(code: str, message: str) -> InfiniteTalkError:
    return InfiniteTalkError(code, message, param="audio")


def _kind(path: Path) -> tuple[sniff.Kind, int]:
    """The file's kind, one that has sound, and its size in bytes."""
    try:
        with files.open_regular(path) as file:
            head = file.read(sniff.HEAD_BYTES)
            size = file.seek(0, 2)
    except FileNotFoundError as error:
        raise _error("audio_not_found", f"There is no recording {path.name!r} at that place: check the path.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise _error("audio_unreadable", f"The recording {path.name!r} cannot be read ({reason}): check the path.") from error
    kind = sniff.sniff(head)
    if kind is sniff.EMPTY:
        raise _error("audio_empty", "The recording is an empty file (0 bytes): upload or export it again.")
    if not kind.demuxer:
        raise _error("audio_unsupported", f"The recording is {kind.name}, which cannot be used: {_READABLE}.")
    return kind, size


def _open(path: Path, kind: sniff.Kind) -> av.container.InputContainer:
    try:
        # The reader is fixed by content, and nothing but plain files may be opened: playlists and references lead nowhere.
        container = av.open(
            f"file:{path.resolve()}",
            "r",
            format=kind.demuxer,
            metadata_errors="ignore",
            options={"protocol_whitelist": "file"},
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _error("audio_damaged", f"The recording is {kind.name} that {_DAMAGED}.") from error
    if not container.streams.audio:
        container.close()
        raise _error("audio_missing", f"The recording is {kind.name} without a sound track: {_READABLE}.")
    return container


def _stream(container: av.container.InputContainer) -> av.AudioStream:
    best = container.streams.best("audio")
    return best if isinstance(best, av.AudioStream) else container.streams.audio[0]


def _frames(container: av.container.InputContainer, kind: sniff.Kind) -> Iterator[AudioFrame]:
    """Decoded frames; packets that cannot be decoded are skipped, ``audio_damaged`` when there are too many of them."""
    stream = _stream(container)
    packets = broken = 0
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
        except (av.FFmpegError, OSError):
            broken += 1  # the file ends in the middle of something
            break
        if packet is None:
            break
        packets += 1
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, av.error.DecoderNotFoundError):
                raise _error("audio_unsupported", f"The recording is {kind.name} with an unknown codec: {_READABLE}.") from error
            broken += 1
            continue
        for frame in frames:
            if isinstance(frame, AudioFrame) and frame.samples:
                yield frame
    if broken > 1 + _BAD_SHARE * packets:
        raise _error(
            "audio_damaged", f"{100 * broken / max(packets, broken):.0f}% of the recording cannot be decoded, it {_DAMAGED}."
        )


def _promised_seconds(container: av.container.InputContainer, stream: av.AudioStream, size: int) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        seconds = container.duration / av.time_base
    else:
        return None
    context = stream.codec_context
    least = _LEAST_BYTES_A_SECOND
    if context.name.startswith("pcm_"):
        least = context.sample_rate * context.channels  # at least a byte a sample
    return seconds if 0 < seconds <= size / least else None
