"""A job's events: published by whoever changes it, followed by any number of clients, resumable for a day."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal

from service.job import Ending, Job
from service.queue import Queue, QueueUnavailable, queue_errors
from service.video import Video

EventType = Literal[
    "video.queued", "video.in_progress", "video.progress", "video.chunk", "video.completed", "video.failed", "video.cancelled"
]

ENDING_EVENTS: Mapping[Ending, EventType] = {
    "completed": "video.completed",
    "failed": "video.failed",
    "cancelled": "video.cancelled",
}

KEPT_EVENTS = 500
KEPT_SECONDS = 86_400
_BLOCK_SECONDS = 1.0
_PAGE = 100

EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}")


@dataclass(frozen=True)
class Event:
    """One event: its id (to resume after), its type, and the video object at that moment as JSON."""

    id: str
    type: EventType
    data: str


@dataclass(frozen=True)
class Events:
    """The events of all jobs."""

    queue: Queue

    async def publish(self, job: Job, kind: EventType, video: Video) -> None:
        """Tell those who listen, now or later."""
        key = self.queue.events_key(job.id)
        async with queue_errors(), self.queue.redis.pipeline(transaction=True) as pipe:
            pipe.xadd(key, {b"type": kind.encode(), b"data": video.model_dump_json().encode()}, maxlen=KEPT_EVENTS)
            pipe.expire(key, KEPT_SECONDS)
            await pipe.execute()

    async def last_id(self, video_id: str) -> str:
        """Id of the newest event, after which :meth:`follow` begins with what is yet to come."""
        async with queue_errors():
            newest = await self.queue.redis.xrevrange(self.queue.events_key(video_id), count=1)
        return str(newest[0][0].decode()) if newest else "0-0"

    async def holds(self, video_id: str, event_id: str) -> bool:
        """Whether everything after that event is still kept."""
        async with queue_errors():
            return bool(await self.queue.redis.xrange(self.queue.events_key(video_id), event_id, event_id, count=1))

    async def follow(self, video_id: str, after: str) -> AsyncIterator[list[Event]]:
        """Events after ``after`` as they come; an empty list about once a second while none does, or Redis is gone."""
        while True:
            try:
                async with queue_errors(_BLOCK_SECONDS + 2):
                    answer = await self.queue.redis.xread(
                        {self.queue.events_key(video_id): after}, count=_PAGE, block=int(_BLOCK_SECONDS * 1000)
                    )
            except QueueUnavailable:
                await asyncio.sleep(_BLOCK_SECONDS)
                answer = []
            events = [
                Event(event_id.decode(), fields[b"type"].decode(), fields[b"data"].decode())
                for _, entries in answer
                for event_id, fields in entries
            ]
            if events:
                after = events[-1].id
            yield events
