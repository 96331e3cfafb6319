"""The app: routes, errors, bounds and the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.api import errors, files, streams, videos
from service.api.bodies import FORM_OVERHEAD_BYTES, BodyLimit
from service.api.context import open_context
from service.settings import Settings

DESCRIPTION = (
    "Makes a photo talk: one picture and one speech recording in, an MP4 out in which the whole frame performs the speech."
)


def create_app(settings: Settings) -> FastAPI:
    """The API as an ASGI app; it connects to store and queue when it is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_context(settings) as context:
            app.state.context = context
            yield

    app = FastAPI(
        title="Infinite Talk",
        version=version("infinite-talk"),
        description=DESCRIPTION,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.add_middleware(BodyLimit, largest=settings.max_image_bytes + settings.max_audio_bytes + FORM_OVERHEAD_BYTES)
    errors.install(app)
    for module in (videos, streams, files):
        app.include_router(module.router)
    return app
