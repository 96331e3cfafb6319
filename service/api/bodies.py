"""Request bodies: bounded in size, read as a form or as JSON, and checked field by field."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from service.uploads import Upload

MAX_JSON_BYTES = 1 << 20
MAX_FIELDS, MAX_FILES, MAX_FIELD_BYTES = 64, 3, 1 << 16
FORM_OVERHEAD_BYTES = 1 << 20

B = TypeVar("B", bound=BaseModel)


class BodyLimit:
    """Middleware that cuts a body off at ``largest`` bytes, whether or not its length was announced."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self.app = app
        self.largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or int(announced) > self.largest:
            await _too_large(self.largest)(scope, receive, send)
            return
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.largest:
                    raise InfiniteTalkError("request_too_large", _too_large_text(self.largest))
            return message

        await self.app(scope, bounded, send)


def _too_large(largest: int) -> ASGIApp:
    return error_response("request_too_large", _too_large_text(largest))


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
