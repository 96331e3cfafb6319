"""Routes of videos: ask, look, list, wait, cancel, delete, make again."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field

from model_store.errors import InfiniteTalkError
from service.api.bodies import Body, read_body
from service.api.context import Service, Tenant
from service.api.errors import RESPONSES
from service.index import Order
from service.intake import IDEMPOTENCY_KEY, Given, VideoChanges, VideoRequest
from service.uploads import Upload
from service.video import Video

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=RESPONSES)

_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")

IdempotencyKey = Annotated[
    str | None, Header(alias="Idempotency-Key", description="Repeating a request with the same key makes one video.")
]
Prefer = Annotated[str | None, Header(description="`wait=N`: answer when the video has ended, after N seconds at most.")]


class VideoList(BaseModel):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool


class VideoDeleted(BaseModel):
    """That a video is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = Field(True)


def _request_body(model: type[BaseModel], required: list[str], files: bool) -> dict[str, Any]:
    """OpenAPI's words for a body that is a form or JSON."""
    schema = model.model_json_schema()
    schema.pop("title", None)
    schema["required"] = required
    if not files:
        return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}
    picture = {
        "type": "string",
        "format": "binary",
        "description": "The picture: JPEG, PNG or WebP; or the id of an uploaded file.",
    }
    speech = {
        "type": "string",
        "format": "binary",
        "description": "The speech: WAV, MP3, FLAC, OGG or M4A; or the id of an uploaded file.",
    }
    film = {
        "type": "string",
        "format": "binary",
        "description": "A video to be dubbed, in place of `image`: MP4, MOV or WebM; or the id of an uploaded file.",
    }
    alias = {**picture, "description": "Another name of `image`, for clients that call it so."}
    files_of_form = {"image": picture, "video": film, "audio": speech, "input_reference": alias}
    form = {**schema, "properties": {**schema["properties"], **files_of_form}}
    return {
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}},
        }
    }


@router.post(
    "",
    status_code=202,
    operation_id="create_video",
    summary="Ask for a video",
    openapi_extra=_request_body(VideoRequest, ["consent"], files=True),
)
async def create_video(
    request: Request,
    response: Response,
    service: Service,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Video:
    """The video is made in the background: look at it with `GET /v1/videos/{id}`, or listen to its events."""
    async with read_body(request) as body:
        given = _files(body)
        video = await service.jobs.submit(tenant, body.parse(VideoRequest), given, _checked(idempotency_key))
    return await _waited(response, service, tenant, video, prefer)


@router.get("", operation_id="list_videos", summary="List videos")
async def list_videos(
    service: Service,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=100, description="At most so many.")] = 20,
    after: Annotated[str | None, Query(max_length=64, description="The last id of the page before.")] = None,
    order: Annotated[Order, Query(description="By time of creation.")] = "desc",
) -> VideoList:
    """A page of your videos, newest first unless told otherwise."""
    videos, more = await service.jobs.page(tenant, limit, after, order)
    return VideoList(
        data=videos, has_more=more, first_id=videos[0].id if videos else None, last_id=videos[-1].id if videos else None
    )


@router.get("/{video_id}", operation_id="retrieve_video", summary="Look at a video")
async def retrieve_video(video_id: str, response: Response, service: Service, tenant: Tenant, prefer: Prefer = None) -> Video:
    """Status, progress, place in the queue, or why it failed."""
    return await _waited(response, service, tenant, await service.jobs.view(tenant, video_id), prefer)


@router.post("/{video_id}/cancel", operation_id="cancel_video", summary="Stop making a video")
async def cancel_video(video_id: str, service: Service, tenant: Tenant) -> Video:
    """The work stops within two seconds, and nothing appears later. What was made can still be streamed."""
    return await service.jobs.cancel(tenant, video_id)


@router.delete("/{video_id}", operation_id="delete_video", summary="Delete a video")
async def delete_video(video_id: str, service: Service, tenant: Tenant) -> VideoDeleted:
    """Every object of it is removed, its inputs too; if it is being made, that stops."""
    await service.jobs.delete(tenant, video_id)
    return VideoDeleted(id=video_id)


@router.post(
    "/{video_id}/remix",
    status_code=202,
    operation_id="remix_video",
    summary="Make a video again, with changes",
    openapi_extra=_request_body(VideoChanges, [], files=False),
)
async def remix_video(
    video_id: str,
    request: Request,
    response: Response,
    service: Service,
    tenant: Tenant,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Video:
    """What is not given stays as it was. A new `image`, `video` or `audio` needs `consent` again."""
    source = await service.jobs.find(tenant, video_id)
    async with read_body(request) as body:
        given = _files(body)
        video = await service.jobs.submit(tenant, body.parse(VideoChanges), given, _checked(idempotency_key), source)
    return await _waited(response, service, tenant, video, prefer)


def _files(body: Body) -> Given:
    return Given(_input(body, "image", "input_reference"), _input(body, "video"), _input(body, "audio"))


def _input(body: Body, name: str, *aliases: str) -> Upload | str | None:
    """A file of the form, or the id of an uploaded one, under any of its names; taken out of the fields."""
    given: list[Upload | str] = []
    for alias in (name, *aliases):
        if alias in body.files:
            given.append(body.files[alias])
        value = body.fields.pop(alias, None)
        if isinstance(value, dict):
            value = value.get("file_id")
        if isinstance(value, str) and value:
            given.append(value)
        elif value not in (None, ""):
            raise InfiniteTalkError(
                f"{name}_invalid", f"{name} cannot be used: send a file, or the id of an uploaded one.", param=name
            )
    if len(given) > 1:
        raise InfiniteTalkError(f"{name}_ambiguous", f"{name} is given twice: send it once.", param=name)
    return given[0] if given else None


def _checked(key: str | None) -> str | None:
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise InfiniteTalkError(
            "idempotency_key_invalid",
            "The Idempotency-Key cannot be used: send 1 to 255 plain characters.",
            param="Idempotency-Key",
        )
    return key


async def _waited(response: Response, service: Service, tenant: str, video: Video, prefer: str | None) -> Video:
    wait = _WAIT.search(prefer or "")
    response.headers["Location"] = f"/v1/videos/{video.id}"
    if not wait:
        return video
    seconds = min(int(wait[1]), service.settings.max_wait_seconds)
    response.headers["Preference-Applied"] = f"wait={seconds}"
    return await service.jobs.wait(tenant, video.id, seconds)
