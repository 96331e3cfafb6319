"""Recordings of every kind that is read, made on the spot."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

Sound = NDArray[np.float64]
"""``[channels, n]`` in -1..1."""

ONSET = 0.5
"""Second at which :func:`burst` begins to sound."""

BURST_SECONDS = 2.0


def burst(rate: int, channels: int = 1, seconds: float = BURST_SECONDS, level: float = 0.4) -> Sound:
    """Half a second of silence, then a tone of 440 Hz, the same in all channels."""
    time = np.arange(round(rate * seconds)) / rate
    tone = level * np.sin(2 * np.pi * 440 * time) * (time >= ONSET)
    return np.tile(tone, (channels, 1))


def wav(path: Path, sound: Sound, rate: int, code: str = "<i2", tag: int = 1, claimed: int | None = None) -> Path:
    """A WAV file: ``code`` is the samples' numpy type, ``<i3`` for 24 bits; ``claimed`` overrides the header's data size."""
    flat = sound.T.reshape(-1)
    if code == "<i3":
        words = np.clip(flat * 2**23, -(2**23), 2**23 - 1).astype("<i4")
        data = words.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        width = 3
    else:
        kind = np.dtype(code)
        width = kind.itemsize
        if kind.kind == "u":
            data = np.clip(flat * 127 + 128, 0, 255).astype(kind).tobytes()
        elif kind.kind == "i":
            top = 2 ** (8 * width - 1)
            data = np.clip(flat * top, -top, top - 1).astype(kind).tobytes()
        else:
            data = flat.astype(kind).tobytes()
    channels = len(sound)
    size = len(data) if claimed is None else claimed
    header = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width, channels * width, 8 * width)
    path.write_bytes(
        b"RIFF" + struct.pack("<I", min(2**32 - 1, size + 36)) + b"WAVEfmt " + struct.pack("<I", 16) + header
        + b"data" + struct.pack("<I", size) + data
    )  # fmt: skip
    return path


def encoded(path: Path, sound: Sound, rate: int, codec: str, container: str, layout: str = "", bit_rate: int = 128_000) -> Path:
    """A compressed recording, by FFmpeg's names of codec and container."""
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(sound)]
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout, stream.bit_rate = layout, bit_rate
        resampler = av.AudioResampler(stream.codec_context.format, layout, rate, frame_size=0)
        for place in range(0, sound.shape[1], 1000):
            block = np.ascontiguousarray(sound[:, place : place + 1000].T.astype(np.float32)).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, "flt", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, place, Fraction(1, rate)
            for ready in resampler.resample(frame):
                file.mux(stream.encode(ready))
        file.mux(stream.encode(None))
    return path


def vorbis(path: Path, sound: Sound, rate: int) -> Path:
    """OGG Vorbis, which FFmpeg's wheel reads but does not write well."""
    with path.open("wb") as file:
        soundfile.write(file, sound.T, rate, format="OGG", subtype="VORBIS")
    return path


def film(path: Path, sound: Sound | None, rate: int = 44_100) -> Path:
    """A two-second MP4 video, with a sound track or without."""
    with av.open(str(path), "w", format="mp4") as file:
        picture = file.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        track = None
        if sound is not None:
            track = file.add_stream("aac", rate=rate)
            track.layout = "mono"
        for _ in range(50):
            file.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")))
        file.mux(picture.encode(None))
        if track is not None and sound is not None:
            for place in range(0, sound.shape[1], 1024):
                part = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound[:, place : place + 1024].astype(np.float32)), "fltp", "mono"
                )
                part.sample_rate, part.pts, part.time_base = rate, place, Fraction(1, rate)
                file.mux(track.encode(part))
            file.mux(track.encode(None))
    return path
