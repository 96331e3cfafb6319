"""The small endpoint for operators that every process has on a port of its own: alive, ready, metrics."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from model_store.errors import InfiniteTalkError


@dataclass(frozen=True)
class Place:
    """Where an endpoint listens, and the environment variable that says so; port 0 is none."""

    host: str
    port: int
    variable: str


@asynccontextmanager
async def serve_probes(
    place: Place, is_ready: Callable[[], Awaitable[bool]], measure: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Answer ``/livez``, ``/readyz`` and ``/metrics``; ``port_in_use`` when the port is taken.

    Args:
        place: where.
        is_ready: whether this process can do its work.
        measure: brings the metrics up to date that are read when asked for; must neither fail nor take long.
    """
    if not place.port:
        yield
        return

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        ready = await is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        await measure()
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])
    listener = listen(place.host, place.port, place.variable)
    server = _Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await asyncio.gather(task, return_exceptions=True)
        listener.close()


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        pass  # the process has handlers of its own


def listen(host: str, port: int, variable: str) -> socket.socket:
    """A listening socket; ``port_in_use`` names the setting that chooses another."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InfiniteTalkError(
            "port_in_use", f"Port {port} on {host} cannot be used ({error.strerror}): free it, or set {variable} to another."
        ) from error
    return listener
