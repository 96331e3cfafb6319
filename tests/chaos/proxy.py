"""A proxy before an S3 server that can be down, slow, or lose and refuse a share of the calls."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_REFUSAL = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_LENGTH = re.compile(rb"(?im)^content-length:\s*(\d+)\r$")
_PIECE = 1 << 16


class FaultyProxy:
    """Passes requests on, one a connection, so that each may have a fate of its own.

    Attributes:
        down: connections are reset, those that are open, too, see :meth:`go_down`.
        delay: seconds that every call takes longer.
        faults: share of calls that fail: a third each is refused with 503, reset before the server has heard of it, or reset when
            the server has done it, so that only the answer is lost.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        url = urlsplit(upstream)
        self._upstream = (url.hostname or "127.0.0.1", url.port or 80)
        self._chance = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self.port = 0
        self.down, self.delay, self.faults = False, 0.0, 0.0
        self.calls = self.failed = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def calm(self) -> None:
        """Pass everything on from now on."""
        self.down, self.delay, self.faults = False, 0.0, 0.0

    def go_down(self) -> None:
        """Reset everything, open connections too, until :meth:`calm`."""
        self.down = True
        self._loop.call_soon_threadsafe(self._abort_all)

    def run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        self._loop.run_forever()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _abort_all(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            if not self.down:
                with suppress(OSError, asyncio.IncompleteReadError):
                    await self._pass_on(reader, writer)
        finally:
            self._open.discard(writer)
            if self.down:
                writer.transport.abort()
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.calls += 1
        await asyncio.sleep(self.delay)
        fate = self._chance.choice(("refused", "unheard", "unanswered")) if self._chance.random() < self.faults else None
        self.failed += fate is not None
        if fate == "unheard":
            writer.transport.abort()
            return
        found = _LENGTH.search(head)
        body = await reader.readexactly(int(found[1])) if found else b""
        if fate == "refused":
            writer.write(b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(_REFUSAL) + _REFUSAL)
            await writer.drain()
            return
        from_server, to_server = await asyncio.open_connection(*self._upstream)
        try:
            to_server.write(re.sub(rb"(?im)^connection:.*\r\n", b"", head)[:-2] + b"Connection: close\r\n\r\n" + body)
            while piece := await from_server.read(_PIECE):
                if fate == "unanswered":
                    writer.transport.abort()
                    return
                writer.write(piece)
                await writer.drain()
        finally:
            to_server.close()


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A calm proxy before ``upstream`` until the block ends."""
    proxy, ready = FaultyProxy(upstream), threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
