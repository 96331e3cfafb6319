"""The original recording as AAC: its own sample rate and channels, placed on the picture's clock to the sample."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.packet import Packet

from model_store.engine import FPS
from service.media.audio import AudioInfo, Samples, decode_audio, frame_of, probe_audio, samples_of
from service.media.fragments import LEAD_FRAMES, MOVFLAGS, at_decode_time

AAC_SAMPLES = 1024
"""Samples a channel in one AAC frame, and how many the encoder puts before the first of ours (priming)."""

# What AAC can say without a channel table of its own, which browsers read poorly.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)

LEAST_CHUNK_FRAMES = 16
"""Frames of a chunk from which its sound segment certainly holds AAC frames: five of them last 0.64 s at 8 kHz."""

_BITS_A_SAMPLE = 2.0
_LEAST_BITS, _MOST_BITS = 48_000, 128_000
"""Bit rate of one channel."""


class SoundTrack:
    """A recording, or a part of it, on its way to AAC-LC.

    Rate and channels are the recording's own where AAC has them (8 to 96 kHz, 1 to 8 channels); another rate is raised to the
    next that it has, an unusual channel layout is mixed to the usual one of as many channels.

    Args:
        path: the recording.
        start: second at which it begins to be heard.
    """

    def __init__(self, path: Path, start: float = 0.0) -> None:
        self._path = path
        self._start = start
        self._info: AudioInfo = probe_audio(path)
        self.rate = next((rate for rate in _RATES if rate >= self._info.rate), _RATES[-1])
        self.layout = _LAYOUTS[len(self._info.channels)]

    @property
    def codec(self) -> str:
        """The track's codec for playlists and MIME types (RFC 6381)."""
        return "mp4a.40.2"

    @property
    def bit_rate(self) -> int:
        """Bits a second of the encoded track."""
        return len(self._info.channels) * int(min(max(_BITS_A_SAMPLE * self.rate, _LEAST_BITS), _MOST_BITS))

    def configure(self, context: AudioCodecContext) -> None:
        """Set an AAC encoder up for this track."""
        context.sample_rate = self.rate
        context.layout = self.layout
        context.format = "fltp"
        context.bit_rate = self.bit_rate
        context.time_base = Fraction(1, self.rate)

    def blocks(self) -> Iterator[Samples]:
        """The recording at :attr:`rate` in :attr:`layout`, float32 ``[channels, n]`` in -1..1; ends where the recording ends."""
        source = decode_audio(self._path, self._start)
        if self._info.rate != self.rate or not self._is_plain():
            source = self._converted(source)
        for block in source:
            yield np.clip(block, -1, 1)

    def _is_plain(self) -> bool:
        # Files that do not say where their channels belong have them in the usual order; "side" and "back" differ in name only.
        return "NONE" in self._info.channels or self._info.layout.replace("(side)", "") == self.layout

    def _converted(self, source: Iterator[Samples]) -> Iterator[Samples]:
        layout = self._info.layout if "NONE" not in self._info.channels else self.layout
        resampler = AudioResampler("fltp", self.layout, self.rate)
        time = 0
        for block in source:
            for converted in resampler.resample(frame_of(block, layout, self._info.rate, time)):
                yield samples_of(converted)
            time += block.shape[1]
        for converted in resampler.resample(None):
            yield samples_of(converted)


