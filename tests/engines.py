"""A small deterministic engine for tests of everything around engines, and the command line with it on board.

``python -m tests.engines animate ...`` is ``infinitetalk animate ...`` with ``--engine pattern`` available.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

import cv2
import numpy as np

from model_store import registry
from model_store.engine import (
    SAMPLES_PER_FRAME,
    Checkpoint,
    Chunk,
    Engine,
    Frames,
    OnProgress,
    PerformanceRequest,
    Plan,
    Progress,
    no_progress,
)
from model_store.errors import InfiniteTalkError


class PatternEngine(Engine):
    """The picture, drifting, with a bar as high as the speech is loud, and speckles from the seed.

    Its drift accumulates from frame to frame, so that a resume that forgot the state would show.
    Option ``frame_seconds`` makes it slow.
    """

    name: ClassVar[str] = "pattern"
    version: ClassVar[int] = 1
    frame_seconds: ClassVar[float] = 0.0

    def plan(self, request: PerformanceRequest) -> Plan:
        return Plan(request.width, request.height, request.frames, chunk_frames=24, first_chunk_frames=16)

    def stream(
        self,
        request: PerformanceRequest,
        checkpoint: Checkpoint | None = None,
        on_progress: OnProgress = no_progress,
    ) -> Iterator[Chunk]:
        plan = self.plan(request)
        index, drift = 0, 0.0
        if checkpoint is not None:
            self.require_own(checkpoint)
            index = checkpoint.next_chunk
            (drift,) = struct.unpack("<d", checkpoint.state)
        if not isinstance(request.reference, np.ndarray):
            raise InfiniteTalkError("reference_unsupported", "The pattern engine takes pictures only.", param="image")
        on_progress(Progress("prepare", index, 0, 1))
        base = cv2.resize(request.reference, (plan.width, plan.height), interpolation=cv2.INTER_AREA)
        for chunk in range(index, plan.chunks):
            first, last = plan.span(chunk)
            frames: Frames = np.empty((last - first, plan.height, plan.width, 3), np.uint8)
            for number in range(first, last):
                time.sleep(self.frame_seconds)
                sound = request.speech.read(number * SAMPLES_PER_FRAME, (number + 1) * SAMPLES_PER_FRAME)
                loudness = float(np.sqrt(np.mean(np.square(sound))))
                drift += loudness * request.expressiveness
                frame = np.roll(base, round(10 * drift), axis=1)
                frame[plan.height - round(min(1.0, 4 * loudness) * plan.height) :, : plan.width // 8] = 255
                speckles = np.random.default_rng([request.seed, number]).integers(0, 32, (plan.height // 16, 16, 3))
                frame[: plan.height // 16, :16] = speckles
                frames[number - first] = frame
                on_progress(Progress("perform", chunk, number - first + 1, last - first))
            yield Chunk(chunk, first, frames, Checkpoint(self.name, self.version, chunk + 1, struct.pack("<d", drift)))


def register(set_attribute: Callable[[object, str, object], None] = setattr) -> str:
    """Make the engine known to the registry under its name, which is returned."""
    set_attribute(registry, "BUILT_IN", {**registry.BUILT_IN, PatternEngine.name: "tests.engines:PatternEngine"})
    return PatternEngine.name


if __name__ == "__main__":
    from service.cli.main import main

    register()
    main(sys.argv[1:])
