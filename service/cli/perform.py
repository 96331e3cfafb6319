"""From a wish to a finished file: check, perform, encode beside it, join, and tell how it goes."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from model_store.engine import FPS, Chunk, Engine, PerformanceRequest, Picture, Plan, frame_size
from model_store.errors import InfiniteTalkError
from model_store.registry import create_engine
from service.cli.progress import ProgressLine
from service.media.background import BackgroundEncoder
from service.media.files import output_error, require_space, require_writable
from service.media.fragments import ChunkEncoder
from service.media.picture import load_picture
from service.media.source import VideoSource, is_video
from service.media.speech import open_speech
from service.media.video import write_video

_BITS_A_PIXEL = 0.3
"""Generous upper bound of what the encoder needs for one pixel of one frame."""

_SOUND_BYTES_A_SECOND = 32_000


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; see `infinitetalk animate --help`."""

    photo: Path
    voice: Path
    output: Path
    engine: str
    resolution: str
    size: tuple[int, int] | None
    seed: int
    expressiveness: float
    start: float
    seconds: float | None
    max_seconds: float
    prompt: str = ""
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def perform(wish: Wish, *, as_json: bool) -> None:
    """Make the video and print a line, or a JSON object, about it.

    Raises:
        InfiniteTalkError: whatever of the inputs, the output's place, the engine or the machine stands in the way. Nothing
            is left behind then, and an earlier file of the output's name is as it was.
    """
    began = time.monotonic()
    _check_output(wish)
    with ExitStack() as stack:
        reference = _reference(wish.photo, stack)
        engine = _engine(wish.engine)
        stack.callback(engine.close)
        speech = stack.enter_context(
            open_speech(wish.voice, max_seconds=wish.max_seconds, start=wish.start, seconds=wish.seconds)
        )
        height, width = (reference.frame_at(0) if isinstance(reference, VideoSource) else reference).shape[:2]
        width, height = wish.size or frame_size((width, height), wish.resolution)
        request = PerformanceRequest(
            reference,
            speech,
            width,
            height,
            seed=wish.seed,
            prompt=wish.prompt,
            expressiveness=wish.expressiveness,
            options=wish.options,
        )
        plan = engine.plan(request)
        require_space(wish.output.parent, _space(plan))
        with Spool(wish.output) as spool, ProgressLine(plan, quiet=as_json) as progress:
            frames = _run(engine, request, plan, spool, progress, wish)
    elapsed = time.monotonic() - began
    result = {
        "status": "completed",
        "output": str(wish.output),
        "engine": engine.name,
        "width": plan.width,
        "height": plan.height,
        "frames": frames,
        "seconds": frames / FPS,
        "seed": wish.seed,
        "elapsed_seconds": round(elapsed, 2),
    }
    if as_json:
        print(json.dumps(result), flush=True)
    else:
        print(
            f"{wish.output}: {frames / FPS:.1f} s, {plan.width}x{plan.height}, made in {elapsed:.1f} s. "
            "It is marked as AI-generated; show it only with the consent of the person in it.",
            flush=True,
        )


class Spool:
    """Fragments on their way into the video: a file without a name beside the output, gone with the process however that ends."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._sizes: list[int] = []
        try:
            self._file: BinaryIO = tempfile.TemporaryFile(dir=output.parent)  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise output_error(output, error) from error

    def add(self, fragment: bytes) -> None:
        """Append one fragment; ``no_space`` when it does not fit."""
        try:
            self._file.write(fragment)
            self._file.flush()
        except OSError as error:
            raise output_error(self._output, error) from error
        self._sizes.append(len(fragment))

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        for size in self._sizes:
            yield self._file.read(size)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _check_output(wish: Wish) -> None:
    if wish.output.suffix.lower() not in {".mp4", ".m4v"}:
        raise InfiniteTalkError(
            "output_format_unsupported",
            f"Only MP4 is written: name the output {wish.output.stem or 'talking'}.mp4.",
            param="output",
        )
    require_writable(wish.output)
    for source in (wish.photo, wish.voice):
        if wish.output.exists() and source.exists() and os.path.samefile(wish.output, source):
            raise InfiniteTalkError(
                "output_is_input", f"The output would replace {str(source)!r}: choose another name.", param="output"
            )


def _reference(path: Path, stack: ExitStack) -> Picture | VideoSource:
    """The picture, or the video if the file is one by its content; the stack closes it."""
    return stack.enter_context(VideoSource(path)) if is_video(path) else load_picture(path)


def _engine(name: str) -> Engine:
    try:
        return create_engine(name)
    except ImportError as error:
        raise InfiniteTalkError(
            "engine_unavailable",
            f"The engine {name!r} cannot run here, {error.name or 'a part of it'} is missing: `infinitetalk doctor` tells more.",
        ) from error


def _space(plan: Plan) -> int:
    seconds = plan.frames / FPS
    picture = plan.width * plan.height * plan.frames * _BITS_A_PIXEL / 8
    return int(2 * picture + _SOUND_BYTES_A_SECOND * seconds) + 1_000_000  # the fragments, and the video made of them


def _run(engine: Engine, request: PerformanceRequest, plan: Plan, spool: Spool, progress: ProgressLine, wish: Wish) -> int:
    encoder = ChunkEncoder(plan.width, plan.height)

    def deliver(chunk: Chunk, fragment: bytes) -> None:
        spool.add(fragment)
        progress.encoded(chunk)

    engine.load(progress, request.options)
    with BackgroundEncoder(encoder, deliver) as background:
        for chunk in engine.stream(request, on_progress=progress):
            background.put(chunk)
    progress.stage("join")
    return write_video(
        encoder.init_segment,
        spool,
        wish.voice,
        wish.output,
        start=wish.start,
        comment=f"Made with Infinite Talk ({' '.join([engine.name, *_variant(wish)])}).",
    )


def _variant(wish: Wish) -> list[str]:
    return [str(wish.options["variant"])] if "variant" in wish.options else []
