"""The queue and what else may be lost: leases, what running jobs say of themselves, and the index for listing.

Jobs wait in dockets (Redis streams), one for each engine and class of jobs, since a docket has no priorities and a worker serves
only the engines it has. All of it can be wiped: ``reconcile`` fills it again from the ledger.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from docket import Docket
from docket.execution import Disposition, ExecutionState
from redis.asyncio import Redis
from redis.asyncio.connection import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from model_store.errors import InfiniteTalkError
from service.job import Job, Live
from service.metrics import QUEUE_JOBS, QUEUE_OLDEST_WAIT, QUEUE_UP
from service.settings import JOB_CLASSES, JobClass, Settings

CALL_SECONDS = 3.0
"""Bound of one call to Redis: it answers in a millisecond or not at all."""

CONNECTIONS = 64
TASK = "perform"
"""The name under which workers register what they do."""

Perform = Callable[[str, str], Awaitable[None]]
"""What a worker does with a message: tenant and video id."""

_RENEW = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


class QueueUnavailable(InfiniteTalkError):
    """Redis did not answer; the same call may succeed later."""

    def __init__(self) -> None:
        super().__init__("queue_unavailable", "The queue does not answer: try again in a few seconds.")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), ())


@asynccontextmanager
async def queue_errors(seconds: float = CALL_SECONDS) -> AsyncIterator[None]:
    """Bound what is done within by time, and shape what Redis raises."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (RedisError, OSError, TimeoutError, ExceptionGroup) as error:
        raise QueueUnavailable from error


async def _declared(tenant: str, video_id: str) -> None:
    """The signature of the task, for those who only add it."""


