"""Routes of files: upload once, name in any number of requests."""

from __future__ import annotations

import asyncio
import tempfile
from typing import Annotated, BinaryIO, Literal, cast

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from model_store.errors import InfiniteTalkError
from service.api.bodies import read_body
from service.api.context import Service, Tenant
from service.api.delivery import deliver
from service.api.errors import RESPONSES
from service.uploads import FileRecord, Upload

router = APIRouter(prefix="/v1/files", tags=["files"], responses=RESPONSES)

_SPOOLED_BYTES = 1 << 20


class UploadTarget(BaseModel):
    """Where to send the content of an announced file."""

    method: Literal["PUT"] = "PUT"
    url: str
    expires_at: int = Field(description="Seconds since 1970.")


class File(BaseModel):
    """An uploaded file."""

    id: str = Field(examples=["file_0123456789abcdef01234567"])
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since 1970.")
    expires_at: int = Field(description="When it is deleted, in seconds since 1970.")
    filename: str
    purpose: str
    status: Literal["pending", "uploaded"]
    upload: UploadTarget | None = Field(None, description="Where to send the content, as long as it is still to come.")


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class FileDeleted(BaseModel):
    """That a file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileAnnouncement(BaseModel):
    """A file whose content follows with a PUT."""

    model_config = ConfigDict(extra="ignore")  # clients of the same shape send fields that mean nothing here

    filename: str = Field("upload", max_length=255)
    content_type: str = Field("application/octet-stream", max_length=127, pattern=r"^[\w.+-]+/[\w.+-]+$")
    purpose: str = Field("user_data", max_length=64)
    bytes: int = Field(0, ge=0, description="Its size, if known.")


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "default": "user_data"},
                    },
                }
            },
            "application/json": {"schema": FileAnnouncement.model_json_schema()},
        },
    }
}


@router.post("", operation_id="create_file", summary="Upload a file, or announce a large one", openapi_extra=_BODY)
async def create_file(request: Request, service: Service, tenant: Tenant) -> File:
    """A form with the file itself; or JSON, answered with an `upload` URL to PUT the content to."""
    async with read_body(request) as body:
        announced = body.parse(FileAnnouncement)
        if upload := body.files.get("file"):
            return _file(await asyncio.to_thread(service.uploads.add, tenant, upload, announced.purpose), None)
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise InfiniteTalkError("file_required", "file is missing: send the file as the form part `file`.", param="file")
    record = await asyncio.to_thread(
        service.uploads.announce, tenant, announced.filename, announced.content_type, announced.purpose, announced.bytes
    )
    return _file(record, await _target(service, record))


@router.put("/{file_id}/content", operation_id="upload_file_content", summary="Send the content of an announced file")
async def upload_file_content(file_id: str, request: Request, service: Service, tenant: Tenant) -> File:
    """For stores without presigned URLs; the body is the content itself."""
    record = await asyncio.to_thread(service.uploads.find, tenant, file_id)
    if record.status == "uploaded":
        raise InfiniteTalkError("file_already_uploaded", f"{file_id} has its content: a file never changes, upload another.")
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES) as content:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            await asyncio.to_thread(content.write, piece)
        await asyncio.to_thread(content.seek, 0)
        upload = Upload(record.filename, record.content_type, size, cast(BinaryIO, content))
        return _file(await asyncio.to_thread(service.uploads.receive, record, upload), None)


@router.get("", operation_id="list_files", summary="List files")
async def list_files(
    service: Service,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["asc", "desc"] = "desc",
) -> FileList:
    """A page of your files, newest first unless told otherwise."""
    records, more = await asyncio.to_thread(service.uploads.page, tenant, limit, after, order == "desc")
    files = [_file(record, None) for record in records]
    return FileList(data=files, has_more=more, first_id=files[0].id if files else None, last_id=files[-1].id if files else None)


@router.get("/{file_id}", operation_id="retrieve_file", summary="Look at a file")
async def retrieve_file(file_id: str, service: Service, tenant: Tenant) -> File:
    """Its name, size, and whether its content is there."""
    record = await asyncio.to_thread(service.uploads.find, tenant, file_id)
    return _file(record, await _target(service, record) if record.status == "pending" else None)


@router.get("/{file_id}/content", operation_id="retrieve_file_content", summary="Download a file", response_class=Response)
async def retrieve_file_content(file_id: str, service: Service, tenant: Tenant) -> Response:
    """The content as it was uploaded."""
    record = await asyncio.to_thread(service.uploads.ready, tenant, file_id, "file_id")
    return await deliver(service, service.uploads.content_key(record), "application/octet-stream", record.filename)


@router.delete("/{file_id}", operation_id="delete_file", summary="Delete a file")
async def delete_file(file_id: str, service: Service, tenant: Tenant) -> FileDeleted:
    """Videos that were asked for with it are not affected."""
    record = await asyncio.to_thread(service.uploads.find, tenant, file_id)
    await asyncio.to_thread(service.uploads.delete, record)
    return FileDeleted(id=file_id)


async def _target(service: Service, record: FileRecord) -> UploadTarget:
    seconds = service.settings.presign_seconds
    link = await asyncio.to_thread(service.store.upload_link, service.uploads.content_key(record), seconds)
    return UploadTarget(url=link or f"/v1/files/{record.id}/content", expires_at=int(record.created_at) + seconds)


def _file(record: FileRecord, upload: UploadTarget | None) -> File:
    return File(
        id=record.id,
        bytes=record.bytes,
        created_at=int(record.created_at),
        expires_at=int(record.expires_at),
        filename=record.filename,
        purpose=record.purpose,
        status=record.status,
        upload=upload,
    )
