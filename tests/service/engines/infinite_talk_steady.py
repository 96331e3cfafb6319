"""A small deterministic engine: cheap frames at a chosen pace, whose every pixel depends on all frames before."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from model_store.engine import (
    FPS,
    Checkpoint,
    Chunk,
    Engine,
    FrameSource,
    OnProgress,
    PerformanceRequest,
    Picture,
    Plan,
    Progress,
    no_progress,
)  # fmt: skip
from model_store.errors import InfiniteTalkError

CHUNK_FRAMES = 16


def _shown(request: PerformanceRequest, frame: int) -> Picture:
    """The reference at a frame of the output, in its size."""
    whole = request.reference.frame_at(frame / FPS) if isinstance(request.reference, FrameSource) else request.reference
    rows = np.linspace(0, whole.shape[0] - 1, request.height).astype(int)
    columns = np.linspace(0, whole.shape[1] - 1, request.width).astype(int)
    return whole[rows][:, columns]


class SteadyEngine(Engine):
    """Options: ``frame_seconds`` (pace), ``crash_at`` (chunk at which the process dies), ``stubborn`` (ignores stops),
    ``allocate_gib`` (memory it asks for)."""

    name: ClassVar[str] = "steady"
    version: ClassVar[int] = 1

    def plan(self, request: PerformanceRequest) -> Plan:
        unknown = set(request.options) - {"frame_seconds", "crash_at", "stubborn", "allocate_gib"}
        if unknown:
            raise InfiniteTalkError("option_unknown", f"There is no option {unknown.pop()!r}.", param="options")
        return Plan(request.width, request.height, request.frames, chunk_frames=CHUNK_FRAMES, first_chunk_frames=CHUNK_FRAMES)

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        plan = self.plan(request)
        index, state = 0, request.seed
        if checkpoint is not None:
            self.require_own(checkpoint)
            index = checkpoint.next_chunk
            (state,) = struct.unpack("<Q", checkpoint.state)
        pace = float(request.options.get("frame_seconds", 0.0))
        np.ones(int(request.options.get("allocate_gib", 0)) << 27)
        for number in range(index, plan.chunks):
            if request.options.get("crash_at") == number:
                os._exit(86)
            start, stop = plan.span(number)
            frames = np.empty((stop - start, request.height, request.width, 3), np.uint8)
            for position in range(stop - start):
                if not request.options.get("stubborn"):
                    on_progress(Progress("perform", number, position, stop - start))
                time.sleep(pace)
                state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
                frames[position] = np.roll(_shown(request, start + position), state >> 60, axis=1)
                frames[position, : 8 + (state >> 59), :8] = state >> 56
            yield Chunk(number, start, frames, Checkpoint(self.name, self.version, number + 1, struct.pack("<Q", state)))
