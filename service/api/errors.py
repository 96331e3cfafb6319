"""Every failure as one shape, OpenAI's error object, with a stable code, the field at fault and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from model_store.errors import InfiniteTalkError
from service.limits import seconds_to_midnight

RETRY_AFTER_SECONDS = {
    "store_unavailable": 5,
    "queue_unavailable": 5,
    "queue_full": 60,
    "rate_limited": 1,
    "tenant_queue_full": 60,
    "too_many_streams": 10,
    "too_many_connections": 1,
    "too_many_uploads": 5,
    "disk_full": 60,
    "stream_not_ready": 1,
}

STATUS: Mapping[str, int] = {
    "key_required": 401,
    "key_invalid": 401,
    "token_invalid": 401,
    "address_public": 403,
    "video_not_found": 404,
    "file_not_found": 404,
    "route_not_found": 404,
    "stream_not_ready": 404,
    "request_too_slow": 408,
    "content_not_ready": 409,
    "video_ended": 409,
    "video_being_deleted": 409,
    "idempotency_conflict": 409,
    "file_not_uploaded": 409,
    "file_already_uploaded": 409,
    "request_too_large": 413,
    "file_too_large": 413,
    "picture_too_large": 413,
    "video_too_large": 413,
    "audio_too_large": 413,
    "content_type_unsupported": 415,
    "queue_full": 429,
    "rate_limited": 429,
    "tenant_queue_full": 429,
    "daily_limit_reached": 429,
    "store_unavailable": 503,
    "queue_unavailable": 503,
    "too_many_streams": 503,
    "too_many_connections": 503,
    "too_many_uploads": 503,
    "disk_full": 503,
}
"""HTTP status by code; every other code is the request's fault: 400."""

_KINDS = {401: "authentication_error", 404: "not_found_error", 409: "conflict_error", 429: "rate_limit_error"}

logger = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="Cause and cure, for people.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(None, description="The field at fault.")
    code: str = Field(description="Stable name, for programs.", examples=["consent_required"])


class ErrorBody(BaseModel):
    """The body of every answer of status 400 or more."""

    error: ErrorDetail


def status_of(code: str) -> int:
    """The HTTP status of an error code."""
    return STATUS.get(code, 400)


def error_response(code: str, message: str, param: str | None = None, status: int | None = None) -> JSONResponse:
    """An answer that says what is wrong."""
    status = status or status_of(code)
    kind = _KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS[code])} if code in RETRY_AFTER_SECONDS else {}
    if code == "daily_limit_reached":
        headers["Retry-After"] = str(seconds_to_midnight())
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = ErrorBody(error=ErrorDetail(message=message, type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status, headers)


def field_error(error: ValidationError | RequestValidationError) -> InfiniteTalkError:
    """The first fault of a request, as ``<field>_invalid``, ``<field>_required`` or ``field_unknown``."""
    fault: Mapping[str, Any] = error.errors()[0]
    names = [str(part) for part in fault["loc"] if part not in ("body", "query", "path", "header")]
    name = names[0] if names else "body"
    if fault["type"] == "extra_forbidden":
        return InfiniteTalkError(
            "field_unknown", f"There is no field {name[:64]!r}: remove it, or check its spelling.", param=name[:64]
        )
    if fault["type"] == "missing":
        return InfiniteTalkError(f"{name}_required", f"{name} is missing: send it.", param=name)
    detail = str(fault["msg"]).removeprefix("Value error, ")
    return InfiniteTalkError(f"{name}_invalid", f"{name} cannot be used: {detail}.", param=name)


def install(app: FastAPI) -> None:
    """Shape everything that routes raise."""

    @app.exception_handler(InfiniteTalkError)
    async def known(_: Request, error: InfiniteTalkError) -> JSONResponse:
        return error_response(error.code, error.message, error.param)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        known = field_error(error)
        return error_response(known.code, known.message, known.param)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return error_response("route_not_found", "There is nothing at this address: see /docs.")
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_").replace("'", "")
        return error_response(code, f"{error.detail or phrase}.", status=error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> JSONResponse:
        return error_response("request_incomplete", "The connection ended before the request did: send it again.")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(
            "internal_error", "Something went wrong on our side: try again, and report it if it stays.", status=500
        )


_ERROR = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}

RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"content": _ERROR, "description": "The request cannot be served; `error.code` says why."},
    "5XX": {"content": _ERROR, "description": "The service cannot answer now; try again after `Retry-After`."},
}
"""Documentation of errors, for every route."""


def error_schemas() -> dict[str, Any]:
    """The schemas that :data:`RESPONSES` refers to."""
    _, schemas = models_json_schema([(ErrorBody, "serialization")], ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions
