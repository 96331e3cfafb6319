"""`infinitetalk evaluate`: what it says, and how it refuses what it cannot measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from model_store.engine import FPS, Picture
from service.cli.main import main
from service.evaluate import face_reader
from service.media.picture import load_picture
from tests.quality.table import DATA, TIMINGS, VOICE

PHOTO = DATA / "lady_agnew_face.jpg"

Answer = tuple[int, dict[str, object]]
Evaluate = Callable[..., Answer]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Evaluate:
    def run(video: Path, *options: str | Path, photo: Path = PHOTO, audio: Path = VOICE) -> Answer:
        words = ["evaluate", str(video), "--photo", str(photo), "--audio", str(audio), *map(str, options), "--json"]
        with pytest.raises(SystemExit) as ended:
            main(words)
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out)

    return run


def write(path: Path, frames: list[Picture], rate: int = FPS) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def still(seconds: float = 2.0) -> list[Picture]:
    picture = np.asarray(cv2.resize(load_picture(PHOTO), (400, 400), interpolation=cv2.INTER_CUBIC), np.uint8)
    return [picture] * round(seconds * FPS)


@pytest.mark.usefixtures("judge")
def test_a_still_picture_is_the_person_and_nothing_more(evaluate: Evaluate, tmp_path: Path) -> None:
    code, found = evaluate(write(tmp_path / "still.mp4", still()), "--start", "44.05", "--visemes", TIMINGS)
    assert code == 0
    assert found["frames"] == 50
    assert found["identity_mean"] < 0.15  # type: ignore[operator]
    assert found["longest_still"] == pytest.approx(49 / FPS)
    assert {"longest still stretch", "least motion in 5 s", "head yaw/pitch/roll std"} <= set(found["warnings"])  # type: ignore[call-overload]


@pytest.mark.usefixtures("judge")
def test_without_timings_lips_are_not_judged(evaluate: Evaluate, tmp_path: Path) -> None:
    _, found = evaluate(write(tmp_path / "still.mp4", still(1.0)), "--start", "1")
    assert found["closures"] is None


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (lambda path: path, [], "video_not_found"),
        (lambda path: path.write_bytes(b"no video") and path, [], "video_damaged"),
        (lambda path: write(path, still(), rate=30), ["--start", "0"], "video_rate"),
        (lambda path: write(path, still()), [], "lengths_differ"),
        (lambda path: write(path, still()), ["--start", "59.5"], "lengths_differ"),
        (lambda path: write(path, [np.full((300, 300, 3), 90, np.uint8)] * 30), ["--start", "1"], "no_face"),
        (lambda path: write(path, still(1.0)), ["--start", "1", "--visemes", PHOTO], "timings_unreadable"),
        (lambda path: write(path, still(1.0)), ["--start", "1", "--visemes", "none.json"], "timings_unreadable"),
        (lambda path: write(path, still(1.0)), ["--start", "1", "--plot", "/nowhere/plot.png"], "output_folder_missing"),
    ],
)
def test_refusals(
    evaluate: Evaluate, tmp_path: Path, make: Callable[[Path], Path], options: list[str | Path], expected: str
) -> None:
    code, answer = evaluate(make(tmp_path / "video.mp4"), *options)
    assert code != 0
    assert answer["error"]["code"] == expected  # type: ignore[index]


@pytest.mark.parametrize(
    "visemes",
    ['{"visemes": []}', '{"visemes": [{"viseme": "PP", "start": 2, "end": 1}]}', '{"visemes": [{"viseme": "PP"}]}', "[]"],
)
def test_timings_that_cannot_be(evaluate: Evaluate, tmp_path: Path, visemes: str) -> None:
    timings = tmp_path / "timings.json"
    timings.write_text(visemes)
    _, answer = evaluate(tmp_path / "video.mp4", "--visemes", timings)
    assert answer["error"]["code"] == "timings_unreadable"  # type: ignore[index]


def test_missing_packages_are_named_with_the_cure(evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    face_reader._networks.cache_clear()
    monkeypatch.setattr(face_reader, "find_spec", lambda name: None)
    _, answer = evaluate(write(tmp_path / "still.mp4", still(1.0)))
    assert answer["error"]["code"] == "quality_extra_missing"  # type: ignore[index]
    assert "infinite-talk[quality]" in answer["error"]["message"]  # type: ignore[index]
