"""The engine process: the only one that decodes media and holds a model. Started by a worker, it performs one order at a time.

====================  =============================================================================================
order                 answers
====================  =============================================================================================
``load``              ``progress``, then ``loaded``: the first job will find the engine warm
``perform``           ``begin`` once the engine is loaded, ``planned`` (with the initialisation of picture and sound),
                      ``progress`` often, ``chunk`` (fragment, sound, checkpoint and, of the first, a thumbnail), ``done``
``finish``            ``progress``, then ``finished``: the MP4 lies where it was ordered
``more``              none: it may go one chunk further ahead of what has been committed
``stop``              ``stopped``, in place of ``done`` or ``finished``
====================  =============================================================================================

``error`` takes the place of the last answer when the input is at fault. Everything else that goes wrong ends the process, and the
worker starts another. When the worker is gone, so is this process.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from model_store.engine import FPS, Checkpoint, Chunk, Engine, PerformanceRequest, Progress, frame_size
from model_store.errors import InfiniteTalkError
from model_store.registry import create_engine
from service.logs import start_logging
from service.media.background import BackgroundEncoder
from service.media.fragments import ChunkEncoder
from service.media.picture import load_picture, thumbnail
from service.media.sound import SoundTrack, encode_sound_segments, sound_init_segment
from service.media.source import VideoSource
from service.media.speech import open_speech
from service.media.video import write_video
from service.memory import bounded_memory
from service.wire import Message, read_message

AHEAD = 2
"""Chunks that may be made and not yet committed: one on its way to the store while the next is made."""

MEDIA_MEMORY, FINISH_MEMORY = 2 << 30, 1 << 30
"""Bytes that decoding both files may take, and putting an MP4 together, which holds a chunk at a time."""

_PROGRESS_SECONDS = 0.25

_SOUND_SLACK_SECONDS = 0.5
"""A sound segment is cut at AAC frames, up to three of them before its picture's border."""


class _StopWorkError(Exception):
    pass


