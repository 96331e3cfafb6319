"""The BentoML service: the API mounted whole, and the same submit as Bento's own ``generate`` endpoint."""

from __future__ import annotations

import asyncio
import mimetypes
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import bentoml
from bentoml.exceptions import BentoMLException
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from model_store.errors import InfiniteTalkError
from service import embedded
from service.api.app import create_app
from service.api.bodies import BodyLimit, largest_body
from service.api.connections import bound_connections
from service.api.context import context_of
from service.api.errors import status_of
from service.api.loopback import LoopbackOnly
from service.api.paths import PrintablePaths
from service.intake import Given, VideoOptions
from service.logs import start_logging
from service.room import Room
from service.settings import load_settings
from service.uploads import Upload

TIMEOUT_SECONDS = 120
"""Time to the first byte of any answer; above the longest ``Prefer: wait``."""

settings = load_settings()
start_logging(settings.log_format)
app = create_app(settings)
bound_connections(settings.max_connections)


class Refused(BentoMLException):
    """A known error in the shape of Bento's own, with the same status as on the other routes and the code in front."""

    def __init__(self, error: InfiniteTalkError) -> None:
        super().__init__(f"{error.code}: {error.message}")
        self.error_code = HTTPStatus(status_of(error.code))


class BoundedGenerate:
    """Middleware for the endpoint whose body Bento reads itself, past the bounds of the app's own routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.bounded = BodyLimit(app, largest_body(settings), settings.max_uploads, Room(settings), Refused)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.bounded if scope.get("path") == "/generate" else self.app)(scope, receive, send)


class Generate(VideoOptions):
    """The fields of POST /v1/videos, with the files themselves. Pictures only: Bento's clients send no file that is optional."""

    image: Path = Field(description="The picture: JPEG, PNG or WebP.")
    audio: Path = Field(description="The speech: WAV, MP3, FLAC, OGG or M4A.")


@bentoml.service(
    name="infinitetalk",
    workers=1,  # one event loop answers in milliseconds; more replicas, not more loops, make it wider
    http={"host": settings.host, "port": settings.port},
    traffic={"timeout": TIMEOUT_SECONDS},
    metrics={"enabled": False},  # Bento's own label raw paths, one series for each video
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class InfiniteTalk:
    """See the module's text."""

    @bentoml.on_deployment  # type: ignore[untyped-decorator] # as BentoML ships it
    @staticmethod
    def start_companions() -> None:
        """Without a shared queue, start one, and a worker, before the first API process."""
        embedded.start_beside(settings)

    async def __is_ready__(self) -> bool:
        return await context_of(app).ready()

    @bentoml.api(input_spec=Generate)  # type: ignore[untyped-decorator] # as BentoML ships it
    async def generate(self, ctx: bentoml.Context, **fields: Any) -> dict[str, Any]:
        """Ask for a video; the answer is the video object, to be followed under /v1/videos."""
        files = [Path(fields.pop(name)) for name in ("image", "audio")]
        try:
            context = context_of(app)
            tenant = await asyncio.to_thread(context.doorman.tenant, ctx.request.headers.get("authorization"))
            await context.quota.admit(tenant)
            request = VideoOptions.model_validate(fields)
            with ExitStack() as stack:
                image, audio = (_upload(path, stack) for path in files)
                video = await context.jobs.submit(tenant, request, Given(image=image, audio=audio))
        except InfiniteTalkError as error:
            raise Refused(error) from None
        return video.model_dump(mode="json")


async def _guarded() -> bool:
    return await asyncio.to_thread(context_of(app).doorman.guarded)


cast(Any, InfiniteTalk).add_asgi_middleware(BoundedGenerate)
cast(Any, InfiniteTalk).add_asgi_middleware(PrintablePaths)
cast(Any, InfiniteTalk).add_asgi_middleware(LoopbackOnly, allow_public=settings.allow_public, guarded=_guarded)


def _upload(path: Path, stack: ExitStack) -> Upload:
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Upload(filename=path.name, content_type=kind, size=path.stat().st_size, file=stack.enter_context(path.open("rb")))
