"""Request bodies: bounded in size, read as a form or as JSON, and checked field by field."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_store.errors import InfiniteTalkError
from service.api.errors import error_response, field_error
from service.room import Room
from service.settings import Settings
from service.uploads import Upload

MAX_JSON_BYTES = 1 << 20
MAX_FIELDS, MAX_FILES, MAX_FIELD_BYTES = 64, 3, 1 << 16
FORM_OVERHEAD_BYTES = 1 << 20
SMALL_BYTES = 1 << 16
"""Bodies up to this size stay in memory, and many may come at a time."""

PATIENCE_SECONDS, SLOWEST_BYTES_PER_SECOND = 20.0, 10_000
"""A body may take the first, and as long as it would take at the second."""

_TOO_SLOW = f"The body came more slowly than {SLOWEST_BYTES_PER_SECOND} bytes a second: use a faster line, or smaller files."

B = TypeVar("B", bound=BaseModel)


class BodyLimit:
    """Middleware that bounds bodies: in size, in time, in number, and by the room there is.

    Args:
        app: what reads the bodies.
        largest: most bytes, whether or not a length was announced.
        most: how many requests with more than :data:`SMALL_BYTES` may be read at a time.
        room: where parts are kept until they are stored.
        shape: what is raised in the reader's place, where it has errors of its own kind.
    """

    def __init__(
        self,
        app: ASGIApp,
        largest: int,
        most: int,
        room: Room,
        shape: Callable[[InfiniteTalkError], Exception] = lambda error: error,
    ) -> None:
        self.app = app
        self.largest = largest
        self.most = most
        self.room = room
        self.shape = shape
        self._reading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.largest:
            await error_response("request_too_large", _too_large_text(self.largest))(scope, receive, send)
            return
        size = self.largest if b"transfer-encoding" in headers else int(announced)
        with ExitStack() as kept:
            if size > SMALL_BYTES:
                try:
                    kept.enter_context(self._place())
                    kept.enter_context(self.room.promised(size))
                except InfiniteTalkError as refusal:
                    await error_response(refusal.code, refusal.message)(scope, receive, send)
                    return
            await self.app(scope, self._bounded(receive, kept), send)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._reading >= self.most:
            raise InfiniteTalkError("too_many_uploads", "Too many uploads are under way here: try again in a few seconds.")
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    def _bounded(self, receive: Receive, kept: ExitStack) -> Receive:
        seen, complete, began = 0, False, time.monotonic()

        async def bounded() -> Message:
            nonlocal seen, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(began + PATIENCE_SECONDS + seen / SLOWEST_BYTES_PER_SECOND - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise self.shape(InfiniteTalkError("request_too_slow", _TOO_SLOW)) from None
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if complete:
                    kept.close()  # what has come needs no promise any more: it lies on the disk
                if seen > self.largest:
                    raise self.shape(InfiniteTalkError("request_too_large", _too_large_text(self.largest)))
            return message

        return bounded


def largest_body(settings: Settings) -> int:
    """The most bytes of one request: both files, and the form around them."""
    return max(settings.max_image_bytes, settings.max_video_bytes) + settings.max_audio_bytes + FORM_OVERHEAD_BYTES


def _too_large_text(largest: int) -> str:
    return f"The request has more than {largest} bytes: send smaller files, or upload them apart with POST /v1/files."


@dataclass
class Body:
    """A request's fields and files by name."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)

    def parse(self, model: type[B]) -> B:
        """The fields as a model; the first fault as an error that names the field."""
        try:
            return model.model_validate(self.fields)
        except ValidationError as error:
            raise field_error(error) from None


@asynccontextmanager
async def read_body(request: Request) -> AsyncIterator[Body]:
    """The body of a request, a form or JSON; its files are open until the block ends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        try:
            form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        except (MultiPartException, HTTPException) as error:
            detail = getattr(error, "message", None) or getattr(error, "detail", "")
            raise InfiniteTalkError("form_invalid", f"The form cannot be read: {detail}") from None
        try:
            yield _form_body(form.multi_items())
        finally:
            await form.close()
    elif kind in ("application/json", "") or kind.endswith("+json"):
        yield Body(fields=await _read_json(request))
    else:
        raise InfiniteTalkError("content_type_unsupported", f"A body of type {kind[:64]!r} is not read: send a form or JSON.")


def _form_body(items: list[tuple[str, UploadFile | str]]) -> Body:
    body = Body()
    for name, value in items:
        outer, inner = _nested(name)
        if isinstance(value, UploadFile):
            body.files[name] = Upload(
                filename=(value.filename or name)[-255:],
                content_type=(value.content_type or "application/octet-stream")[:127],
                size=value.size or 0,
                file=value.file,
            )
        elif inner:
            body.fields.setdefault(outer, {})[inner] = value
        else:
            body.fields[name] = value
    return body


def _nested(name: str) -> tuple[str, str]:
    """``metadata[key]`` as some clients write the fields of objects: outer and inner name."""
    outer, bracket, rest = name.partition("[")
    return (outer, rest[:-1]) if bracket and rest.endswith("]") else (name, "")


async def _read_json(request: Request) -> dict[str, Any]:
    if int(request.headers.get("content-length") or 0) > MAX_JSON_BYTES:
        raise InfiniteTalkError(
            "request_too_large", f"The JSON has more than {MAX_JSON_BYTES} bytes: upload files apart with POST /v1/files."
        )
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_JSON_BYTES:
            raise InfiniteTalkError("request_too_large", f"The JSON has more than {MAX_JSON_BYTES} bytes: upload files apart.")
    try:
        fields = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        raise InfiniteTalkError("json_invalid", "The body is not JSON: check its syntax and its Content-Type.") from None
    if not isinstance(fields, dict):
        raise InfiniteTalkError("json_invalid", "The body is not a JSON object: send one with the request's fields.")
    return fields
