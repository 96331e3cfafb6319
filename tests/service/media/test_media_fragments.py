"""Chunks as fragments: encoded once, the same bytes whenever and wherever, playable as they come."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from clips import clicks, flashes, heard, seen, spans
from recordings import wav

from model_store.engine import FPS, Checkpoint, Chunk
from service.media.background import BackgroundEncoder
from service.media.fragments import LEAD_FRAMES, ChunkEncoder, boxes
from service.media.hls import Segment, master_playlist, media_playlist
from service.media.sound import SoundTrack, encode_sound_segments, sound_init_segment

FRAMES = 3 * clips.CHUNK + 1  # the last chunk is a single frame
MARKS = {5, clips.CHUNK - 1, clips.CHUNK + 3, 2 * clips.CHUNK, FRAMES - 1}


def chunk(index: int, first: int, last: int) -> Chunk:
    return Chunk(index, first, flashes(first, last, MARKS), Checkpoint("test", 1, index + 1))


@pytest.mark.parametrize("width", [192, 720])  # 12 and 45 macroblocks: no multiple of what vector code takes at once
def test_the_same_frames_give_the_same_bytes(width: int) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (16, width // 8, 3), dtype=np.uint8)
    frames = np.stack([np.roll(np.repeat(np.repeat(patches, 8, 0), 8, 1), (n, 2 * n), (0, 1)) for n in range(63)])
    assert len({ChunkEncoder(width, 128).encode_chunk(frames, 0, 0) for _ in range(25)}) == 1


def test_every_fragment_stands_alone_and_is_the_same_whenever_it_is_made() -> None:
    encoder = ChunkEncoder(clips.SIDE, clips.SIDE)
    fragments = [encoder.encode_chunk(flashes(first, last, MARKS), first, index) for index, first, last in spans(FRAMES)]
    elsewhere = ChunkEncoder(clips.SIDE, clips.SIDE)
    for index, first, last in reversed(list(spans(FRAMES))):
        assert elsewhere.encode_chunk(flashes(first, last, MARKS), first, index) == fragments[index]
        with av.open(io.BytesIO(elsewhere.init_segment + fragments[index])) as container:
            times = [frame.pts * frame.time_base * FPS for frame in container.decode(video=0)]
        assert times == [number + LEAD_FRAMES for number in range(first, last)]
        with av.open(io.BytesIO(elsewhere.init_segment + fragments[index])) as container:
            keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
        assert keys == [True] + [False] * (last - first - 1)
    assert [name for name, _, _ in boxes(b"".join(fragments))] == ["moof", "mdat"] * len(fragments)
    assert [name for name, _, _ in boxes(encoder.init_segment)] == ["ftyp", "moov"]


def test_any_beginning_of_the_stream_plays(tmp_path: Path) -> None:
    encoder = ChunkEncoder(clips.SIDE, clips.SIDE)
    data = encoder.init_segment
    for index, first, last in spans(FRAMES):
        data += encoder.encode_chunk(flashes(first, last, MARKS), first, index)
        path = tmp_path / "so-far.mp4"
        path.write_bytes(data)
        expected = [(mark + LEAD_FRAMES) / FPS for mark in sorted(MARKS) if mark < last]
        assert seen(str(path)) == pytest.approx(expected)


@pytest.mark.parametrize("size", [(480, 480), (854, 480), (720, 1280), (1920, 1080)])
def test_codec_names_profile_and_level(size: tuple[int, int]) -> None:
    encoder = ChunkEncoder(*size)
    name, detail = encoder.codec.split(".")
    assert name == "avc1"
    assert detail.startswith("64")  # High
    assert int(detail[4:], 16) <= 42  # a level that phones decode


def test_what_cannot_be_encoded_is_refused() -> None:
    for size in ((127, 128), (0, 128), (128, 4000)):
        with pytest.raises(ValueError, match="cannot be encoded"):
            ChunkEncoder(*size)
    with pytest.raises(ValueError, match="expected"):
        ChunkEncoder(128, 128).encode_chunk(np.zeros((2, 64, 128, 3), np.uint8), 0, 0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_growing_playlist_plays_in_sync(rate: int, tmp_path: Path) -> None:
    audio = wav(tmp_path / "voice.wav", clicks(rate, FRAMES * rate // FPS, MARKS), rate)
    encoder = ChunkEncoder(clips.SIDE, clips.SIDE)
    track = SoundTrack(audio)
    borders = [last for _, _, last in spans(FRAMES)]
    sounds = list(encode_sound_segments(track, borders))
    assert sounds == list(encode_sound_segments(track, borders))
    (tmp_path / "init.mp4").write_bytes(encoder.init_segment)
    (tmp_path / "sound-init.mp4").write_bytes(sound_init_segment(track))
    pictures: list[Segment] = []
    voices: list[Segment] = []
    master = tmp_path / "stream.m3u8"
    master.write_text(
        master_playlist(
            "video.m3u8",
            "sound.m3u8",
            video_codec=encoder.codec,
            sound_codec=track.codec,
            width=128,
            height=128,
            bandwidth=500_000,
        )
    )
    for index, first, last in spans(FRAMES):
        (tmp_path / f"v{index}.m4s").write_bytes(encoder.encode_chunk(flashes(first, last, MARKS), first, index))
        (tmp_path / f"a{index}.m4s").write_bytes(sounds[index].data)
        pictures.append(Segment(f"v{index}.m4s", (last - first) / FPS))
        voices.append(Segment(f"a{index}.m4s", sounds[index].seconds))
        # Cut at the same places, to within the AAC frames that a border crosses.
        assert sum(voice.seconds for voice in voices) == pytest.approx(last / FPS, abs=4 * 1024 / rate)
    for name, init, segments in (("video", "init.mp4", pictures), ("sound", "sound-init.mp4", voices)):
        growing = media_playlist(init, segments[:2], longest=3, ended=False)
        whole = media_playlist(init, segments, longest=3, ended=True)
        assert "#EXT-X-ENDLIST" not in growing
        assert "#EXT-X-PLAYLIST-TYPE:EVENT" in growing
        assert growing.replace("EVENT", "VOD") == whole[: len(growing) - len("EVENT") + len("VOD")]  # it only grows
        assert all(segment.seconds <= 3.5 for segment in segments)  # rounded, within the target duration
        (tmp_path / f"{name}.m3u8").write_text(whole)
    pictures_at, clicks_at = seen(str(master)), heard(str(master))
    assert len(pictures_at) == len(MARKS)
    assert clicks_at == pytest.approx(pictures_at, abs=0.003)


def test_rendering_and_encoding_overlap_and_keep_their_order() -> None:
    encoder = ChunkEncoder(clips.SIDE, clips.SIDE)
    rendering = threading.Event()
    delivered: list[tuple[int, bytes]] = []

    def deliver(done: Chunk, fragment: bytes) -> None:
        if done.index == 0:
            # Chunk 0 is only let go once the renderer is at work on a later one.
            assert rendering.wait(5)
        delivered.append((done.index, fragment))

    with BackgroundEncoder(encoder, deliver) as background:
        for span in spans(FRAMES):
            if span[0] == 1:
                rendering.set()
            background.put(chunk(*span))
    assert [index for index, _ in delivered] == [0, 1, 2, 3]
    for (index, fragment), (_, first, last) in zip(delivered, spans(FRAMES), strict=True):
        assert fragment == encoder.encode_chunk(flashes(first, last, MARKS), first, index)


def test_at_most_one_chunk_waits() -> None:
    release = threading.Event()
    put: list[int] = []
    done: list[int] = []

    def deliver(finished: Chunk, _: bytes) -> None:
        assert release.wait(5)
        done.append(finished.index)

    def render() -> None:
        with BackgroundEncoder(ChunkEncoder(clips.SIDE, clips.SIDE), deliver) as background:
            for span in spans(FRAMES):
                background.put(chunk(*span))
                put.append(span[0])

    renderer = threading.Thread(target=render)
    renderer.start()
    deadline = time.monotonic() + 10
    while len(put) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(put) == 2  # one in work, one waiting
    release.set()
    renderer.join(10)
    assert done == [0, 1, 2, 3]


class _LostTheJob(Exception):
    pass


def test_a_failure_behind_stops_the_engine_in_front() -> None:
    failed = threading.Event()

    def deliver(_: Chunk, __: bytes) -> None:
        failed.set()
        raise _LostTheJob

    put: list[int] = []

    def render() -> None:
        with BackgroundEncoder(ChunkEncoder(clips.SIDE, clips.SIDE), deliver) as background:
            for span in spans(10 * clips.CHUNK):
                background.put(chunk(*span))
                put.append(span[0])

    with pytest.raises(_LostTheJob):
        render()
    assert len(put) <= 3

    def render_slowly() -> None:
        with BackgroundEncoder(ChunkEncoder(clips.SIDE, clips.SIDE), deliver) as background:
            background.put(chunk(0, 0, 10))
            assert failed.wait(5)
            for _ in range(500):
                background.check()  # as a listener of the engine does in the middle of a chunk
                time.sleep(0.01)

    failed.clear()
    with pytest.raises(_LostTheJob):
        render_slowly()


def test_a_failure_with_the_last_chunk_is_not_lost() -> None:
    def deliver(_: Chunk, __: bytes) -> None:
        raise _LostTheJob

    with pytest.raises(_LostTheJob), BackgroundEncoder(ChunkEncoder(clips.SIDE, clips.SIDE), deliver) as background:
        background.put(chunk(0, 0, 10))


def test_an_exception_in_front_drops_what_waits() -> None:
    started, release = threading.Event(), threading.Event()
    done: list[int] = []

    def deliver(finished: Chunk, _: bytes) -> None:
        started.set()
        assert release.wait(5)
        done.append(finished.index)

    def render() -> None:
        with BackgroundEncoder(ChunkEncoder(clips.SIDE, clips.SIDE), deliver) as background:
            background.put(chunk(0, 0, 10))
            assert started.wait(5)
            background.put(chunk(1, 10, 20))
            threading.Timer(0.2, release.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render()
    assert done == [0]
    assert not [thread for thread in threading.enumerate() if thread.name == "encode"]
