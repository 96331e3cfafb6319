"""A worker's side of its engine process: start it, order, hear the answers, stop it within a second or end it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from service.logs import LogFormat
from service.wire import Message, receive_message

STOP_SECONDS = 1.0
"""How long an engine may take to stop by itself before its process is killed."""

_HEARD_AHEAD = 8
_LAST_ANSWERS = {"loaded", "done", "finished", "stopped", "error"}

_WITHHELD = (
    "INFINITETALK_S3_",
    "INFINITETALK_REDIS_",
    "INFINITETALK_SECRETS_",
    "INFINITETALK_WEBHOOK_",
    "OTEL_",
    "HF_TOKEN",
    "AWS_",
)
"""Variables the engine process does not get: it decodes strangers' files, and has no business with store, queue or collectors."""

logger = logging.getLogger(__name__)


class EngineCrashedError(Exception):
    """The engine process ended, or said nothing for too long, in the middle of an order."""


class EngineProcess:
    """One engine process, started when it is first needed and kept warm between orders.

    Args:
        stall_seconds: silence after which a process with an order is taken for stuck and killed.
        log_format: of the process's own messages.
    """

    def __init__(self, stall_seconds: float, log_format: LogFormat = "text") -> None:
        self._stall_seconds = stall_seconds
        self._log_format = log_format
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._answers: asyncio.Queue[Message | None] = asyncio.Queue(_HEARD_AHEAD)
        self._busy = False

    async def order(self, kind: str, fields: dict[str, Any], *parts: bytes) -> None:
        """Give an order; the answers follow through :meth:`answer`."""
        await self.stop()
        if self._process is None:
            await self._start()
        self._busy = True
        await self._send(Message(kind, fields, parts))

    async def more(self) -> None:
        """Let it go one chunk further ahead."""
        await self._send(Message("more"))

    async def answer(self) -> Message:
        """The next answer; :class:`EngineCrashedError` when there will be none."""
        try:
            async with asyncio.timeout(self._stall_seconds):
                message = await self._answers.get()
        except TimeoutError:
            logger.error("the engine process has said nothing for %g s and is killed", self._stall_seconds)
            message = None
        if message is None:
            await self.kill()
            raise EngineCrashedError
        if message.kind in _LAST_ANSWERS:
            self._busy = False
        return message

    async def stop(self) -> None:
        """End the order that is being performed: gently within :data:`STOP_SECONDS`, else with the whole process."""
        if not self._busy:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._send(Message("stop"))
                while self._busy:
                    await self.answer()
        except TimeoutError:
            await self.kill()
        except EngineCrashedError:
            pass

    async def kill(self) -> None:
        """End the process at once; the next order starts another."""
        process, self._process, self._busy = self._process, None, False
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service.engine_child",
            self._log_format,
            env={name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # an interrupt at the terminal is for the worker, which decides
        )
        self._answers = asyncio.Queue(_HEARD_AHEAD)
        self._listener = asyncio.create_task(self._listen(self._process, self._answers))

    async def _listen(self, process: asyncio.subprocess.Process, answers: asyncio.Queue[Message | None]) -> None:
        # A task of its own, so that nobody who is cancelled leaves half a message in the pipe.
        if process.stdout is not None:
            while message := await receive_message(process.stdout):
                await answers.put(message)
        await answers.put(None)

    async def _send(self, message: Message) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise EngineCrashedError
        try:
            async with asyncio.timeout(self._stall_seconds):
                process.stdin.write(message.to_bytes())
                await process.stdin.drain()
        except (ConnectionError, TimeoutError):
            await self.kill()
            raise EngineCrashedError from None
