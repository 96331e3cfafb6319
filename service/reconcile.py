"""Makes the queue agree with the ledger again: at every start and once a minute, by any number of processes.

Each step may be repeated, interrupted, or done by two at once: adding a job that waits changes nothing, and a job that is added
although somebody works at it ends as soon as its new worker finds the lease, or the outcome.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from model_store.errors import InfiniteTalkError
from service.index import Index
from service.job import Job, Outcome
from service.ledger import DELETED_SECONDS, Ledger, Mark
from service.queue import Queue, QueueUnavailable, queue_errors
from service.run import late
from service.settings import Settings
from service.storage import StoreUnavailable
from service.uploads import Uploads

FIRST_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass
class Reconciler:
    """See the module's text."""

    settings: Settings
    ledger: Ledger
    queue: Queue
    index: Index
    uploads: Uploads
    _store_told: bool = False

    async def run(self) -> None:
        """Reconcile now, and again and again; soon after a failure, since what failed may be a server that is just starting."""
        while True:
            try:
                await self.once()
                pause = self.settings.reconcile_seconds
            except (QueueUnavailable, StoreUnavailable) as error:
                logger.warning("cannot reconcile: %s", error.message)
                pause = min(FIRST_RETRY_SECONDS, self.settings.reconcile_seconds)
            except Exception:
                # One object that nobody foresaw must not stop what all others rely on.
                logger.exception("reconciling failed")
                pause = self.settings.reconcile_seconds
            await asyncio.sleep(pause)

    async def once(self) -> None:
        """Queue every job that should be queued, end what is too late, and delete what is due."""
        if not self._store_told:
            # The sweep below deletes on time; the server's own rule, in whole days, is for what no sweep sees any more.
            days = math.ceil(self.settings.retention_hours / 24) + 1
            await asyncio.to_thread(self.ledger.store.expire, "tenants/", days)
            self._store_told = True
        await self.index.restore()
        for mark in await asyncio.to_thread(lambda: list(self.ledger.open_jobs())):
            await self._open(mark)
        for mark in await asyncio.to_thread(lambda: list(self.ledger.deleted_jobs())):
            await self._deleted(mark)
        for tenant, video_id in await self.index.expired():
            await self._expired(tenant, video_id)
        await asyncio.to_thread(self.uploads.sweep)

    async def _open(self, mark: Mark) -> None:
        job = await asyncio.to_thread(self.ledger.job, mark.tenant, mark.video_id)
        if job is None:
            if self.ledger.orphaned(mark):
                await asyncio.to_thread(self.ledger.remove, mark.tenant, mark.video_id)
                await asyncio.to_thread(self.ledger.close, mark.tenant, mark.video_id)
            return
        if await asyncio.to_thread(self.ledger.outcome, job.tenant, job.id):
            await asyncio.to_thread(self.ledger.close, job.tenant, job.id)
            return
        await self.index.add(job)
        if await self._too_late(job):
            outcome = Outcome(status="failed", error=late())
            if await asyncio.to_thread(self.ledger.finish, job, outcome):
                await self.queue.remove(job)
            return
        try:
            if await self.queue.leased(job.id):
                await self.queue.keep(job)
            else:
                await self.queue.add(job)
        except QueueUnavailable:
            raise
        except InfiniteTalkError:
            logger.warning("%s waits for the engine %r, which is not offered here", job.id, job.engine)

    async def _too_late(self, job: Job) -> bool:
        if job.start_before is None or time.time() <= job.start_before:
            return False
        return not await asyncio.to_thread(self.ledger.attempts, job.tenant, job.id)

    async def _deleted(self, mark: Mark) -> None:
        await asyncio.to_thread(self.ledger.remove, mark.tenant, mark.video_id)
        if time.time() - mark.since > DELETED_SECONDS:
            await asyncio.to_thread(self.ledger.forget, mark.tenant, mark.video_id)

    async def _expired(self, tenant: str, video_id: str) -> None:
        job = await asyncio.to_thread(self.ledger.job, tenant, video_id)
        await asyncio.to_thread(self.ledger.delete, tenant, video_id)
        async with queue_errors():
            await self.queue.redis.zrem(self.queue.index_key(tenant), video_id)
        if job:
            with suppress(InfiniteTalkError):
                await self.queue.remove(job)
            await self.queue.forget(job)
