"""A worker's own small endpoint: alive, ready, metrics."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from model_store.errors import InfiniteTalkError
from service.settings import Settings


@asynccontextmanager
async def serve_probes(settings: Settings, is_ready: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
    """Answer ``/livez``, ``/readyz`` and ``/metrics`` on the worker's port; ``port_in_use`` when it is taken."""
    if not settings.worker_port:
        yield
        return

    async def livez(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        ready = await is_ready()
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])
    listener = listen(settings.worker_host, settings.worker_port, "INFINITETALK_WORKER_PORT")
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
        pass  # the worker's own handlers decide


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
