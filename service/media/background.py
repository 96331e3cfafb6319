"""Encoding beside rendering: a thread that turns chunk k into a fragment while the engine makes chunk k + 1."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from model_store.engine import Chunk
from service.media.fragments import ChunkEncoder

Deliver = Callable[[Chunk, bytes], None]
"""Takes a finished chunk and its fragment, on the encoding thread: stores it, commits it, reports it."""


class BackgroundEncoder:
    """Encodes and delivers chunks on a thread of its own; at most one chunk waits while another is being encoded.

    ::

        with BackgroundEncoder(encoder, deliver) as background:
            for chunk in engine.stream(request, on_progress=...):
                background.put(chunk)

    Leaving the block waits until the last chunk is delivered. What ``encoder`` or ``deliver`` raises is raised by the next
    :meth:`put` or :meth:`check`, or at the block's end. When the block is left by an exception, the chunk that waits is dropped,
    the one in work is finished (a second or so), and nothing is delivered after that.
    """

    def __init__(self, encoder: ChunkEncoder, deliver: Deliver) -> None:
        self._encoder = encoder
        self._deliver = deliver
        self._state = threading.Condition()
        self._waiting: Chunk | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)

    def put(self, chunk: Chunk) -> None:
        """Hand a chunk over; blocks while another one waits."""
        with self._state:
            self._state.wait_for(lambda: self._waiting is None or self._failure is not None)
            self._raise_failure()
            self._waiting = chunk
            self._state.notify_all()

    def check(self) -> None:
        """Raise what the thread failed with, if it did: to be called from ``on_progress``, so that a failure stops the engine."""
        with self._state:
            self._raise_failure()

    def __enter__(self) -> BackgroundEncoder:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._state:
            if kind is not None:
                self._waiting = None
            self._closing = True
            self._state.notify_all()
        self._thread.join()
        if kind is None:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while (chunk := self._take()) is not None:
                fragment = self._encoder.encode_chunk(chunk.frames, chunk.start, chunk.index)
                self._deliver(chunk, fragment)
        except BaseException as error:  # handed to the thread that renders
            with self._state:
                self._failure = error
                self._state.notify_all()

    def _take(self) -> Chunk | None:
        with self._state:
            self._state.wait_for(lambda: self._waiting is not None or self._closing)
            chunk, self._waiting = self._waiting, None
            self._state.notify_all()
            return chunk
