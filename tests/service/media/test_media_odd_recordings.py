"""Recordings of every kind, and everything that is none: each gives speech with the sound in its place, or a clear error."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import recordings
from recordings import burst, encoded, film, vorbis, wav

from model_store.errors import InfiniteTalkError
from service.media.speech import open_speech

pytestmark = pytest.mark.filterwarnings("error")

Make = Callable[[Path], Path]


def _cover_and_junk(path: Path) -> Path:
    """An MP3 behind an ID3 tag of 300 kB, as cover art makes them."""
    encoded(path, burst(44_100, 2), 44_100, "libmp3lame", "mp3")
    size = 300_000
    tag = b"ID3\4\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    path.write_bytes(tag + b"\xab" * size + path.read_bytes())
    return path


def _cut(path: Path, make: Make, share: float) -> Path:
    data = make(path).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def _with_a_few_nans(path: Path) -> Path:
    sound = burst(16_000)
    sound[0, 10_000:10_020] = np.nan
    sound[0, 20_000] = np.inf
    return wav(path, sound, 16_000, "<f4", 3)


def _opposed(path: Path) -> Path:
    sound = burst(44_100, 2)
    sound[1] *= -1
    return wav(path, sound, 44_100)


def _one_side(path: Path) -> Path:
    sound = burst(44_100, 2)
    sound[1] = 0
    return wav(path, sound, 44_100)


def _loud_bass(path: Path) -> Path:
    """5.1 with speech in the centre and a rumble on the low-frequency channel, which must not reach the engine."""
    sound = burst(48_000, 6)
    sound[[0, 1, 4, 5]] = 0
    sound[3] = 0.9 * np.sin(2 * np.pi * 50 * np.arange(sound.shape[1]) / 48_000)
    return encoded(path, sound, 48_000, "flac", "flac", "5.1")


GOOD: dict[str, Make] = {
    "wav 16 bit 16 kHz": lambda path: wav(path, burst(16_000), 16_000),
    "wav 8 kHz": lambda path: wav(path, burst(8_000), 8_000),
    "wav 11025 Hz": lambda path: wav(path, burst(11_025), 11_025),
    "wav mono u8": lambda path: wav(path, burst(22_050), 22_050, "u1"),
    "wav 24 bit stereo": lambda path: wav(path, burst(44_100, 2), 44_100, "<i3"),
    "wav 32 bit": lambda path: wav(path, burst(48_000), 48_000, "<i4"),
    "wav float": lambda path: wav(path, burst(48_000), 48_000, "<f4", 3),
    "wav double": lambda path: wav(path, burst(48_000), 48_000, "<f8", 3),
    "wav 96 kHz": lambda path: wav(path, burst(96_000, 2), 96_000),
    "wav 192 kHz": lambda path: wav(path, burst(192_000), 192_000, "<i3"),
    "wav 7.1": lambda path: wav(path, burst(48_000, 8), 48_000),
    "wav of three channels": lambda path: wav(path, burst(48_000, 3), 48_000),
    "wav mu-law": lambda path: encoded(path, burst(8_000), 8_000, "pcm_mulaw", "wav"),
    "wav of unknown length, as pipes write it": lambda path: wav(path, burst(16_000), 16_000, claimed=0xFFFFFFFF),
    "wav that claims three hours": lambda path: wav(path, burst(16_000), 16_000, claimed=3 * 3600 * 32_000),
    "wav cut short": lambda path: _cut(path, lambda p: wav(p, burst(16_000, seconds=4), 16_000), 0.5),
    "mp3": lambda path: encoded(path, burst(44_100, 2), 44_100, "libmp3lame", "mp3"),
    "mp3 at 22 kHz": lambda path: encoded(path, burst(22_050), 22_050, "libmp3lame", "mp3", bit_rate=48_000),
    "mp3 cut short": lambda path: _cut(
        path, lambda p: encoded(p, burst(44_100, seconds=4), 44_100, "libmp3lame", "mp3"), 0.5
    ),
    "mp3 behind a large tag": _cover_and_junk,
    "flac": lambda path: encoded(path, burst(48_000), 48_000, "flac", "flac"),
    "flac 96 kHz stereo": lambda path: encoded(path, burst(96_000, 2), 96_000, "flac", "flac"),
    "ogg vorbis": lambda path: vorbis(path, burst(44_100, 2), 44_100),
    "ogg opus": lambda path: encoded(path, burst(48_000), 48_000, "libopus", "ogg"),
    "webm opus, as browsers record": lambda path: encoded(path, burst(48_000), 48_000, "libopus", "webm"),
    "m4a": lambda path: encoded(path, burst(44_100, 2), 44_100, "aac", "ipod"),
    "m4a 5.1": lambda path: encoded(path, burst(48_000, 6), 48_000, "aac", "ipod", bit_rate=400_000),
    "m4a 7.1": lambda path: encoded(path, burst(48_000, 8), 48_000, "aac", "ipod", bit_rate=600_000),
    "opus 7.1": lambda path: encoded(path, burst(48_000, 8), 48_000, "libopus", "ogg", bit_rate=600_000),
    "flac 5.1": lambda path: encoded(path, burst(48_000, 6), 48_000, "flac", "flac"),
    "aac without a container": lambda path: encoded(path, burst(44_100), 44_100, "aac", "adts"),
    "the sound of a video": lambda path: film(path, burst(44_100)),
    "very quiet": lambda path: wav(path, burst(16_000, level=0.004), 16_000),
    "samples beyond full scale": lambda path: wav(path, burst(16_000, level=4.0), 16_000, "<f4", 3),
    "a few samples that are not numbers": _with_a_few_nans,
    "sides that cancel each other out": _opposed,
    "one silent side": _one_side,
    "a loud low-frequency channel": _loud_bass,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_is_understood(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # The name says something else than the content.
    path = GOOD[name](tmp_path / "voice.jpg")
    with open_speech(path, max_seconds=60, workdir=tmp_path) as speech:
        assert speech.seconds == pytest.approx(recordings.BURST_SECONDS, abs=0.08)
        sound = speech.read(0, speech.samples)
        assert np.isfinite(sound).all()
        steps = np.sqrt(np.mean(np.square(sound[: len(sound) // 160 * 160].reshape(-1, 160)), axis=1))
        onset = np.flatnonzero(steps > 0.25 * steps.max())[0] * 0.01
        assert onset == pytest.approx(recordings.ONSET, abs=0.07)
        tone = sound[16_000:24_000]
        assert np.argmax(np.abs(np.fft.rfft(tone))) == pytest.approx(440 * len(tone) / 16_000, abs=2)
        # A steady tone at -23 LUFS, whatever its level was.
        assert 20 * np.log10(np.sqrt(np.mean(np.square(tone)))) == pytest.approx(-22.3, abs=1.0)
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")


def _lines(path: Path) -> Path:
    path.write_text("To be, or not to be\n" * 50)
    return path


def _bytes(data: bytes) -> Make:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def _three_hours(path: Path) -> Path:
    """A true three hours, as a file with a hole: its header, and a tone at the beginning."""
    wav(path, burst(16_000), 16_000, claimed=3 * 3600 * 32_000)
    os.truncate(path, 44 + 3 * 3600 * 32_000)
    return path


def _lying_flac(path: Path) -> Path:
    """STREAMINFO says three hours, and the size does not contradict it; the frames end after 20 seconds."""
    encoded(path, np.random.default_rng(0).normal(0, 0.1, (1, 20 * 48_000)), 48_000, "flac", "flac")
    data = bytearray(path.read_bytes())
    total = 3 * 3600 * 48_000
    data[21] = data[21] & 0xF0 | total >> 32
    data[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
    path.write_bytes(data)
    return path


def _holes(path: Path) -> Path:
    """A FLAC file most of whose frames are overwritten."""
    encoded(path, np.random.default_rng(0).normal(0, 0.1, (1, 4 * 48_000)), 48_000, "flac", "flac")
    data = bytearray(path.read_bytes())
    for place in range(10_000, len(data) - 2_000, 2_000):
        data[place : place + 1_500] = bytes(1_500)
    path.write_bytes(data)
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD: dict[str, tuple[str, Make]] = {
    "nothing there": ("audio_not_found", lambda path: path),
    "a folder": ("audio_unreadable", _folder),
    "a pipe nobody writes to": ("audio_unreadable", _pipe),
    "zero bytes": ("audio_empty", _bytes(b"")),
    "a text": ("audio_unsupported", _lines),
    "random bytes": ("audio_unsupported", _bytes(np.random.default_rng(5).bytes(50_000))),
    "a PDF": ("audio_unsupported", _bytes(b"%PDF-1.7\n" + b"x" * 999)),
    "a MIDI file": ("audio_unsupported", _bytes(b"MThd\0\0\0\6\0\1\0\1\0\x60" + b"\0" * 99)),
    "a PNG": ("audio_unsupported", _bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))),
    "an AIFF": ("audio_unsupported", lambda path: encoded(path, burst(16_000), 16_000, "pcm_s16be", "aiff")),
    "a playlist": ("audio_unsupported", _bytes(b"#EXTM3U\n/etc/passwd\n")),
    "a tag and garbage": (
        "audio_damaged",
        _bytes(b"ID3\4\0\0\0\0\1\0" + np.random.default_rng(6).integers(0, 128, 20_000, np.uint8).tobytes()),
    ),
    "a WAV header alone": ("audio_damaged", lambda path: wav(path, burst(16_000)[:, :0], 16_000)),
    "half a WAV header": ("audio_damaged", _bytes(b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0")),
    "a WAV of 0 Hz": ("audio_damaged", lambda path: wav(path, burst(16_000), 0)),
    "a FLAC header alone": (
        "audio_damaged",
        lambda path: _cut(path, lambda p: encoded(p, burst(48_000), 48_000, "flac", "flac"), 0.002),
    ),
    "an M4A without its index": (
        "audio_damaged",
        lambda path: _cut(path, lambda p: encoded(p, burst(44_100), 44_100, "aac", "ipod"), 0.8),
    ),
    "an OGG cut in its headers": (
        "audio_damaged",
        lambda path: _cut(path, lambda p: vorbis(p, burst(44_100), 44_100), 0.01),
    ),
    "a FLAC full of holes": ("audio_damaged", _holes),
    "nothing but NaN": ("audio_damaged", lambda path: wav(path, np.full((1, 32_000), np.nan), 16_000, "<f4", 3)),
    "integers stored as floats": ("audio_damaged", lambda path: wav(path, burst(16_000) * 32_767, 16_000, "<f4", 3)),
    "a video without sound": ("audio_missing", lambda path: film(path, None)),
    "digital silence": ("audio_silent", lambda path: wav(path, np.zeros((1, 32_000)), 16_000)),
    "the last bit of noise": (
        "audio_silent",
        lambda path: wav(path, np.random.default_rng(0).normal(0, 3e-5, (2, 32_000)), 16_000),
    ),
    "a tenth of a second": ("audio_too_short", lambda path: wav(path, 0.4 * np.ones((1, 1_600)), 16_000)),
    "one sample": ("audio_too_short", lambda path: wav(path, 0.4 * np.ones((1, 1)), 16_000)),
    "three hours": ("audio_too_long", _three_hours),
    "a FLAC that claims three hours": ("audio_too_long", _lying_flac),
    "a minute and two seconds": (
        "audio_too_long",
        lambda path: encoded(path, burst(16_000, seconds=62), 16_000, "libmp3lame", "mp3", bit_rate=48_000),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, make = BAD[name]
    path = make(tmp_path / "voice.wav")
    began = time.monotonic()
    with pytest.raises(InfiniteTalkError) as raised:
        open_speech(path, max_seconds=60, workdir=tmp_path)
    assert time.monotonic() - began < 10  # nothing hangs, and three hours are not decoded to be measured
    error = raised.value
    assert (error.code, error.param) == (code, "audio")
    cause, cure = error.message.split(": ", 1)
    assert cause
    assert cure.endswith(".")
    assert "\n" not in error.message
    assert str(tmp_path) not in error.message
    assert sorted(tmp_path.iterdir()) == ([path] if path.exists() else [])
    assert capfd.readouterr() == ("", "")


def test_a_part_of_a_long_recording_is_within_the_limit(tmp_path: Path) -> None:
    path = _three_hours(tmp_path / "long.wav")
    with open_speech(path, max_seconds=60, start=0.5, seconds=1.0) as speech:
        assert speech.samples == 16_000
        assert np.abs(speech.read(0, 160)).max() > 0.01  # the tone begins at once


@pytest.mark.parametrize(
    ("start", "seconds", "code"),
    [
        (-1.0, None, "start_invalid"),
        (float("nan"), None, "start_invalid"),
        (100.0, None, "start_invalid"),
        (0.0, 0.0, "seconds_invalid"),
        (0.0, float("inf"), "seconds_invalid"),
        (0.0, 61.0, "seconds_invalid"),
        (1.9, None, "audio_too_short"),
        (0.0, 0.4, "audio_silent"),
    ],
)
def test_an_impossible_part_is_refused(start: float, seconds: float | None, code: str, tmp_path: Path) -> None:
    path = wav(tmp_path / "voice.wav", burst(16_000), 16_000)
    with pytest.raises(InfiniteTalkError) as raised:
        open_speech(path, max_seconds=60, start=start, seconds=seconds)
    assert raised.value.code == code
