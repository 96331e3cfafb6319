"""The embedded engine behind the contract: one photo, one voice, a plain CPU.

Every frame is drawn from the photo and from dials that `performance` derives from the speech around that frame and from
the seed. No frame depends on the one before, so a checkpoint needs no more than the number of the next chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import ClassVar

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from model_store.engine import (
    Checkpoint,
    Chunk,
    Engine,
    FrameSource,
    OnProgress,
    PerformanceRequest,
    Plan,
    Progress,
    no_progress,
)
from model_store.errors import InfiniteTalkError
from model_store.portrait.performance import Performer
from model_store.portrait.render import Renderer
from model_store.portrait.scene import prepare

CHUNK_FRAMES = 72
"""Frames a chunk, the same as the production engine hands on: 2.88 s."""

FIRST_CHUNK_FRAMES = 24
"""Frames of the first chunk: short, so that whoever waits for the video sees its beginning soon."""

_ARTISTS = max(1, min(4, os.cpu_count() or 1))
"""Frames drawn at once."""

_LISTEN_POLL = 0.2
"""Seconds between progress calls, and so chances to cancel, while speech is being listened to."""


class PortraitEngine(Engine):
    """See the module."""

    name: ClassVar[str] = "portrait"
    version: ClassVar[int] = 2

    def __init__(self) -> None:
        # Frames are drawn side by side, each on one thread: below that, more threads only wait for each other (measured on two
        # cores: 26 ms a frame at 512x512 with one OpenCV thread, 30 with two; ten times that with two BLAS threads).
        self._limits = threadpool_limits(1, user_api="blas")
        cv2.setNumThreads(1)

    def plan(self, request: PerformanceRequest) -> Plan:
        return Plan(request.width, request.height, request.frames, CHUNK_FRAMES, FIRST_CHUNK_FRAMES)

    def stream(
        self,
        request: PerformanceRequest,
        checkpoint: Checkpoint | None = None,
        on_progress: OnProgress = no_progress,
    ) -> Iterator[Chunk]:
        if request.options:
            raise InfiniteTalkError(
                "option_unknown",
                f"The portrait engine has no option {next(iter(request.options))!r}: leave it out, or choose another engine.",
                param="options",
            )
        if isinstance(request.reference, FrameSource):
            raise InfiniteTalkError(
                "video_not_supported",
                "The portrait engine animates pictures: send a picture, or choose an engine that can dub a video.",
                param="video",
            )
        if checkpoint is not None:
            self.require_own(checkpoint)
        plan = self.plan(request)
        first = checkpoint.next_chunk if checkpoint else 0
        if first >= plan.chunks:
            return
        performer = Performer(request.speech, seed=request.seed, expressiveness=request.expressiveness)
        listener, artists = ThreadPoolExecutor(1, "listen"), ThreadPoolExecutor(_ARTISTS, "draw")
        try:
            heard = listener.submit(performer.perform, *plan.span(first))
            on_progress(Progress("prepare", first, 0, 2))
            scene = prepare(request.reference, request.width, request.height)
            on_progress(Progress("prepare", first, 1, 2))
            renderer = Renderer(scene)
            on_progress(Progress("prepare", first, 2, 2))
            for index in range(first, plan.chunks):
                start, stop = plan.span(index)
                while wait([heard], timeout=_LISTEN_POLL).not_done:
                    on_progress(Progress("listen", index, 0, 1))
                dials = heard.result()
                if index + 1 < plan.chunks:  # while this chunk is drawn, the next is listened to
                    heard = listener.submit(performer.perform, *plan.span(index + 1))
                frames = np.empty((stop - start, request.height, request.width, 3), np.uint8)
                drawn = artists.map(partial(renderer.draw, dials), range(stop - start))
                for frame, picture in enumerate(drawn):
                    frames[frame] = picture
                    on_progress(Progress("perform", index, frame + 1, stop - start))
                yield Chunk(index, start, frames, Checkpoint(self.name, self.version, index + 1))
        finally:
            listener.shutdown(cancel_futures=True)
            artists.shutdown(cancel_futures=True)
