"""The app: routes, errors, bounds and the OpenAPI document."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from starlette.routing import Match

from service.api import errors, files, streams, videos
from service.api.bodies import BodyLimit, largest_body
from service.api.context import open_context
from service.api.metrics import RequestMetrics
from service.room import Room
from service.settings import Settings

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

DESCRIPTION = (
    "Makes a photo talk: one picture and one speech recording in, an MP4 out in which the whole frame performs the speech."
)


def create_app(settings: Settings) -> FastAPI:
    """The API as an ASGI app; it connects to store and queue when it is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_context(settings) as context:
            app.state.context = context
            # What has been imported lives as long as the process: left to the collector, it would halt every request for a
            # tenth of a second every few hundred.
            gc.collect()
            gc.freeze()
            yield

    app = FastAPI(
        title="Infinite Talk",
        version=_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.add_middleware(BodyLimit, largest=largest_body(settings), most=settings.max_uploads, room=Room(settings))
    errors.install(app)
    app.add_middleware(RequestMetrics)  # added last: around everything else
    for module in (videos, streams, files):
        app.include_router(module.router)
    app.add_api_route("/v1/{path:path}", _nowhere, methods=_METHODS, include_in_schema=False)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign] # FastAPI's documented way to extend the document
    return app


def _version() -> str:
    try:
        return version("infinite-talk")
    except PackageNotFoundError:  # run from a Bento's sources, which are not installed
        return "0"


async def _nowhere(request: Request) -> None:
    """Below a shell that has routes of its own, unknown addresses would otherwise get the shell's answer."""
    others = [route for route in request.app.routes if getattr(route, "endpoint", None) is not _nowhere]
    wrong_method = any(route.matches(request.scope)[0] is Match.PARTIAL for route in others)
    raise HTTPException(405 if wrong_method else 404)


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        document["components"]["schemas"].update(errors.error_schemas())
        app.openapi_schema = document
    return app.openapi_schema
