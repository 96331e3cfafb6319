"""`infinitetalk evaluate`: measures a talking-portrait video with judges that took no part in making it (`service.evaluate`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.app import Json, app


@app.command()
def evaluate(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="The talking portrait: MP4, 25 frames a second.")],
    photo: Annotated[Path, typer.Option(metavar="P", help="The picture it was made from.")],
    audio: Annotated[Path, typer.Option(metavar="A", help="The recording it was made from.")],
    visemes: Annotated[
        Path | None, typer.Option(metavar="TIMINGS.json", help="When each viseme of the recording is spoken; judges the lips.")
    ] = None,
    start: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Where in the recording the video begins, if it performs only a part of it."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Also draw the evaluation.")] = None,
    json: Json = False,
) -> None:
    r"""Measure VIDEO: lips against the words, likeness, head, blinks, motion, steadiness.

    Needs the extra "quality" (pip install 'infinite-talk\[quality]'), whose 68-landmark model is for non-commercial use only.
    """
    import json as encoder  # noqa: PLC0415 - the option has the name, and numpy and dlib load only when there is work

    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from service.evaluate.measure import evaluate_video  # noqa: PLC0415
    from service.evaluate.plot import save_plot  # noqa: PLC0415
    from service.evaluate.report import as_json, table  # noqa: PLC0415
    from service.evaluate.timings import read_timings  # noqa: PLC0415
    from service.media.files import require_writable  # noqa: PLC0415

    if plot is not None:
        require_writable(plot)
    timings = None if visemes is None else read_timings(visemes)
    watcher = Console(stderr=True)
    with Progress(console=watcher, transient=True, disable=json or not watcher.is_terminal) as progress:
        task = progress.add_task("watching", total=None)
        found = evaluate_video(
            video,
            photo,
            audio,
            timings,
            start=start,
            on_frame=lambda done, total: progress.update(task, completed=done, total=total),
        )
    measures = found.measures
    title = f"{video.name}: {measures.seconds:.1f} s, {measures.width}x{measures.height}"
    if plot is not None:
        save_plot(found, plot, title)
    if json:
        print(encoder.dumps(as_json(measures)), flush=True)
    else:
        Console().print(table(measures, title))
