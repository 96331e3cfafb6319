"""What the API does with jobs: the ledger, the queue, the index and the events in concert.

The ledger comes first: what it has accepted happens, even when Redis is gone at that moment, for ``reconcile`` catches up.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from model_store.errors import InfiniteTalkError
from service.events import Events
from service.index import Index, Order
from service.intake import Given, Intake, VideoOptions
from service.job import VIDEO_ID, Job, Live, Outcome
from service.ledger import Ledger
from service.limits import Quota
from service.metrics import JOBS_SUBMITTED
from service.queue import Queue, QueueUnavailable
from service.settings import Settings
from service.video import Video, describe

ENDED = {"completed", "failed", "cancelled"}


@dataclass(frozen=True)
class Jobs:
    """All that can be done with a tenant's jobs; a job of another tenant is not there (``video_not_found``)."""

    settings: Settings
    ledger: Ledger
    intake: Intake
    queue: Queue
    index: Index
    events: Events
    quota: Quota

    async def submit(
        self,
        tenant: str,
        request: VideoOptions,
        given: Given,
        idempotency_key: str | None = None,
        source: Job | None = None,
    ) -> Video:
        """A new job, or the one that this request has made before; see :meth:`service.intake.Intake.submit`."""
        if idempotency_key is None or not await asyncio.to_thread(
            self.ledger.job, tenant, self.ledger.video_id(tenant, idempotency_key)
        ):
            await self._require_room()
            await self.quota.admit_job(tenant)
        submission = await asyncio.to_thread(self.intake.submit, tenant, request, given, idempotency_key, source)
        job = submission.job
        if submission.created:
            JOBS_SUBMITTED.labels(job.engine, job.job_class).inc()
            with suppress(QueueUnavailable):
                await self.index.add(job)
                await self.queue.add(job)
                await self.events.publish(job, "video.queued", describe(job))
        return await self.describe(job)

    async def find(self, tenant: str, video_id: str) -> Job:
        """What was asked; ``video_not_found`` if there is no such job, or its time is up."""
        job = await asyncio.to_thread(self.ledger.job, tenant, video_id) if VIDEO_ID.fullmatch(video_id) else None
        if job is None or job.expires_at < time.time():
            raise InfiniteTalkError("video_not_found", f"There is no video {video_id[:64]!r}: check its id; it may have expired.")
        return job

    async def view(self, tenant: str, video_id: str) -> Video:
        """The video object."""
        return await self.describe(await self.find(tenant, video_id))

    async def describe(self, job: Job) -> Video:
        """The video object of a job at this moment."""
        outcome, plan = await asyncio.gather(
            asyncio.to_thread(self.ledger.outcome, job.tenant, job.id), asyncio.to_thread(self.ledger.plan, job.tenant, job.id)
        )
        live, position = None, None
        with suppress(QueueUnavailable):
            live = await self.queue.live(job.id)
            if outcome is None and live is None:
                position = await self.queue.position(job)
        if outcome is None and live is None and position is None:
            live = await asyncio.to_thread(self._recollect, job)
        return describe(job, plan=plan, live=live, outcome=outcome, position=position)

    async def outcome(self, job: Job) -> Outcome | None:
        """How a job ended, if it has."""
        return await asyncio.to_thread(self.ledger.outcome, job.tenant, job.id)

    async def page(self, tenant: str, limit: int, after: str | None, order: Order) -> tuple[list[Video], bool]:
        """Up to ``limit`` video objects that follow ``after``, and whether there are more."""
        page = await self.index.page(tenant, limit, after, order)
        if page is None:
            raise InfiniteTalkError(
                "after_invalid", f"There is no video {after!r}: give the last id of the page before.", param="after"
            )
        videos = await asyncio.gather(*(self._view_if_any(tenant, video_id) for video_id in page.ids))
        return [video for video in videos if video], page.has_more

    async def cancel(self, tenant: str, video_id: str) -> Video:
        """End a job; ``video_ended`` if it has ended otherwise."""
        job = await self.find(tenant, video_id)
        view = await self.describe(job)
        outcome = Outcome(status="cancelled", attempt=view.attempt)
        if not await asyncio.to_thread(self.ledger.finish, job, outcome):
            view = await self.describe(job)
            if view.status != "cancelled":
                raise InfiniteTalkError("video_ended", f"The video has already {view.status}: there is nothing to cancel.")
            return view
        with suppress(QueueUnavailable):
            await self.queue.remove(job)
        view = await self.describe(job)
        with suppress(QueueUnavailable):
            await self.events.publish(job, "video.cancelled", view)
        return view

    async def delete(self, tenant: str, video_id: str) -> None:
        """Remove a job and every object of it, also while it runs."""
        job = await self.find(tenant, video_id)
        await asyncio.to_thread(self.ledger.delete, tenant, video_id)
        # Whoever holds the lease clears up when it has stopped; a lease that cannot be seen is left to reconcile.
        with suppress(QueueUnavailable):
            at_work = await self.queue.leased(video_id)
            await self.queue.remove(job)
            await self.queue.forget(job)
            if not at_work:
                await asyncio.to_thread(self.ledger.forget, tenant, video_id)

    async def wait(self, tenant: str, video_id: str, seconds: float) -> Video:
        """The video object as soon as it has ended, or after ``seconds``."""
        deadline = time.monotonic() + seconds
        after = "0-0"
        with suppress(QueueUnavailable):
            after = await self.events.last_id(video_id)
        video = await self.view(tenant, video_id)
        if video.status in ENDED or seconds <= 0:
            return video
        async for _ in self.events.follow(video_id, after):
            video = await self.view(tenant, video_id)
            if video.status in ENDED or time.monotonic() >= deadline:
                break
        return video

    async def _require_room(self) -> None:
        with suppress(QueueUnavailable):
            if await self.queue.waiting() >= self.settings.max_queued_jobs:
                raise InfiniteTalkError(
                    "queue_full", f"{self.settings.max_queued_jobs} videos are waiting already: try again in a minute."
                )

    async def _view_if_any(self, tenant: str, video_id: str) -> Video | None:
        try:
            return await self.view(tenant, video_id)
        except InfiniteTalkError as error:
            if error.code != "video_not_found":
                raise
            return None

    def _recollect(self, job: Job) -> Live:
        """Where a job stands by the ledger alone, when Redis has lost what its worker said."""
        attempts = self.ledger.attempts(job.tenant, job.id)
        plan = self.ledger.plan(job.tenant, job.id)
        done = len(self.ledger.commits(job.tenant, job.id)) if plan else 0
        return Live(
            stage="waiting" if attempts else "queued",
            progress=100 * done / plan.chunks if plan else 0.0,
            chunks_done=done,
            chunks_total=plan.chunks if plan else None,
            attempt=attempts,
        )
