"""`infinitetalk animate --engine infinitetalk`: a photo or a video in, settings by name, an MP4 out."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numbered_video
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from service.cli import main
from service.media.video import read_video_frames

EXAMPLES = Path(__file__).parents[3] / "examples"
VOICE = EXAMPLES / "en_allison.wav"


def animate(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    with pytest.raises(SystemExit) as ended:
        main.main(["animate", *words, "--engine", "infinitetalk", "--json"])
    code = ended.value.code
    return (0 if code is None else int(code)), json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The command sets handlers for its own process, which here is the tests'."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    numbered_video.write(tmp_path / "film.mp4", Fraction(30), [(0.0, 1.0)])
    return tmp_path / "film.mp4"


def test_a_photo_and_a_video_become_videos(tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reference in (EXAMPLES / "astronaut.png", film):
        output = tmp_path / f"{reference.stem}-talks.mp4"
        settings = ("--variant", "tiny-random", "--option", "steps=1", "--option", "negative_prompt=a storm", "--prompt", "sun")
        code, result = animate(
            str(reference), str(VOICE), "-o", str(output), "--seconds", "0.4", "--size", "128x160", *settings, capsys=capsys
        )
        assert (code, result["status"], result["frames"]) == (0, "completed", 10)
        assert [frame.shape for frame in read_video_frames(output)] == [(160, 128, 3)] * 10


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        (("--variant", "5-step"), "variant_unknown"),
        (("--option", "steps"), "option_invalid"),
        (("--variant", "tiny-random", "--option", "steps=none"), "option_invalid"),
        (("--variant", "tiny-random", "--option", "hue=1"), "option_unknown"),
    ],
)
def test_settings_of_no_sense_are_usage_errors(
    tmp_path: Path, settings: tuple[str, ...], code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, output = EXAMPLES / "astronaut.png", tmp_path / "out.mp4"
    status, result = animate(str(photo), str(VOICE), "-o", str(output), "--seconds", "0.4", *settings, capsys=capsys)
    error = result["error"]
    assert isinstance(error, dict)
    assert (status, error["code"], error["param"]) == (2, code, "options")
    assert not output.exists()
