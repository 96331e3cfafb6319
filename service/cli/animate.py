"""`infinitetalk animate`: what it asks for; `service.cli.perform` does it."""

from __future__ import annotations

import re
from json import loads
from pathlib import Path
from typing import Annotated

import typer

from model_store.errors import InfiniteTalkError
from service.cli.app import Json, app

DEFAULT_MAX_SECONDS = 3600.0
"""The longest speech that is performed unless `--max-seconds` says otherwise."""

_EPILOG = (
    "[bold]Exit codes[/bold]: 0 done, 2 usage, 3 picture, 4 recording, 5 output or space, 6 engine or machine, 130 Ctrl-C, "
    "143 terminated, 1 a fault of ours.\n\n"
    "[bold]Consent[/bold]: animate only people who agreed to it. Every video says in its title and comment that it is synthetic."
)


@app.command(epilog=_EPILOG)
def animate(
    photo: Annotated[
        Path,
        typer.Argument(
            metavar="PHOTO",
            help="The picture: JPEG, PNG or WebP, one clear face. For the infinitetalk engine also a video to dub.",
        ),
    ],
    voice: Annotated[
        Path, typer.Argument(metavar="VOICE", help="The recording: WAV, MP3, FLAC, OGG or M4A, any rate and channels.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT.mp4", help="Where the video goes.")],
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="What performs; `infinitetalk doctor` lists what can run here.")
    ] = "portrait",
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the infinitetalk engine: 4-step, 8-step, base, or tiny-random, whose picture is noise."
        ),
    ] = None,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="What the scene is, for engines that read one.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Another setting of the engine, such as steps=6; may be repeated."),
    ] = None,
    resolution: Annotated[
        str, typer.Option(metavar="480p|720p|1080p", help="Length of the frame's short side; the photo's own aspect is kept.")
    ] = "720p",
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Exact frame size instead, such as 512x512; the photo is cropped to it.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same video.")] = 0,
    expressiveness: Annotated[
        float, typer.Option(metavar="0..2", help="0 speaks with a still head, 1 is natural, 2 theatrical.")
    ] = 1.0,
    start: Annotated[float, typer.Option(metavar="SECONDS", help="Where in the recording to begin.")] = 0.0,
    seconds: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="How much of it to perform; all, if not given.")
    ] = None,
    max_seconds: Annotated[float, typer.Option(metavar="SECONDS", help="Refuse longer speech than this.")] = DEFAULT_MAX_SECONDS,
    json: Json = False,
) -> None:
    """Make PHOTO speak VOICE: the whole frame performs, and the video carries the original sound.

    [dim]infinitetalk animate photo.jpg voice.mp3 -o talking.mp4 --resolution 720p[/dim]
    """
    from service.cli.perform import Wish, perform  # noqa: PLC0415 - numpy, FFmpeg and the engine load only when there is work

    perform(
        Wish(
            photo=photo,
            voice=voice,
            output=output,
            engine=engine,
            resolution=resolution,
            size=None if size is None else _parse_size(size),
            seed=seed,
            expressiveness=expressiveness,
            start=start,
            seconds=seconds,
            max_seconds=max_seconds,
            prompt=prompt,
            options=_parse_options(variant, option or []),
        ),
        as_json=json,
    )


def _parse_options(variant: str | None, pairs: list[str]) -> dict[str, str | int | float | bool]:
    """Values are read as numbers, true or false where they look so, else as text; the engine judges them."""
    options: dict[str, str | int | float | bool] = {} if variant is None else {"variant": variant}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InfiniteTalkError(
                "option_invalid", f"{pair!r} is no setting: write --option name=value, such as steps=6.", param="options"
            )
        try:
            value = loads(text)
        except ValueError:
            value = text
        options[name] = value if isinstance(value, str | int | float | bool) else text
    return options


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
    if match is None:
        raise InfiniteTalkError("size_invalid", f"{text!r} is not a frame size: write it as WxH, such as 512x512.", param="size")
    return int(match[1]), int(match[2])