class Queue:
    """One connection to the queue, entered with ``async with``.

    Args:
        settings: server, prefix, engines and time limits.
        perform: what to do with a message; None for those who only add.
    """

    def __init__(self, settings: Settings, perform: Perform | None = None) -> None:
        self.settings = settings
        self._perform = perform or _declared
        self._prefix = settings.redis_prefix
        # Any: the client's own annotations name every answer of every protocol version.
        self.redis: Any = Redis(
            connection_pool=BlockingConnectionPool.from_url(
                settings.queue_url,
                max_connections=CONNECTIONS + settings.max_event_streams,
                timeout=CALL_SECONDS,
                socket_connect_timeout=CALL_SECONDS,
                retry=Retry(NoBackoff(), 1),
            )
        )
        self.dockets: dict[tuple[str, JobClass], Docket] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._stack.push_async_callback(self.redis.aclose)
        for engine in self.settings.engines:
            for job_class in JOB_CLASSES:
                docket = Docket(name=f"{self._prefix}-{engine}-{job_class}", url=self.settings.queue_url)
                docket.register(self._perform, names=[TASK])
                self.dockets[engine, job_class] = await self._stack.enter_async_context(docket)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ping(self) -> None:
        """Return if Redis answers; :class:`QueueUnavailable` if not."""
        async with queue_errors():
            await self.redis.ping()

    # Waiting jobs

    async def add(self, job: Job) -> None:
        """Let a job wait for a worker; nothing changes if it waits or runs already."""
        docket = self._docket(job)
        async with queue_errors():
            await self._waits(job)  # before a worker can claim it and say that it waits no longer
            execution = await docket.add(TASK, key=job.id)(job.tenant, job.id)
            if execution.disposition is Disposition.SCHEDULED:
                return
            standing = await docket.get_execution(job.id)
            if standing is None or standing.state is not ExecutionState.RUNNING:
                return
            if await self.redis.exists(self._key("lease", job.id)):
                await self.redis.zrem(self._waiting(job.engine, job.job_class), _member(job))
            elif not await self._messages(docket, job.id):
                # As long as the message is there, whoever comes takes it from the worker that has died; a second one would
                # have a second worker started for one job.
                await docket.replace(TASK, datetime.now(UTC), job.id)(job.tenant, job.id)

    async def keep(self, job: Job) -> None:
        """Let a job that is worked at count as one, though Redis has lost its message: whoever claims the new one lets it lie."""
        docket = self._docket(job)
        async with queue_errors():
            if not await self._messages(docket, job.id):
                await docket.add(TASK, key=job.id)(job.tenant, job.id)

    async def ended(self, job: Job) -> None:
        """Count a job no longer, at once: whatever message of it is left would stand for a pod's worth of work."""
        docket = self._docket(job)
        async with queue_errors():
            messages = await self._messages(docket, job.id)
            for message in messages:
                await self.redis.xack(docket.stream_key, docket.worker_group_name, message)
            if messages:
                await self.redis.xdel(docket.stream_key, *messages)

    async def put_back(self, job: Job, seconds: float = 0.0) -> None:
        """Let a job that this process has claimed wait again, at the end, for at least ``seconds``."""
        async with queue_errors():
            when = datetime.now(UTC) + timedelta(seconds=seconds)
            await self._waits(job)
            await self._docket(job).replace(TASK, when, job.id)(job.tenant, job.id)

    async def remove(self, job: Job) -> None:
        """Take a job out of the queue, and make whoever works at it look whether it has ended."""
        async with queue_errors():
            await self.redis.delete(self._key("lease", job.id))
            await self.redis.zrem(self._waiting(job.engine, job.job_class), _member(job))
            if docket := self.dockets.get((job.engine, job.job_class)):
                await docket.cancel(job.id)

    async def position(self, job: Job) -> int | None:
        """How many jobs are to be taken before this one; None if it does not wait."""
        async with queue_errors():
            rank = await self.redis.zrank(self._waiting(job.engine, job.job_class), _member(job))
            if rank is None:
                return None
            ahead = 0 if job.job_class == "interactive" else await self.redis.zcard(self._waiting(job.engine, "interactive"))
            return int(rank) + int(ahead)

    async def waiting(self) -> int:
        """How many jobs wait, of all engines and classes."""
        async with queue_errors():
            return sum([await self.redis.zcard(self._waiting(*line)) for line in self.dockets])

    async def waiting_of(self, tenant: str) -> int:
        """How many of a tenant's jobs wait, of all engines and classes."""
        async with queue_errors():
            return sum([(await self._waiting_tenants(*line)).count(tenant) for line in self.dockets])

    async def count_made(self, tenant: str, seconds: float) -> None:
        """Add to the seconds of video made for a tenant today."""
        async with queue_errors():
            key = self._made_key(tenant)
            await self.redis.incrbyfloat(key, seconds)
            await self.redis.expire(key, timedelta(days=2))

    async def made_today(self, tenant: str) -> float:
        """Seconds of video made for a tenant today (UTC), as far as is known."""
        async with queue_errors():
            return float(await self.redis.get(self._made_key(tenant)) or 0)

    async def unclaimed(self, engine: str, job_class: JobClass) -> int:
        """How many messages a docket holds that no worker has claimed."""
        docket = self.dockets[engine, job_class]
        async with queue_errors():
            length = await self.redis.xlen(docket.stream_key)
            if not length:
                return 0
            groups = await self.redis.xinfo_groups(docket.stream_key)
            return int(length) - sum(int(group["pending"]) for group in groups)

    async def started(self, job: Job) -> None:
        """A worker has begun with it: it waits no longer."""
        async with queue_errors():
            now = time.time()
            await self.redis.zrem(self._waiting(job.engine, job.job_class), _member(job))
            await self.redis.zadd(self._key("running"), {_member(job): now})
            await self.redis.hset(self._begun_key(job), job.tenant, repr(now))
            await self.redis.expire(self._begun_key(job), timedelta(days=1))

    async def stopped(self, job: Job) -> None:
        """A worker works at it no longer, for whatever reason."""
        async with queue_errors():
            await self.redis.zrem(self._key("running"), _member(job))

    async def waiting_tenants(self, job: Job) -> list[str]:
        """Whose jobs wait in the queue that this one came from, once for each, the longest-waiting first."""
        async with queue_errors():
            return await self._waiting_tenants(job.engine, job.job_class)

    async def running_tenants(self) -> list[str]:
        """Whose jobs run, once for each; what a worker left behind when it died counts no longer than its lease."""
        async with queue_errors():
            started = await self.redis.zrange(self._key("running"), 0, -1, withscores=True)
            members = [(member.decode(), since) for member, since in started]
            leases = [self._key("lease", member.partition("/")[2]) for member, _ in members]
            held = await self.redis.mget(leases) if leases else []
            alive: list[str] = []
            dead: list[str] = []
            for (member, since), lease in zip(members, held, strict=True):
                known = lease or time.time() - since < self.settings.lease_seconds
                (alive if known else dead).append(member)
            if dead:
                await self.redis.zrem(self._key("running"), *dead)
            return [member.partition("/")[0] for member in alive]

    async def last_begun(self, job: Job) -> dict[str, float]:
        """When a job of each tenant was last begun, of those that share this one's queue (seconds since 1970)."""
        async with queue_errors():
            found = await self.redis.hgetall(self._begun_key(job))
            return {tenant.decode(): float(when) for tenant, when in found.items()}

    async def measure(self) -> None:
        """Bring the metrics of the queue up to date; a queue that does not answer has none."""
        try:
            async with queue_errors():
                figures = {line: await self._figures(*line) for line in self.dockets}
        except QueueUnavailable:
            for gauge in (QUEUE_JOBS, QUEUE_OLDEST_WAIT):
                gauge.clear()  # an old figure would pass for a true one
            QUEUE_UP.set(0)
            return
        for line, (queued, running, oldest) in figures.items():
            QUEUE_JOBS.labels(*line, "queued").set(queued)
            QUEUE_JOBS.labels(*line, "running").set(running)
            QUEUE_OLDEST_WAIT.labels(*line).set(oldest)
        QUEUE_UP.set(1)

    async def _figures(self, engine: str, job_class: JobClass) -> tuple[int, int, float]:
        """Jobs queued, jobs running, and the longest wait in seconds."""
        docket, waiting = self.dockets[engine, job_class], self._waiting(engine, job_class)
        running = 0
        if await self.redis.exists(docket.stream_key):
            running = sum(int(group["pending"]) for group in await self.redis.xinfo_groups(docket.stream_key))
        first = await self.redis.zrange(waiting, 0, 0, withscores=True)
        oldest = max(0.0, time.time() - first[0][1]) if first else 0.0
        return int(await self.redis.zcard(waiting)), running, oldest

    # Leases: who works at a job. They save work and decide nothing; the ledger's conditional creates decide.

    async def lease(self, video_id: str, holder: str) -> bool:
        """Take the job's lease; False if another holds it."""
        async with queue_errors():
            return bool(await self.redis.set(self._key("lease", video_id), holder, nx=True, px=self._lease_ms))

    async def seize(self, video_id: str, holder: str) -> None:
        """Take the lease from whoever holds it: a worker whose chunk has come to count is the one whose job it is."""
        async with queue_errors():
            await self.redis.set(self._key("lease", video_id), holder, px=self._lease_ms)

    async def renew(self, video_id: str, holder: str) -> bool:
        """Hold the lease longer; False if it is no longer this holder's."""
        async with queue_errors():
            return bool(await self.redis.eval(_RENEW, 1, self._key("lease", video_id), holder, self._lease_ms))

    async def release(self, video_id: str, holder: str) -> None:
        """Give the lease up."""
        async with queue_errors():
            await self.redis.eval(_RELEASE, 1, self._key("lease", video_id), holder)

    async def leased(self, video_id: str) -> bool:
        """Whether somebody works at the job."""
        async with queue_errors():
            return bool(await self.redis.exists(self._key("lease", video_id)))

    async def hold(self, name: str, holder: str, seconds: float) -> bool:
        """Take or keep the lock of that name, for work that one process at a time should do; False if another has it."""
        async with queue_errors():
            key = self._key("lock", name)
            if await self.redis.set(key, holder, nx=True, px=int(seconds * 1000)):
                return True
            return bool(await self.redis.eval(_RENEW, 1, key, holder, int(seconds * 1000)))

    # What running jobs say of themselves

    async def say(self, video_id: str, live: Live) -> None:
        """Note where a job stands."""
        async with queue_errors():
            await self.redis.set(self._key("live", video_id), live.to_bytes(), px=int(self.settings.retention_seconds * 1000))

    async def live(self, video_id: str) -> Live | None:
        """Where a job stands, as far as is known."""
        async with queue_errors():
            data = await self.redis.get(self._key("live", video_id))
        return Live.model_validate_json(data) if data else None

    async def forget(self, job: Job) -> None:
        """Drop everything about a job."""
        async with queue_errors():
            await self.redis.delete(self._key("live", job.id), self.events_key(job.id))
            await self.redis.zrem(self.index_key(job.tenant), job.id)
            await self.redis.zrem(self._waiting(job.engine, job.job_class), _member(job))

    async def _messages(self, docket: Docket, video_id: str) -> list[bytes]:
        """A job's messages in the stream, claimed or not."""
        messages = await self.redis.xrange(docket.stream_key)
        return [message for message, fields in messages if fields.get(b"key") == video_id.encode()]

    # Names

    def events_key(self, video_id: str) -> str:
        """The stream of a job's events."""
        return self._key("events", video_id)

    def index_key(self, tenant: str) -> str:
        """The sorted set of a tenant's jobs by time of creation."""
        return self._key("index", tenant)

    def key(self, *parts: str) -> str:
        """A key of this deployment's own."""
        return self._key(*parts)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    async def _waiting_tenants(self, engine: str, job_class: JobClass) -> list[str]:
        """Whose jobs wait, once for each job, the longest-waiting first."""
        members = await self.redis.zrange(self._waiting(engine, job_class), 0, -1)
        return [member.decode().partition("/")[0] for member in members]

    def _begun_key(self, job: Job) -> str:
        return self._key("begun", job.engine, job.job_class)

    def _made_key(self, tenant: str) -> str:
        return self._key("made", tenant, datetime.now(UTC).strftime("%Y-%m-%d"))

    def _waiting(self, engine: str, job_class: JobClass) -> str:
        return self._key("waiting", engine, job_class)

    @property
    def _lease_ms(self) -> int:
        # Shorter than the docket's own lease, so that a job that is delivered again is free to be taken.
        return int(self.settings.lease_seconds * 500)

    def _docket(self, job: Job) -> Docket:
        docket = self.dockets.get((job.engine, job.job_class))
        if docket is None:
            raise InfiniteTalkError(
                "engine_unknown", f"The engine {job.engine!r} is not offered here: add it to INFINITETALK_ENGINES.", param="model"
            )
        return docket

    async def _waits(self, job: Job) -> None:
        await self.redis.zadd(self._waiting(job.engine, job.job_class), {_member(job): datetime.now(UTC).timestamp()}, nx=True)


def _member(job: Job) -> str:
    """A job among those that wait: its tenant is read from there, too."""
    return f"{job.tenant}/{job.id}"
