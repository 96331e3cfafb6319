"""Routes for following and playing a video: events, content, the playlist that grows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field

from model_store.errors import InfiniteTalkError
from service.api.context import Context, Service, Tenant, Viewer
from service.api.delivery import deliver
from service.api.errors import RESPONSES
from service.events import EVENT_ID
from service.job import Job, job_folder
from service.jobs import ENDED
from service.playlist import Track
from service.queue import QueueUnavailable

router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=RESPONSES)

HEARTBEAT_SECONDS = 10.0
LONGEST_STREAM_SECONDS = 3600.0
RETRY_MILLISECONDS = 1000

_PLAYLIST = "application/vnd.apple.mpegurl"


@router.get(
    "/{video_id}/events", operation_id="follow_video", summary="Follow a video's events", response_class=StreamingResponse
)
async def follow_video(
    video_id: str,
    service: Service,
    tenant: Tenant,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", description="Go on after this event.")] = None,
) -> StreamingResponse:
    """Server-sent events; `data` is the video object. The last one is `video.completed`, `video.failed` or `video.cancelled`."""
    job = await service.jobs.find(tenant, video_id)
    if service.streams.locked():
        raise InfiniteTalkError("too_many_streams", "Too many event streams are open here: try again in a few seconds, or poll.")
    return StreamingResponse(
        _events(service, tenant, job, last_event_id), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _events(service: Context, tenant: str, job: Job, last_event_id: str | None) -> AsyncIterator[str]:
    async with service.streams:
        with suppress(InfiniteTalkError):  # deleted, or the store is gone: the client's next request will say so
            async for text in _told(service, tenant, job, last_event_id):
                yield text


async def _told(service: Context, tenant: str, job: Job, last_event_id: str | None) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MILLISECONDS}\n\n"
    after, resumed = "0-0", False
    with suppress(QueueUnavailable):
        resumed = bool(
            last_event_id and EVENT_ID.fullmatch(last_event_id) and await service.jobs.events.holds(job.id, last_event_id)
        )
        after = last_event_id if resumed and last_event_id else await service.jobs.events.last_id(job.id)
    video = await service.jobs.view(tenant, job.id)
    if not resumed:
        yield _event(after, f"video.{video.status}", video.model_dump_json())
        if video.status in ENDED:
            return
    started = heard = asked = time.monotonic()
    overdue = False
    async for events in service.jobs.events.follow(job.id, after):
        for event in events:
            after = event.id
            yield _event(event.id, event.type, event.data)
            if event.type.removeprefix("video.") in ENDED:
                return
        now = time.monotonic()
        if events:
            heard = now
        elif now - asked >= 1:
            # What Redis has lost, the ledger still knows; but it is told first, so the event itself has a second to come.
            asked = now
            if await asyncio.to_thread(service.jobs.ledger.ended, job):
                if overdue:
                    video = await service.jobs.view(tenant, job.id)
                    yield _event(after, f"video.{video.status}", video.model_dump_json())
                    return
                overdue = True
        if now - heard >= HEARTBEAT_SECONDS:
            heard = now
            yield ": still here\n\n"
        if now - started >= LONGEST_STREAM_SECONDS:
            return  # clients come back by themselves, with Last-Event-ID


def _event(event_id: str, kind: str, data: str) -> str:
    return f"id: {event_id}\nevent: {kind}\ndata: {data}\n\n"


class Links(BaseModel):
    """Addresses of one video that need no key, below this service's own."""

    object: Literal["video.links"] = "video.links"
    stream: str = Field(description="HLS playlist, from the first chunk on.")
    content: str = Field(description="The MP4, once the video has completed.")
    thumbnail: str = Field(description="A JPEG of the first frame.")


@router.post("/{video_id}/links", operation_id="create_video_links", summary="Links for players")
async def create_video_links(video_id: str, service: Service, tenant: Tenant) -> Links:
    """Addresses to hand to a browser: whoever has them can play this one video, for an hour or two."""
    job = await service.jobs.find(tenant, video_id)
    query, base = await _query(service, job), f"/v1/videos/{job.id}"
    return Links(
        stream=f"{base}/stream.m3u8{query}",
        content=f"{base}/content{query}",
        thumbnail=f"{base}/content{query}{'&' if query else '?'}variant=thumbnail",
    )


@router.get("/{video_id}/content", operation_id="download_video", summary="Download a video", response_class=Response)
async def download_video(
    video_id: str,
    service: Service,
    tenant: Viewer,
    variant: Annotated[Literal["video", "thumbnail"], Query(description="The MP4, or a JPEG of its first frame.")] = "video",
) -> Response:
    """Ranges are served; on S3 this is a redirect to a link that works for some time."""
    job = await service.jobs.find(tenant, video_id)
    outcome = await service.jobs.outcome(job)
    if outcome is None or outcome.output is None:
        status = outcome.status if outcome else "not completed"
        raise InfiniteTalkError("content_not_ready", f"The video is {status}: its content is there once it has completed.")
    if variant == "thumbnail":
        return await deliver(service, f"{job_folder(job.tenant, job.id)}thumbnail.jpg", "image/jpeg")
    return await deliver(service, outcome.output, "video/mp4", f"{job.id}.mp4")


@router.get(
    "/{video_id}/stream.m3u8",
    operation_id="stream_video",
    summary="Play a video while it is made",
    response_class=PlainTextResponse,
)
async def stream_video(video_id: str, service: Service, tenant: Viewer) -> Response:
    """An HLS playlist, from the first chunk on; it grows until the video has ended."""
    job = await service.jobs.find(tenant, video_id)
    return _playlist(await asyncio.to_thread(service.playlists.master, job, await _query(service, job)))


@router.get("/{video_id}/stream/{track}.m3u8", operation_id="stream_track", summary="One track", response_class=PlainTextResponse)
async def stream_track(video_id: str, track: Track, service: Service, tenant: Viewer) -> Response:
    """The playlist of the picture or of the sound."""
    job = await service.jobs.find(tenant, video_id)
    outcome = await service.jobs.outcome(job)
    query = await _query(service, job)
    return _playlist(await asyncio.to_thread(service.playlists.media, job, track, outcome is not None, query))


@router.get(
    "/{video_id}/stream/{track}/init.mp4", operation_id="stream_init", summary="A track's beginning", response_class=Response
)
async def stream_init(video_id: str, track: Track, service: Service, tenant: Viewer) -> Response:
    """What a player reads before any segment."""
    job = await service.jobs.find(tenant, video_id)
    key = await asyncio.to_thread(service.playlists.key, job, track, None)
    return await deliver(service, key, f"{'video' if track == 'video' else 'audio'}/mp4")


@router.get(
    "/{video_id}/stream/{track}/{index}.m4s", operation_id="stream_segment", summary="One segment", response_class=Response
)
async def stream_segment(video_id: str, track: Track, index: int, service: Service, tenant: Viewer) -> Response:
    """One chunk of a track."""
    job = await service.jobs.find(tenant, video_id)
    key = await asyncio.to_thread(service.playlists.key, job, track, index)
    return await deliver(service, key, f"{'video' if track == 'video' else 'audio'}/mp4")


async def _query(service: Context, job: Job) -> str:
    """What addresses in playlists end with: players fetch them without a key."""
    token = await asyncio.to_thread(service.doorman.token, job.tenant, job.id)
    return f"?token={token}" if token else ""


def _playlist(text: str) -> Response:
    return PlainTextResponse(text, media_type=_PLAYLIST, headers={"Cache-Control": "no-store"})
