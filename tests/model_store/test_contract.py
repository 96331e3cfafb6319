"""The contract's checks pass on an engine that keeps the promises, and fail on engines that break one each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from model_store.engine import (
    ArraySpeech,
    Checkpoint,
    Chunk,
    Engine,
    OnProgress,
    PerformanceRequest,
    Plan,
    Progress,
    no_progress,
)
from tests.engines import PatternEngine
from tests.model_store import contract


@pytest.fixture
def request_of_three_chunks() -> PerformanceRequest:
    rng = np.random.default_rng(7)
    speech = ArraySpeech((0.1 * rng.standard_normal(16_000 * 2)).astype(np.float32))
    picture = rng.integers(0, 256, (160, 128, 3), dtype=np.uint8)
    return PerformanceRequest(picture, speech, 128, 160, seed=3)


def test_an_engine_that_keeps_its_promises_passes(request_of_three_chunks: PerformanceRequest) -> None:
    contract.check_all(PatternEngine, request_of_three_chunks)


class Forgetful(PatternEngine):
    """Drops its state when resumed."""

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        if checkpoint is not None and checkpoint.engine == self.name and checkpoint.version == self.version:
            checkpoint = replace(checkpoint, state=bytes(8))
        return super().stream(request, checkpoint, on_progress)


class Seedless(PatternEngine):
    """Ignores the seed."""

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        return super().stream(replace(request, seed=0), checkpoint, on_progress)


class Deaf(PatternEngine):
    """Swallows what its listener raises."""

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        def careless(progress: Progress) -> None:
            try:
                on_progress(progress)
            except Exception:  # the fault under test
                return

        return super().stream(request, checkpoint, careless)


class Trusting(PatternEngine):
    """Takes anybody's checkpoint."""

    def require_own(self, checkpoint: Checkpoint) -> None:
        pass

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        if checkpoint is not None and not checkpoint.state:
            checkpoint = replace(checkpoint, state=bytes(8))
        return super().stream(request, checkpoint, on_progress)


class Moody(PatternEngine):
    """Draws differently every time."""

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        for chunk in super().stream(request, checkpoint, on_progress):
            chunk.frames[0, -1, -1] = np.random.default_rng().integers(0, 256, 3)
            yield chunk


class Short(PatternEngine):
    """Promises a frame more than it makes."""

    def plan(self, request: PerformanceRequest) -> Plan:
        return replace(super().plan(request), frames=request.frames + 1)


class Silent(PatternEngine):
    """Works long without a word."""

    frame_seconds = 0.02

    def stream(
        self, request: PerformanceRequest, checkpoint: Checkpoint | None = None, on_progress: OnProgress = no_progress
    ) -> Iterator[Chunk]:
        def rarely(progress: Progress) -> None:
            if progress.stage != "perform":
                on_progress(progress)

        return super().stream(request, checkpoint, rarely)


@pytest.mark.parametrize("engine", [Forgetful, Seedless, Deaf, Trusting, Moody, Short, Silent])
def test_an_engine_that_breaks_a_promise_is_found_out(engine: type[Engine], request_of_three_chunks: PerformanceRequest) -> None:
    # A check fails by assertion, or because an exception that it waits for never comes.
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        contract.check_all(engine, request_of_three_chunks, progress_seconds=0.3)
