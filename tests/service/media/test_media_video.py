"""The finished MP4: in sync to the end, equal in length, tagged, and either whole or not there."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from clips import clicks, flashes, heard, seen, spans
from recordings import burst, encoded, wav

from model_store.engine import FPS
from model_store.errors import InfiniteTalkError
from service.media.audio import samples_of
from service.media.fragments import ChunkEncoder, boxes
from service.media.video import read_video_frames, write_video


def made(folder: Path, audio: Path, frames: int, marks: set[int], **options: float) -> Path:
    """A clip of ``frames`` frames that flashes at the marks, with the recording from ``start`` on."""
    encoder = ChunkEncoder(clips.SIDE, clips.SIDE)
    fragments = (encoder.encode_chunk(flashes(first, last, marks), first, index) for index, first, last in spans(frames))
    output = folder / "clip.mp4"
    assert write_video(encoder.init_segment, fragments, audio, output, **options) == frames
    return output


def lengths(path: Path) -> dict[str, float]:
    with av.open(str(path)) as container:
        return {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}


def test_ten_minutes_stay_in_sync(tmp_path: Path) -> None:
    frames, rate = 600 * FPS + 7, 22_050
    marks = {12, *range(250, frames, 251), frames - 2}
    # The recording ends inside the last frame, as recordings do.
    audio = wav(tmp_path / "voice.wav", clicks(rate, frames * rate // FPS - 400, marks), rate)
    video = made(tmp_path, audio, frames, marks)
    expected = [mark / FPS for mark in sorted(marks)]
    assert seen(str(video)) == pytest.approx(expected, abs=1e-6)
    assert heard(str(video)) == pytest.approx(expected, abs=0.002)
    assert lengths(video) == pytest.approx({"video": frames / FPS, "audio": frames / FPS}, abs=1e-6)


@pytest.mark.parametrize(
    ("codec", "container", "rate"),
    [
        ("aac", "ipod", 44_100),
        ("libmp3lame", "mp3", 44_100),
        ("libopus", "ogg", 48_000),
        ("flac", "flac", 96_000),
        ("pcm_mulaw", "wav", 8_000),
    ],
)
def test_sound_stays_in_place_whatever_the_recordings_padding(codec: str, container: str, rate: int, tmp_path: Path) -> None:
    frames, start, marks = 200, 0.52, {30, 100, 190}
    later = {mark + 13 for mark in marks}  # 0.52 s are 13 frames
    audio = encoded(tmp_path / "voice", clicks(rate, 220 * rate // FPS, later), rate, codec, container)
    video = made(tmp_path, audio, frames, marks, start=start)
    # Lossy codecs smear a click by a few milliseconds.
    assert heard(str(video)) == pytest.approx([mark / FPS for mark in sorted(marks)], abs=0.006)
    assert lengths(video)["audio"] == pytest.approx(frames / FPS, abs=1e-4)


@pytest.mark.parametrize(
    ("rate", "channels", "expected"),
    [
        (44_100, 2, (44_100, 2)),
        (48_000, 6, (48_000, 6)),
        (48_000, 8, (48_000, 8)),
        (11_000, 1, (11_025, 1)),
        (192_000, 1, (96_000, 1)),
        (48_000, 3, (48_000, 3)),
    ],
)
def test_sound_keeps_its_rate_and_channels(rate: int, channels: int, expected: tuple[int, int], tmp_path: Path) -> None:
    audio = wav(tmp_path / "voice.wav", burst(rate, channels), rate)
    video = made(tmp_path, audio, 60, set())  # longer than the recording: the rest is silence
    with av.open(str(video)) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, len(stream.layout.channels)) == ("aac", *expected)
        sound = np.concatenate([samples_of(frame) for frame in container.decode(audio=0)], axis=1)
    low = {3, 5} if channels == 6 else {3} if channels == 8 else set()  # encoders cut the low-frequency channel at 120 Hz
    level = np.sqrt(np.mean(np.square(sound[:, expected[0] : expected[0] * 3 // 2]), axis=1))
    loud = [index for index in range(channels) if index not in low]
    assert level[loud] == pytest.approx(0.4 / np.sqrt(2), rel=0.1)
    assert np.abs(sound[:, int(expected[0] * 2.1) :]).max() < 1e-3


def test_the_file_is_what_was_promised(tmp_path: Path) -> None:
    audio = wav(tmp_path / "voice.wav", burst(16_000), 16_000)
    video = made(tmp_path, audio, 50, set())
    data = video.read_bytes()
    names = [name for name, _, _ in boxes(data)]
    assert names.index("moov") < names.index("mdat")
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.profile, context.pix_fmt, stream.average_rate) == ("h264", "High", "yuv420p", FPS)
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert "AI-generated" in container.metadata["title"]
        for tag in ("comment", "description"):
            assert "synthetic media" in container.metadata[tag]
            assert "compositeWithTrainedAlgorithmicMedia" in container.metadata[tag]
    assert made(tmp_path, audio, 50, set()).read_bytes() == data


def test_colours_come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    patches = rng.integers(20, 236, (8, 8, 3), dtype=np.uint8)
    frame = np.repeat(np.repeat(patches, 16, 0), 16, 1)
    encoder = ChunkEncoder(128, 128)
    audio = wav(tmp_path / "voice.wav", burst(16_000), 16_000)
    output = tmp_path / "clip.mp4"
    write_video(encoder.init_segment, [encoder.encode_chunk(np.stack([frame] * 25), 0, 0)], audio, output)
    shown = list(read_video_frames(output))
    assert len(shown) == 25
    middle = shown[12].reshape(8, 16, 8, 16, 3)[:, 6:10, :, 6:10].mean((1, 3))
    # A decoder that took the matrix for BT.601 would be off by up to 30 levels.
    np.testing.assert_allclose(middle, patches, atol=5)


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """A disk that is full soon: no file may grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    audio = wav(tmp_path / "voice.wav", burst(48_000, 2, seconds=8), 48_000)
    (tmp_path / "clip.mp4").write_bytes(b"earlier")
    for size in (1_000, 30_000, 150_000):
        with pytest.raises(InfiniteTalkError) as raised, files_limited_to(size):
            made(tmp_path, audio, 200, set())
        assert (raised.value.code, raised.value.param) == ("no_space", "output")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "voice.wav"]
        assert (tmp_path / "clip.mp4").read_bytes() == b"earlier"


class _Stop(BaseException):
    pass


def test_whatever_stops_the_writing_leaves_nothing(tmp_path: Path) -> None:
    audio = wav(tmp_path / "voice.wav", burst(16_000), 16_000)
    encoder = ChunkEncoder(clips.SIDE, clips.SIDE)

    def fragments() -> Iterator[bytes]:
        yield encoder.encode_chunk(flashes(0, 30, set()), 0, 0)
        raise _Stop

    with pytest.raises(_Stop):
        write_video(encoder.init_segment, fragments(), audio, tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == [audio]


def test_a_damaged_video_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"not a video" * 99, b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"):
        (tmp_path / "video.mp4").write_bytes(content)
        with pytest.raises(InfiniteTalkError) as raised:
            list(read_video_frames(tmp_path / "video.mp4"))
        assert raised.value.code == "video_damaged"
