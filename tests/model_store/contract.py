"""What every engine promises (``model_store.engine``), as checks for any engine and any request.

Use :func:`check_all`, or the single checks where an engine needs them apart. A request should make three chunks or more; frames
are compared byte for byte. Every check raises AssertionError with the promise that was broken.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from model_store.engine import Checkpoint, Chunk, Engine, PerformanceRequest, Progress
from model_store.errors import InfiniteTalkError

STAGES = ("load", "prepare", "listen", "perform")

MakeEngine = Callable[[], Engine]


class _Enough(Exception):
    """Raised by a listener, as the worker does to cancel."""


def digest(chunk: Chunk) -> str:
    """What a chunk is, in short: place, pixels and checkpoint."""
    hasher = sha256(f"{chunk.index} {chunk.start} {chunk.frames.shape} ".encode())
    hasher.update(np.ascontiguousarray(chunk.frames).data)
    hasher.update(chunk.checkpoint.to_bytes())
    return hasher.hexdigest()


def check_all(make: MakeEngine, request: PerformanceRequest, *, progress_seconds: float = 1.0) -> None:
    """Every check below; an engine is made anew for each run, as another process would.

    Args:
        make: a new engine, its weights not necessarily loaded.
        request: of three chunks or more.
        progress_seconds: how long the engine may be silent; the promise is a second for engines of the CPU.
    """
    chunks, checkpoints = check_plan_is_kept(make(), request)
    check_listener_is_called_and_obeyed(make(), request, progress_seconds)
    check_deterministic(make(), request, chunks)
    check_resume_is_exact(make, request, chunks, checkpoints)
    check_seed_matters(make(), request, chunks)
    check_foreign_checkpoints_are_refused(make(), request)


def check_plan_is_kept(engine: Engine, request: PerformanceRequest) -> tuple[list[str], list[bytes]]:
    """The plan tells frames, size and chunks exactly; digests of the chunks and their checkpoints' bytes are returned."""
    plan = engine.plan(request)
    assert plan.frames == request.frames, "the plan's length is not the speech's"
    assert (plan.width, plan.height) == (request.width, request.height), "the plan's size is not the request's"
    assert plan.chunks >= 3, "use a request of three chunks or more"
    digests, checkpoints = [], []
    for index, chunk in enumerate(engine.stream(request)):
        first, last = plan.span(index)
        assert chunk.index == index, f"chunk {index} says it is {chunk.index}"
        assert chunk.start == first, f"chunk {index} begins at {chunk.start}, planned {first}"
        assert chunk.frames.dtype == np.uint8, "frames are not uint8"
        assert chunk.frames.shape == (last - first, plan.height, plan.width, 3), f"chunk {index} is {chunk.frames.shape}"
        assert chunk.checkpoint.next_chunk == index + 1, "the checkpoint does not lead to the next chunk"
        digests.append(digest(chunk))
        checkpoints.append(chunk.checkpoint.to_bytes())
    assert len(digests) == plan.chunks, f"{len(digests)} chunks came, planned {plan.chunks}"
    return digests, checkpoints


def check_deterministic(engine: Engine, request: PerformanceRequest, expected: Sequence[str]) -> None:
    """The same request gives the same bytes."""
    assert [digest(chunk) for chunk in engine.stream(request)] == list(expected), "a second run gave other bytes"


def check_resume_is_exact(
    make: MakeEngine, request: PerformanceRequest, expected: Sequence[str], checkpoints: Sequence[bytes]
) -> None:
    """From every checkpoint, through its bytes and with a new engine, the rest is what an uninterrupted run gives."""
    for done, checkpoint in enumerate(checkpoints, 1):
        rest = [digest(chunk) for chunk in make().stream(request, Checkpoint.from_bytes(checkpoint))]
        assert rest == list(expected[done:]), f"resuming after chunk {done - 1} gave other bytes"


def check_seed_matters(engine: Engine, request: PerformanceRequest, expected: Sequence[str]) -> None:
    """Another seed gives another video of the same plan."""
    other = replace(request, seed=request.seed + 1)
    assert engine.plan(other) == engine.plan(request), "the seed changed the plan"
    assert [digest(chunk) for chunk in engine.stream(other)] != list(expected), "another seed gave the same video"


def check_listener_is_called_and_obeyed(engine: Engine, request: PerformanceRequest, progress_seconds: float) -> None:
    """Progress comes often and in order; whatever the listener raises leaves ``stream`` at once, unchanged, from any call."""
    engine.load()
    calls: list[tuple[float, Progress]] = []

    def listen(progress: Progress) -> None:
        calls.append((time.monotonic(), progress))

    began = time.monotonic()
    stream = engine.stream(request, on_progress=listen)
    next(stream)
    next(stream)
    times = [began, *(moment for moment, _ in calls), time.monotonic()]
    stream.close()  # type: ignore[attr-defined]
    longest = max(later - earlier for earlier, later in itertools.pairwise(times))
    assert longest <= progress_seconds, f"no progress for {longest:.2f} s"
    for _, progress in calls:
        assert progress.stage in STAGES, f"unknown stage {progress.stage!r}"
        assert 0 <= progress.done <= progress.total, f"{progress} is out of range"
    chunks = [progress.chunk for _, progress in calls]
    assert chunks == sorted(chunks), "progress runs backwards"

    for stop_at in sorted({1, len(calls) // 2, len(calls)}):
        left = stop_at
        error = _Enough()
        raised_at: list[float] = []

        def stop(_: Progress, error: _Enough = error, raised_at: list[float] = raised_at) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raised_at.append(time.monotonic())
                raise error
            assert left > 0, "the engine went on after its listener had raised"

        with pytest.raises(_Enough) as raised:
            for _ in engine.stream(request, on_progress=stop):
                pass
        assert raised.value is error, "the listener's exception was replaced"
        assert time.monotonic() - raised_at[0] <= progress_seconds, "the engine took too long to stop"
    gc.collect()


def check_foreign_checkpoints_are_refused(engine: Engine, request: PerformanceRequest) -> None:
    """A checkpoint of another engine or version is refused before any frame is made."""
    for foreign in (Checkpoint("another", engine.version, 1), Checkpoint(engine.name, engine.version + 1000, 1)):
        with pytest.raises(InfiniteTalkError) as raised:
            next(iter(engine.stream(request, foreign)))
        assert raised.value.code == "checkpoint_mismatch"