class SoundEncoder:
    """Encodes a :class:`SoundTrack` step by step, as far as the picture has come.

    Args:
        track: what to encode.
        context: an AAC encoder that ``track.configure`` has set up.
    """

    def __init__(self, track: SoundTrack, context: AudioCodecContext) -> None:
        self._track = track
        self._context = context
        self._blocks = track.blocks()
        self._held: Samples = np.zeros((len(context.layout.channels), 0), np.float32)
        self._position = 0

    def advance(self, frame: int) -> Iterator[Packet[AudioStream]]:
        """AAC frames that lie wholly before video frame ``frame``. Times count from the first sample; priming is at -1024."""
        stop = self._sample(frame)
        while self._position + AAC_SAMPLES <= stop:
            yield from self._context.encode(self._next(AAC_SAMPLES))

    def finish(self, frame: int) -> Iterator[Packet[AudioStream]]:
        """All the rest, ending exactly where video frame ``frame`` would begin; silence where the recording is shorter."""
        yield from self.advance(frame)
        rest = self._sample(frame) - self._position
        if rest:
            yield from self._context.encode(self._next(rest))
        yield from self._context.encode(None)

    def _sample(self, frame: int) -> int:
        return frame * self._track.rate // FPS  # whole: FPS divides every rate that AAC has

    def _next(self, count: int) -> AudioFrame:
        while self._held.shape[1] < count:
            block = next(self._blocks, None)
            if block is None:
                block = np.zeros((len(self._held), self._track.rate), np.float32)
            self._held = np.concatenate([self._held, block], axis=1)
        frame = frame_of(self._held[:, :count], self._track.layout, self._track.rate, self._position)
        self._held = self._held[:, count:]
        self._position += count
        return frame


@dataclass(frozen=True)
class SoundSegment:
    """One fragment (``moof`` + ``mdat``) of the sound, and its length for the playlist."""

    data: bytes
    seconds: float


def sound_init_segment(track: SoundTrack) -> bytes:
    """``ftyp`` + ``moov`` of the sound, to be played before any :class:`SoundSegment`."""
    return _mux(track, [])


def encode_sound_segments(track: SoundTrack, borders: Sequence[int]) -> Iterator[SoundSegment]:
    """The sound of every chunk as a segment of its own track, for playback while the pictures are still made.

    The segments share the pictures' clock, which begins :data:`~service.media.fragments.LEAD_FRAMES` early: the encoder's
    priming frame falls into that lead (at low sample rates it does not fit, and is left out). Cuts fall on AAC frames, at
    most three of them before the border. The same recording and borders give the same bytes, so segments already stored
    may be skipped when a job goes on elsewhere.

    Args:
        track: the recording.
        borders: for each chunk, the number of the frame after its last (``plan.span(k)[1]``); chunks but the last have at least
            :data:`LEAST_CHUNK_FRAMES` frames.
    """
    context = AudioCodecContext.create("aac", "w")
    track.configure(context)
    encoder = SoundEncoder(track, context)
    lead = LEAD_FRAMES * track.rate // FPS
    for index, (border, previous) in enumerate(zip(borders, [0, *borders], strict=False)):
        if index + 1 == len(borders):
            packets = list(encoder.finish(border))
        elif border - previous < LEAST_CHUNK_FRAMES:
            raise ValueError(f"chunk {index} has {border - previous} frames, fewer than {LEAST_CHUNK_FRAMES}")
        else:
            packets = list(encoder.advance(border))
        packets = [packet for packet in packets if _time(packet) + lead >= 0]
        seconds = sum(packet.duration or 0 for packet in packets) / track.rate
        start = _time(packets[0])
        yield SoundSegment(at_decode_time(_mux(track, packets, index + 1), start + lead), seconds)


def _time(packet: Packet[AudioStream]) -> int:
    if packet.pts is None:
        raise RuntimeError("the AAC encoder gave a packet without a time")
    return packet.pts


def _mux(track: SoundTrack, packets: Sequence[Packet[AudioStream]], sequence: int = 1) -> bytes:
    """A fragment of encoded packets without its init segment, or the init segment alone when there are none."""
    buffer = io.BytesIO()
    options = {"movflags": MOVFLAGS, "fragment_index": str(sequence), "use_editlist": "0"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream("aac", rate=track.rate)
        track.configure(stream.codec_context)
        container.start_encoding()
        header = buffer.tell()
        start = _time(packets[0]) if packets else 0
        for packet in packets:
            packet.stream = stream
            packet.pts = packet.dts = _time(packet) - start
            container.mux(packet)
    return buffer.getvalue()[header:] if packets else buffer.getvalue()
