"""The long run behind `make quality`: every sample face speaks the whole minute of timed speech, and is measured.

Prints one markdown table; videos and plots are left in the folder that is named on the command line.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

from service.cli.perform import Wish, perform
from service.evaluate.measure import Measures, evaluate_video
from service.evaluate.plot import save_plot
from service.evaluate.report import rows
from service.evaluate.timings import read_timings

ROOT = Path(__file__).parent.parent.parent
DATA = Path(__file__).parent / "data"
VOICE = DATA / "timed_speech_en.ogg"
TIMINGS = DATA / "timed_speech_en.json"
FACES = (*sorted(DATA.glob("*_face.jpg")), ROOT / "examples" / "astronaut.png")
SIZE = (512, 512)
MARKS = {True: "", False: " (!)", None: ""}


def animate(photo: Path, output: Path, *, start: float = 0.0, seconds: float | None = None) -> None:
    """Make the video as `infinitetalk animate` does."""
    wish = Wish(
        photo=photo,
        voice=VOICE,
        output=output,
        engine="portrait",
        resolution="480p",
        size=SIZE,
        seed=0,
        expressiveness=1.0,
        start=start,
        seconds=seconds,
        max_seconds=3600.0,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        perform(wish, as_json=True)


def main(folder: Path) -> None:
    """Measure all faces; ``(!)`` marks what misses its bar."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Measures] = {}
    for photo in FACES:
        video = folder / f"{photo.stem}.mp4"
        animate(photo, video)
        evaluation = evaluate_video(video, photo, VOICE, read_timings(TIMINGS))
        save_plot(evaluation, video.with_suffix(".png"), f"{photo.name}, {evaluation.measures.seconds:.0f} s")
        found[photo.name] = evaluation.measures
        print(f"{video}, {video.with_suffix('.png')}", file=sys.stderr, flush=True)
    columns = [rows(measures) for measures in found.values()]
    print(f"| measure | good | {' | '.join(found)} |")
    print(f"|---|---|{'---|' * len(found)}")
    for line in zip(*columns, strict=True):
        print(f"| {line[0].name.strip()} | {line[0].good} | {' | '.join(row.value + MARKS[row.passed] for row in line)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
