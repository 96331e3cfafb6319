"""Whatever goes wrong: the documented exit code, one line that names cause and cure, no traceback, nothing left behind."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from model_store import registry
from model_store.errors import InfiniteTalkError
from service.cli.main import main
from tests.engines import PatternEngine

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good picture and a good recording, to work in."""
    import wave  # noqa: PLC0415

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8)).save(tmp_path / "photo.png")
    with wave.open(str(tmp_path / "voice.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((3_000 * rng.standard_normal(32_000)).astype("<i2").tobytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Run:
    """Runs the command line within the test's process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main(words)
        out, err = self._capture.readouterr()
        return Ended(int(ended.value.code or 0), out, err)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(capfd)


def animate(*words: str, photo: str = "photo.png", voice: str = "voice.wav", out: str = "out.mp4") -> tuple[str, ...]:
    return ("animate", photo, voice, "-o", out, "--engine", "pattern", "--size", "128x128", *words)


CASES: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "no such picture": (3, "picture_not_found", animate(photo="missing.png")),
    "a recording for a picture": (3, "picture_unsupported", animate(photo="voice.wav")),
    "an empty picture": (3, "picture_empty", animate(photo="empty")),
    "no such recording": (4, "audio_not_found", animate(voice="missing.wav")),
    "a picture for a recording": (4, "audio_unsupported", animate(voice="photo.png")),
    "a folder for a recording": (4, "audio_unreadable", animate(voice=".")),
    "longer than the limit": (4, "audio_too_long", animate("--max-seconds", "1")),
    "no folder for the output": (5, "output_folder_missing", animate(out="missing/out.mp4")),
    "a folder for the output": (5, "output_not_writable", animate(out="folder.mp4")),
    "nowhere to write": (5, "output_not_writable", animate(out="/proc/out.mp4")),
    "not an MP4": (5, "output_format_unsupported", animate(out="out.avi")),
    "the picture as the output": (5, "output_is_input", animate(photo="photo.mp4", out="photo.mp4")),
    "the recording by another name as the output": (5, "output_is_input", animate(out="link.mp4")),
    "an unknown engine": (2, "engine_unknown", animate("--engine", "nobody")),
    "an engine whose parts are missing": (6, "engine_unavailable", animate("--engine", "partless")),
    "an unknown resolution": (2, "resolution_invalid", (*animate()[:-2], "--resolution", "4k")),
    "a size that is none": (2, "size_invalid", animate("--size", "big")),
    "an odd size": (2, "size_invalid", animate("--size", "129x128")),
    "expressiveness out of range": (2, "expressiveness_invalid", animate("--expressiveness", "3")),
    "a negative seed": (2, "seed_invalid", animate("--seed", "-1")),
    "a start beyond the end": (2, "start_invalid", animate("--start", "100")),
    "no seconds": (2, "seconds_invalid", animate("--seconds", "0")),
    "a word for a number": (2, "usage", animate("--seed", "many")),
    "an unknown option": (2, "usage", animate("--sede", "1")),
    "no output": (2, "usage", ("animate", "photo.png", "voice.wav")),
    "an unknown command": (2, "usage", ("dance",)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("pattern_engine")
def test_a_wrong_wish(name: str, place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, error_code, words = CASES[name]
    (place / "empty").touch()
    (place / "folder.mp4").mkdir()
    (place / "photo.mp4").write_bytes((place / "photo.png").read_bytes())
    (place / "link.mp4").hardlink_to(place / "voice.wav")
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "partless": "no_such_module:Engine"})
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}

    ended = run(*words)
    assert ended.code == code
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ": " in ended.err.removeprefix("error: ")  # cause: cure

    ended = run(*words, "--json")
    assert ended.code == code
    assert ended.err == ""
    error = json.loads(ended.out)["error"]
    assert error["code"] == error_code
    assert set(error) == {"code", "message", "param"}
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


class Failing(PatternEngine):
    """Fails in the middle of the second chunk, with what the test chooses."""

    error: BaseException = ZeroDivisionError("a fault of ours")

    def stream(self, request, checkpoint=None, on_progress=lambda _: None):  # type: ignore[no-untyped-def]
        def fail(progress) -> None:  # type: ignore[no-untyped-def]
            if progress.chunk == 1 and progress.done == 5:
                raise self.error

        return super().stream(request, checkpoint, fail)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Failing]:
    monkeypatch.setattr(registry, "BUILT_IN", {**registry.BUILT_IN, "pattern": f"{__name__}:Failing"})
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Failing.__module__])
    return Failing


@pytest.mark.parametrize(
    ("error", "code", "error_code"),
    [
        (
            InfiniteTalkError("no_face", "No face was found in the picture: use one with a clear face.", param="image"),
            3,
            "no_face",
        ),
        (InfiniteTalkError("gpu_lost", "The GPU was lost: start again."), 6, "gpu_lost"),
        (MemoryError(), 6, "out_of_memory"),
    ],
)
def test_a_failure_in_the_middle(
    error: BaseException,
    code: int,
    error_code: str,
    failing: type[Failing],
    place: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failing, "error", error)
    (place / "out.mp4").write_bytes(b"earlier")
    before = sorted(place.iterdir())
    ended = run(*animate("--json"))
    assert (ended.code, json.loads(ended.out)["error"]["code"]) == (code, error_code)
    assert sorted(place.iterdir()) == before
    assert (place / "out.mp4").read_bytes() == b"earlier"


@pytest.mark.usefixtures("failing")
def test_a_fault_of_ours_is_one_line_and_a_file_with_the_details(
    place: Path, run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = tmp_path_factory.mktemp("logs")
    monkeypatch.setattr("tempfile.tempdir", str(logs))
    ended = run(*animate())
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    (log,) = logs.iterdir()
    assert str(log) in ended.err
    assert "ZeroDivisionError: a fault of ours" in log.read_text()
    for words in (("--debug", *animate()), (*animate(), "--debug")):
        with pytest.raises(ZeroDivisionError):
            main(words)
    assert sorted(path.name for path in place.iterdir()) == ["photo.png", "voice.wav"]


@pytest.mark.usefixtures("pattern_engine")
def test_too_little_space_is_known_before_the_work(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000}))
    ended = run(*animate())
    assert ended.code == 5
    assert "100000" not in ended.err
    assert "0 MB are free" in ended.err
    assert sorted(path.name for path in place.iterdir()) == ["photo.png", "voice.wav"]
