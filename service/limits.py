"""How much one tenant may ask for: requests a second, jobs waiting, jobs running, seconds of video a day.

Limits are kept in the object store; what has been used of them, in Redis. A Redis that has been wiped has forgotten the day's
seconds, and one that does not answer refuses nobody: limits share what there is, keys guard it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model_store.errors import InfiniteTalkError
from service.queue import Queue, QueueUnavailable, queue_errors
from service.settings import Settings
from service.storage import ObjectMissing, Store

REMEMBERED_SECONDS = 5.0
_REMEMBERED = 10_000
_DAY_SECONDS = 86_400

# A token bucket as one time (GCRA): the moment at which it would be full again. A burst of one second's requests is allowed.
_ADMIT = """
local now = redis.call('time')
now = now[1] * 1000 + now[2] / 1000
local full = math.max(now, tonumber(redis.call('get', KEYS[1]) or 0)) + 1000 / ARGV[1]
if full - now > 1000 then return 0 end
redis.call('set', KEYS[1], string.format('%.3f', full), 'px', 2000)
return 1
"""


class Limits(BaseModel):
    """One tenant's limits; 0 is none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_second: int = Field(0, ge=0, le=100_000)
    queued_jobs: int = Field(0, ge=0)
    running_jobs: int = Field(0, ge=0)
    seconds_per_day: int = Field(0, ge=0)


def default_limits(settings: Settings) -> Limits:
    """What holds for a tenant without limits of its own."""
    return Limits(
        requests_per_second=settings.tenant_requests_per_second,
        queued_jobs=settings.tenant_queued_jobs,
        running_jobs=settings.tenant_running_jobs,
        seconds_per_day=settings.tenant_seconds_per_day,
    )


@dataclass
class Quota:
    """Applies the limits."""

    settings: Settings
    store: Store
    queue: Queue
    _seen: OrderedDict[str, tuple[Limits, float]] = field(default_factory=OrderedDict)

    async def limits(self, tenant: str) -> Limits:
        """The tenant's limits, as they were a few seconds ago."""
        known, until = self._seen.get(tenant, (None, 0.0))
        if known is None or time.monotonic() >= until:
            known = await asyncio.to_thread(read_limits, self.store, tenant) or default_limits(self.settings)
            self._seen[tenant] = (known, time.monotonic() + REMEMBERED_SECONDS)
            self._seen.move_to_end(tenant)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
        return known

    async def running_jobs(self, tenant: str) -> int:
        """How many of a tenant's jobs may run at a time; 0 for any number."""
        return (await self.limits(tenant)).running_jobs

    async def admit(self, tenant: str) -> None:
        """Count one request; ``rate_limited`` if there have been too many in this second."""
        rate = (await self.limits(tenant)).requests_per_second
        if not rate:
            return
        with suppress(QueueUnavailable):
            async with queue_errors():
                admitted: Any = await self.queue.redis.eval(_ADMIT, 1, self.queue.key("rate", tenant), rate)
            if not admitted:
                raise InfiniteTalkError(
                    "rate_limited", f"More than {rate} requests a second: send fewer, and follow events instead of asking again."
                )

    async def admit_job(self, tenant: str) -> None:
        """``tenant_queue_full`` or ``daily_limit_reached`` if the tenant may not ask for another video now."""
        limits = await self.limits(tenant)
        with suppress(QueueUnavailable):
            if limits.queued_jobs and await self.queue.waiting_of(tenant) >= limits.queued_jobs:
                raise InfiniteTalkError(
                    "tenant_queue_full",
                    f"{limits.queued_jobs} of your videos are waiting already: try again when some have been begun.",
                )
            if limits.seconds_per_day and await self.queue.made_today(tenant) >= limits.seconds_per_day:
                raise InfiniteTalkError(
                    "daily_limit_reached",
                    f"Today's {limits.seconds_per_day} seconds of video have been made: try again after midnight UTC.",
                )


def read_limits(store: Store, tenant: str) -> Limits | None:
    """A tenant's own limits, if it has any."""
    try:
        return Limits.model_validate_json(store.get(f"limits/{tenant}.json"))
    except ObjectMissing:
        return None


def write_limits(store: Store, tenant: str, limits: Limits) -> None:
    """Give a tenant limits of its own; felt everywhere within :data:`REMEMBERED_SECONDS`."""
    store.put(f"limits/{tenant}.json", limits.model_dump_json().encode(), "application/json")


def seconds_to_midnight() -> int:
    """Until the day's seconds begin anew (UTC)."""
    return _DAY_SECONDS - int(time.time()) % _DAY_SECONDS
