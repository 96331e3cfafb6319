"""The index of jobs by time of creation, kept beside the queue and rebuilt from the ledger when it is lost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from service.job import Job
from service.ledger import Ledger
from service.queue import Queue, queue_errors

Order = Literal["asc", "desc"]

REBUILD_SECONDS = 60.0
_BATCH = 500


@dataclass(frozen=True)
class Page:
    """Ids of jobs, and whether there are more."""

    ids: list[str]
    has_more: bool


@dataclass(frozen=True)
class Index:
    """Lists a tenant's jobs in order of their creation."""

    queue: Queue
    ledger: Ledger

    async def add(self, job: Job) -> None:
        """Include a job."""
        async with queue_errors():
            await self.queue.redis.zadd(self.queue.index_key(job.tenant), {job.id: job.created_at})

    async def page(self, tenant: str, limit: int, after: str | None, order: Order) -> Page | None:
        """Up to ``limit`` ids, those that follow the job ``after``; None if there is no job of that id."""
        await self.restore()
        redis, key = self.queue.redis, self.queue.index_key(tenant)
        async with queue_errors():
            start = 0
            if after is not None:
                rank = await (redis.zrank(key, after) if order == "asc" else redis.zrevrank(key, after))
                if rank is None:
                    return None
                start = int(rank) + 1
            found = await redis.zrange(key, start, start + limit, desc=order == "desc")
        ids = [member.decode() for member in found]
        return Page(ids[:limit], len(ids) > limit)

    async def expired(self, limit: int = _BATCH) -> list[tuple[str, str]]:
        """Tenant and id of jobs whose time is up."""
        await self.restore()
        before = time.time() - self.queue.settings.retention_seconds
        due: list[tuple[str, str]] = []
        async with queue_errors():
            prefix = self.queue.index_key("")
            async for key in self.queue.redis.scan_iter(match=f"{prefix}*", count=_BATCH):
                tenant = key.decode().removeprefix(prefix)
                ids = await self.queue.redis.zrangebyscore(key, 0, before, start=0, num=limit)
                due += [(tenant, member.decode()) for member in ids]
        return due

    async def restore(self) -> None:
        """Rebuild the index if it has been lost."""
        complete = self.queue.key("indexed")
        async with queue_errors():
            if await self.queue.redis.exists(complete):
                return
        jobs = await asyncio.to_thread(lambda: list(self.ledger.all_jobs()))
        async with queue_errors(REBUILD_SECONDS):
            for job in jobs:
                await self.queue.redis.zadd(self.queue.index_key(job.tenant), {job.id: job.created_at})
            await self.queue.redis.set(complete, b"1")
