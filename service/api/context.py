"""What routes work with: made when the app starts, one for each process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Query, Request

from service.events import Events
from service.index import Index
from service.intake import Intake
from service.jobs import Jobs
from service.keys import Doorman, Keys
from service.ledger import Ledger
from service.limits import Quota
from service.playlist import Playlists
from service.probes import Place, serve_probes
from service.queue import Queue
from service.reconcile import Reconciler
from service.settings import Settings
from service.storage import Store, open_store
from service.tracing import start_tracing
from service.uploads import Uploads, largest_file
from service.webhooks import Deliverer


@dataclass(frozen=True)
class Context:
    """The parts of the service that the API uses."""

    settings: Settings
    store: Store
    jobs: Jobs
    uploads: Uploads
    playlists: Playlists
    streams: asyncio.Semaphore
    doorman: Doorman
    quota: Quota

    async def ready(self) -> bool:
        """Whether store and queue can be reached."""
        try:
            await self.jobs.queue.ping()
            await asyncio.to_thread(self.store.ping)
        except Exception:
            return False
        return True


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    """Connect to store and queue; neither has to be there yet."""
    start_tracing("infinitetalk-api")
    store = open_store(settings)
    ledger = Ledger(store)
    uploads = Uploads(store, settings.retention_seconds, largest_file(settings))
    async with AsyncExitStack() as stack:
        queue = await stack.enter_async_context(Queue(settings))
        index = Index(queue, ledger)
        quota = Quota(settings, store, queue)
        jobs = Jobs(settings, ledger, Intake(settings, ledger, uploads), queue, index, Events(queue), quota)
        context = Context(
            settings,
            store,
            jobs,
            uploads,
            Playlists(ledger, settings.presign_seconds),
            asyncio.Semaphore(settings.max_event_streams),
            Doorman(Keys(store), settings.presign_seconds),
            quota,
        )
        place = Place(settings.metrics_host, settings.metrics_port, "INFINITETALK_METRICS_PORT")
        await stack.enter_async_context(serve_probes(place, context.ready, queue.measure))
        tasks = [
            asyncio.create_task(Reconciler(settings, ledger, queue, index, uploads).run()),
            asyncio.create_task(Deliverer(ledger, queue, settings.webhook_allow_private).run()),
        ]
        try:
            yield context
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def context_of(app: FastAPI) -> Context:
    """The context of a running app."""
    context = app.state.context
    if not isinstance(context, Context):
        raise RuntimeError("the app has not been started")
    return context


async def _context(request: Request) -> Context:
    return context_of(request.app)


async def _tenant(
    request: Request, authorization: Annotated[str | None, Header(description="`Bearer <key>`, where there are keys.")] = None
) -> str:
    service = context_of(request.app)
    tenant = await asyncio.to_thread(service.doorman.tenant, authorization)
    await service.quota.admit(tenant)
    return tenant


async def _viewer(
    video_id: str,
    request: Request,
    authorization: Annotated[str | None, Header(description="`Bearer <key>`, where there are keys.")] = None,
    token: Annotated[str | None, Query(max_length=256, description="From the video's links, instead of a key.")] = None,
) -> str:
    if token is None:
        return await _tenant(request, authorization)
    service = context_of(request.app)
    tenant = await asyncio.to_thread(service.doorman.holder, token, video_id)
    await service.quota.admit(tenant)
    return tenant


Service = Annotated[Context, Depends(_context)]

Tenant = Annotated[str, Depends(_tenant)]
"""Who asks; everything a route touches is that tenant's."""

Viewer = Annotated[str, Depends(_viewer)]
"""Who asks to play or download a video: by key, or by a token for that one video."""
