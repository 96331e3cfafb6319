"""The BentoML service: the API mounted whole, and the same submit as Bento's own ``generate`` endpoint."""

from __future__ import annotations

import mimetypes
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import bentoml
from bentoml.exceptions import BentoMLException, InvalidArgument, NotFound, ServiceUnavailable
from pydantic import Field

from model_store.errors import InfiniteTalkError
from service import embedded
from service.api.app import create_app
from service.api.context import context_of
from service.api.errors import field_error, status_of
from service.intake import VideoRequest
from service.job import DEFAULT_TENANT
from service.settings import load_settings
from service.uploads import Upload

TIMEOUT_SECONDS = 120
"""Time to the first byte of any answer; above the longest ``Prefer: wait``."""

app = create_app(load_settings())


@bentoml.service(
    name="infinitetalk",
    workers=1,  # one event loop answers in milliseconds; more replicas, not more loops, make it wider
    traffic={"timeout": TIMEOUT_SECONDS},
    metrics={"enabled": False},  # Bento's own label raw paths, one series for each video
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(app, path="/")
class InfiniteTalk:
    """See the module's text."""

    @bentoml.on_deployment
    @staticmethod
    def start_companions() -> None:
        """Without a shared queue, start one, and a worker, before the first API process."""
        settings = load_settings()
        settings.require_safe_address()
        embedded.start_beside(settings)

    async def __is_ready__(self) -> bool:
        return await context_of(app).ready()

    @bentoml.api(route="/generate")
    async def generate(
        self,
        image: Annotated[Path, Field(description="The picture: JPEG, PNG or WebP.")],
        audio: Annotated[Path, Field(description="The speech: WAV, MP3, FLAC, OGG or M4A.")],
        consent: Annotated[bool, Field(description="The people shown and heard have agreed, or need not.")] = False,
        parameters: Annotated[dict[str, Any] | None, Field(description="The other fields of POST /v1/videos.")] = None,
    ) -> dict[str, Any]:
        """Ask for a video; the answer is the video object, to be followed under /v1/videos."""
        try:
            request = VideoRequest.model_validate({**(parameters or {}), "consent": consent})
        except ValueError as error:
            raise _shaped(field_error(error)) from None
        try:
            with ExitStack() as stack:
                uploads = [
                    Upload(
                        filename=path.name,
                        content_type=mimetypes.guess_type(path.name)[0] or "application/octet-stream",
                        size=path.stat().st_size,
                        file=stack.enter_context(path.open("rb")),
                    )
                    for path in (image, audio)
                ]
                video = await context_of(app).jobs.submit(DEFAULT_TENANT, request, *uploads)
        except InfiniteTalkError as error:
            raise _shaped(error) from None
        return video.model_dump(mode="json")


def _shaped(error: InfiniteTalkError) -> BentoMLException:
    """Bento's exception of the same status, with the code in front."""
    status = status_of(error.code)
    kind = {404: NotFound, 429: ServiceUnavailable, 503: ServiceUnavailable}.get(status, InvalidArgument)
    return kind(f"{error.code}: {error.message}")
