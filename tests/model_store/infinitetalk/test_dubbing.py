"""Source videos: read by time at any frame rate, and their cuts, which begin new takes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numbered_video
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
av = pytest.importorskip("av")

import staging  # noqa: E402

from model_store.engine import Checkpoint, FrameSource, Picture  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.engine import InfiniteTalkEngine  # noqa: E402
from model_store.infinitetalk.scenes import SHORTEST_SCENE, SceneCuts  # noqa: E402
from model_store.infinitetalk.takes import TAKE_FRAMES, Take, overlap, takes  # noqa: E402
from service.media.source import VideoSource  # noqa: E402

RATES = {"24": Fraction(24), "29.97": Fraction(30000, 1001), "30": Fraction(30), "60": Fraction(60)}
TEN_MINUTES = 600.0
STRETCHES = [(0.0, 4.0), (298.0, 303.0), (590.0, TEN_MINUTES)]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("films")
    for name, rate in RATES.items():
        numbered_video.write(folder / f"{name}.mp4", rate, STRETCHES)
    return {name: folder / f"{name}.mp4" for name in RATES}


def shown(rate: Fraction, time: float) -> int:
    return int(time * rate + 1e-6)


@pytest.mark.parametrize("name", RATES)
def test_ten_minutes_keep_time_at_every_frame_rate(films: dict[str, Path], name: str) -> None:
    rate = RATES[name]
    with VideoSource(films[name]) as source:
        assert isinstance(source, FrameSource)
        assert source.seconds == pytest.approx(TEN_MINUTES, abs=float(2 / rate))
        for begin, end in STRETCHES:
            for frame in range(int(begin * 25) + 1, int(end * 25) - 1):
                assert numbered_video.number_in(source.frame_at(frame / 25)) == shown(rate, frame / 25)


def test_times_may_jump_and_go_beyond_the_ends(films: dict[str, Path]) -> None:
    rate = RATES["29.97"]
    with VideoSource(films["29.97"]) as source:
        for time in (599.0, 1.3, 300.5, 300.1, 0.0, 592.2, 592.16):
            assert numbered_video.number_in(source.frame_at(time)) == shown(rate, time)
        last = shown(rate, TEN_MINUTES - 1 / rate)
        assert abs(numbered_video.number_in(source.frame_at(1e6)) - last) <= 1
        assert numbered_video.number_in(source.frame_at(2.0)) == shown(rate, 2.0)


def test_webm_is_read_too(tmp_path: Path) -> None:
    numbered_video.write(tmp_path / "film.webm", Fraction(25), [(0.0, 1.0)], codec="libvpx")
    with VideoSource(tmp_path / "film.webm") as source:
        assert [numbered_video.number_in(source.frame_at(time)) for time in (0.0, 0.04, 0.4, 0.99)] == [0, 1, 10, 24]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "video_unsupported"),
        (b"RIFF....WAVEfmt ", "video_unsupported"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 99, "video_damaged"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "film.mp4").write_bytes(content)
    with pytest.raises(InfiniteTalkError) as raised:
        VideoSource(tmp_path / "film.mp4")
    assert (raised.value.code, raised.value.param) == (code, "video")


def test_a_missing_video_and_one_cut_short(tmp_path: Path, films: dict[str, Path]) -> None:
    with pytest.raises(InfiniteTalkError, match="check the path") as raised:
        VideoSource(tmp_path / "none.mp4")
    assert raised.value.code == "video_not_found"
    data = films["24"].read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(InfiniteTalkError) as raised:
        VideoSource(tmp_path / "half.mp4")
    assert raised.value.code == "video_damaged"


class Logged:
    """A source that tells which frame it gave at which time."""

    def __init__(self, source: VideoSource) -> None:
        self._source = source
        self.seconds = source.seconds
        self.log: list[tuple[float, int]] = []

    def frame_at(self, seconds: float) -> Picture:
        picture = self._source.frame_at(seconds)
        self.log.append((seconds, numbered_video.number_in(picture)))
        return picture


def test_the_engine_keeps_time_with_its_source_ten_minutes_on(films: dict[str, Path]) -> None:
    name = "29.97"
    request = staging.request(int(TEN_MINUTES * 25))
    early = next(iter(InfiniteTalkEngine().stream(staging.request(100))))
    late = 207  # begins at 596.52 s
    checkpoint = Checkpoint("infinitetalk", InfiniteTalkEngine.version, late, early.checkpoint.state)
    with VideoSource(films[name]) as source:
        logged = Logged(source)
        stream = InfiniteTalkEngine().stream(replace(request, reference=logged), checkpoint)
        chunk = next(iter(stream))
    assert chunk.start == 81 + (late - 1) * 72
    reference = (chunk.start - 9) / 25
    assert any(time == pytest.approx(reference) for time, _ in logged.log)
    for time, number in logged.log:
        if time > 590.1:
            assert 0 <= time - number / RATES[name] < 1 / RATES[name] + 1e-6


def test_cuts_are_found_and_movement_is_none() -> None:
    film = staging.Film(cuts=(2.0, 4.4))
    cuts = SceneCuts(lambda frame: film.frame_at(frame / 25), 200)
    assert cuts.within(0, 81, 0) == [50]
    assert cuts.within(81, 153, 50) == [110]
    assert cuts.within(153, 200, 110) == []
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 256, (64, 640, 3), dtype=np.uint8).repeat(4, 0)
    panning = SceneCuts(lambda frame: wide[:, 6 * frame : 6 * frame + 256], 60)
    assert panning.within(0, 60, 0) == []


def test_a_flash_is_no_scene() -> None:
    film = staging.Film(cuts=(2.0, 2.12))
    cuts = SceneCuts(lambda frame: film.frame_at(frame / 25), 100)
    assert len(cuts.within(0, 81, 0)) == 1
    assert SHORTEST_SCENE > 3


@pytest.mark.parametrize("cuts", [[], [100], [81], [83], [90, 120], [152]])
def test_takes_cover_a_chunk_and_begin_anew_at_cuts(cuts: list[int]) -> None:
    found = takes(81, 153, 0, cuts)
    assert found[0].start == 81
    assert found[-1].stop == 153
    assert all(earlier.stop == later.start for earlier, later in itertools.pairwise(found))
    for take in found:
        assert take.overlap == (0 if take.start in cuts else 9)
        assert take.stop <= take.first + TAKE_FRAMES
    assert found[0].first == (81 if 81 in cuts else 72)


def test_a_scene_of_few_frames_is_continued_from_as_many_as_it_has() -> None:
    assert [overlap(made) for made in (0, 1, 4, 5, 8, 9, 500)] == [0, 1, 1, 5, 5, 9, 9]
    assert takes(81, 153, 79, []) == [Take(81, 153, 1)]


def test_a_cut_changes_what_is_seen_at_its_frame_and_resumes_exactly() -> None:
    """One cut in the middle of chunk 1, one so near its end that the next chunk continues from a single frame."""
    film = staging.Film(cuts=(110 / 25, 151 / 25))
    request = staging.request(160, film)
    chunks = list(InfiniteTalkEngine().stream(request))
    assert [len(chunk.frames) for chunk in chunks] == [81, 72, 7]
    frames = np.concatenate([chunk.frames for chunk in chunks])
    colours = frames.reshape(160, -1, 3).mean(1)
    for first, last in ((0, 110), (110, 151), (151, 160)):
        wanted = film.frame_at(first / 25).reshape(-1, 3).mean(0)
        assert np.abs(colours[first:last] - wanted).max() < 25, "a scene has another scene's colours"
    for done, chunk in enumerate(chunks[:-1], start=1):
        rest = list(InfiniteTalkEngine().stream(request, Checkpoint.from_bytes(chunk.checkpoint.to_bytes())))
        assert [r.frames.tobytes() for r in rest] == [c.frames.tobytes() for c in chunks[done:]]
        assert [r.checkpoint for r in rest] == [c.checkpoint for c in chunks[done:]]
