"""Connections: bounded in number, and closed when the other side takes too long to ask or to listen.

A middleware begins where a request's head has been read, so this is one layer below: uvicorn's own protocol with timers.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar

import h11
import uvicorn.protocols.http.auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.api.errors import error_response
from service.metrics import CONNECTIONS_REFUSED

HEAD_SECONDS = 15.0
"""How long a request's line and headers may take to come; h11 bounds them to 16 kB."""

LISTEN_SECONDS = 30.0
"""How long a client may take to read what is sent at a time (64 kB), and to acknowledge what it was sent last."""

LINGER_SECONDS = 2.0
"""How long a client may go on sending a body that has been answered."""


class _ImpatientFlow(FlowControl):
    """Waits for a reader only so long, then breaks the connection off: closing would wait for the same reader."""

    async def drain(self) -> None:
        try:
            async with asyncio.timeout(LISTEN_SECONDS):
                await super().drain()
        except TimeoutError:
            CONNECTIONS_REFUSED.labels("slow_reader").inc()
            self._transport.abort()
            self.resume_writing()


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a bound on connections (503 ``too_many_connections``) and on slowness (408 ``request_too_slow``)."""

    most: ClassVar[int] = 1000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.flow = _ImpatientFlow(transport)
        own = transport.get_extra_info("socket")
        if own is not None and hasattr(socket, "TCP_USER_TIMEOUT") and own.family in (socket.AF_INET, socket.AF_INET6):
            # What lies in the kernel's buffers after the last write has no timer of ours.
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(LISTEN_SECONDS * 1000))
        if len(self.connections) > self.most:
            self._refuse("too_many_connections", "Too many connections are open here: close idle ones, or try again soon.")
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            # Answered before its end, as when it is too large: what still comes is thrown away, but not for long.
            self.loop.call_later(LINGER_SECONDS, self._body_goes_on, self.cycle)

    def send_400_response(self, msg: str) -> None:
        self._refuse("http_invalid", "This is no HTTP request, or its headers have more than 16 kB: shorten them.")

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._refuse("request_too_slow", f"The request's headers took longer than {HEAD_SECONDS:g} s: send them at once.")

    def _body_goes_on(self, cycle: object) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()

    def _refuse(self, code: str, message: str) -> None:
        CONNECTIONS_REFUSED.labels(code).inc()
        self._stop_watching()
        if not self.transport.is_closing():
            answer = error_response(code, message)
            head = [f"HTTP/1.1 {answer.status_code} \r\n".encode()]
            head += [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
            self.transport.write(b"".join([*head, b"connection: close\r\n\r\n", bytes(answer.body)]))
            self.transport.close()


def bound_connections(most: int) -> None:
    """Have every server of this process use :class:`BoundedProtocol`, with ``most`` connections.

    BentoML makes the server's configuration itself and passes no protocol; what it leaves to uvicorn's choice is chosen here.
    """
    BoundedProtocol.most = most
    uvicorn.protocols.http.auto.AutoHTTPProtocol = BoundedProtocol