class EngineChild:
    """Performs the orders that come through ``orders`` and answers through ``answers``."""

    def __init__(self, orders: BinaryIO, answers: BinaryIO) -> None:
        self._orders, self._answers = orders, answers
        self._next: list[Message] = []
        self._news = threading.Condition()
        self._answering = threading.Lock()
        self._stop = False
        self._credit = 0
        self._engine: Engine | None = None
        self._reported = (0.0, "")

    def run(self) -> None:
        """Serve until the worker is gone."""
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._next)
                order = self._next.pop(0)
            try:
                if order.kind == "load":
                    self._ready(order.fields["engine"], {})
                    self._answer("loaded")
                elif order.kind == "perform":
                    engine = self._ready(order.fields["engine"], order.fields["options"])
                    self._answer("begin")
                    with bounded_memory(engine.working_memory):
                        self._perform(engine, order.fields, order.parts)
                    self._answer("done")
                else:
                    with bounded_memory(FINISH_MEMORY):
                        self._finish(order.fields)
                    self._answer("finished")
            except _StopWorkError:
                self._answer("stopped")
            except InfiniteTalkError as error:
                self._answer("error", {"code": error.code, "message": error.message, "param": error.param})

    def _listen(self) -> None:
        while message := read_message(self._orders):
            with self._news:
                if message.kind == "stop":
                    self._stop = True
                elif message.kind == "more":
                    self._credit += 1
                else:
                    self._stop, self._credit = False, AHEAD
                    self._next.append(message)
                self._news.notify_all()
        os._exit(0)  # the worker is gone, and whatever is being made is no one's

    def _answer(self, kind: str, fields: dict[str, Any] | None = None, *parts: bytes) -> None:
        with self._answering:
            self._answers.write(Message(kind, fields or {}, parts).to_bytes())
            self._answers.flush()

    def _check(self) -> None:
        if self._stop:
            raise _StopWorkError

    def _progress(self, progress: Progress) -> None:
        self._check()
        now, (then, stage) = time.monotonic(), self._reported
        if progress.stage != stage or now - then >= _PROGRESS_SECONDS or progress.done == progress.total:
            self._reported = (now, progress.stage)
            self._answer(
                "progress",
                {"stage": progress.stage, "chunk": progress.chunk, "done": progress.done, "total": progress.total},
            )

    def _ready(self, name: str, options: Mapping[str, str | int | float | bool]) -> Engine:
        if self._engine is None or self._engine.name != name:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
            self._progress(Progress("load", 0, 0, 1))
            engine = create_engine(name)
            engine.load(self._progress, options)
            self._engine = engine
        return self._engine

    def _perform(self, engine: Engine, order: dict[str, Any], parts: tuple[bytes, ...]) -> None:
        self._progress(Progress("prepare", 0, 0, 1))
        audio, workdir = Path(order["audio"]), Path(order["workdir"])
        with ExitStack() as opened:
            with bounded_memory(MEDIA_MEMORY):
                file = Path(order["reference"])
                reference = opened.enter_context(VideoSource(file)) if order["reference_kind"] == "video" else load_picture(file)
                shown = reference.frame_at(0) if isinstance(reference, VideoSource) else reference
                speech = opened.enter_context(
                    open_speech(audio, max_seconds=order["max_seconds"], seconds=order["seconds"], workdir=workdir)
                )
            width, height = _size(order, (shown.shape[1], shown.shape[0]))
            request = PerformanceRequest(
                reference=reference,
                speech=speech,
                width=width,
                height=height,
                seed=order["seed"],
                prompt=order["prompt"],
                expressiveness=order["expressiveness"],
                options=order["options"],
            )
            plan = engine.plan(request)
            encoder, track = ChunkEncoder(width, height), SoundTrack(audio)
            self._answer(
                "planned",
                {
                    "width": plan.width,
                    "height": plan.height,
                    "frames": plan.frames,
                    "chunks": plan.chunks,
                    "longest_seconds": max(plan.first_chunk_frames, plan.chunk_frames) / FPS + _SOUND_SLACK_SECONDS,
                    "video_codec": encoder.codec,
                    "sound_codec": track.codec,
                },
                encoder.init_segment,
                sound_init_segment(track),
            )
            checkpoint = Checkpoint.from_bytes(parts[0]) if parts else None
            sounds = encode_sound_segments(track, [plan.span(index)[1] for index in range(plan.chunks)])
            for _ in range(checkpoint.next_chunk if checkpoint else 0):
                self._check()
                next(sounds)
            spent: dict[int, float] = {}

            def deliver(chunk: Chunk, fragment: bytes) -> None:
                sound = next(sounds)
                first = (thumbnail(chunk.frames[0]),) if chunk.index == 0 else ()
                self._answer(
                    "chunk",
                    {
                        "index": chunk.index,
                        "start": chunk.start,
                        "frames": len(chunk.frames),
                        "sound_seconds": sound.seconds,
                        "seconds": spent.pop(chunk.index),
                        "on_gpu": _on_gpu(),
                    },
                    fragment,
                    sound.data,
                    chunk.checkpoint.to_bytes(),
                    *first,
                )
                self._wait_for_credit()

            with BackgroundEncoder(encoder, deliver) as background:
                since = time.monotonic()
                for chunk in engine.stream(request, checkpoint, self._progress):
                    spent[chunk.index] = time.monotonic() - since
                    background.put(chunk)
                    self._check()
                    since = time.monotonic()

    def _wait_for_credit(self) -> None:
        with self._news:
            self._credit -= 1
            self._news.wait_for(lambda: self._credit > 0 or self._stop)
        self._check()

    def _finish(self, order: dict[str, Any]) -> None:
        files = sorted(Path(order["fragments"]).iterdir())

        def fragments() -> Iterator[bytes]:
            for done, file in enumerate(files):
                self._progress(Progress("finish", len(files), done, len(files)))
                yield file.read_bytes()

        write_video(Path(order["init"]).read_bytes(), fragments(), Path(order["audio"]), Path(order["output"]))


def _size(order: dict[str, Any], reference: tuple[int, int]) -> tuple[int, int]:
    """The frame: the size that was asked for, or the named resolution in the aspect that was asked for or the reference has."""
    if order["size"]:
        width, height = order["size"]
        return width, height
    aspect = order["aspect_ratio"]
    return frame_size((aspect[0] * 1000, aspect[1] * 1000) if aspect else reference, order["resolution"])


def _on_gpu() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch and torch.cuda.is_initialized())


def main() -> None:
    """Serve the worker at the other end of standard input and output."""
    start_logging("json" if sys.argv[1:] == ["json"] else "text", logging.WARNING)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    EngineChild(sys.stdin.buffer, answers).run()


if __name__ == "__main__":
    main()
