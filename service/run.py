"""One job in the hands of one worker: from the claimed message to an outcome, a hand-back, or the discovery that it is another's.

The order of writing is what makes it safe to be killed anywhere: fragment and checkpoint first, then the commit that names them;
the MP4 first, then the outcome that names it. What was written and never named is nobody's, and is deleted with the job.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from opentelemetry import trace

from model_store.engine import FPS
from service.engine_process import EngineCrashedError, EngineProcess
from service.events import ENDING_EVENTS, Events, EventType
from service.job import Attempt, Commit, Failure, Job, Live, Outcome, PlanRecord, Stage, Usage, chunk_name, job_folder, new_token
from service.ledger import Ledger
from service.metrics import (
    ATTEMPTS,
    CHUNK_DURATION,
    ENGINE_RESTARTS,
    FIRST_FRAGMENT,
    FRAMES,
    REAL_TIME_FACTOR,
    STAGE_DURATION,
)
from service.queue import Queue, QueueUnavailable
from service.settings import Settings
from service.storage import ObjectMissing, StoreUnavailable
from service.video import describe
from service.wire import Message

WATCH_SECONDS = 0.5
"""How often a run asks whether it is still wanted; with the engine's own second this keeps a cancel within two."""

STORE_PATIENCE_SECONDS = 600.0
"""How long a run waits for a store that does not answer before it gives the job up to whoever finds it next."""

LOAD_TRIES = 3
"""Engine processes that may end before they have begun with the job: the fault is this machine's, not the job's."""

MISSING_TRIES = 3
"""How often an object that should be there may not be."""

LEASE_TAKEN_SECONDS = 1.0

_DATA_MISSING = "Something that belongs to this video is no longer in the object store: submit it again."

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class EngineUnusableError(Exception):
    """The engine cannot be started here."""


class _LostError(Exception):
    """Another worker's chunk counts: the job is that worker's."""


class _Reason(Enum):
    ENDED = "it has ended"
    LOST = "another worker has it"
    OVERTIME = "it has used up its time"


async def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread; a cancel waits for it, so that nothing is written after the cancel has returned."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        with suppress(Exception):
            await call
        raise


async def _insisting(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Like :func:`blocking`, and again while the store does not answer."""
    deadline, pause = time.monotonic() + STORE_PATIENCE_SECONDS, 0.2
    while True:
        try:
            return await blocking(function, *args, **kwargs)
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)


@dataclass(frozen=True)
class Workplace:
    """What a worker's runs share."""

    settings: Settings
    ledger: Ledger
    queue: Queue
    events: Events
    engine: EngineProcess
    worker: str
    stopping: asyncio.Event
    give_way: Callable[[Job], Awaitable[bool]]
    """Whether a job should let another go first, asked after each chunk."""


@dataclass
class Run:
    """Performs one job; see :meth:`perform`."""

    place: Workplace
    job: Job
    _token: str = field(default_factory=new_token)
    _attempt: Attempt | None = None
    _plan: PlanRecord | None = None
    _live: Live = field(default_factory=lambda: Live(stage="waiting"))
    _commits: list[Commit] = field(default_factory=list)
    _usage: Usage = field(default_factory=Usage)
    _working_since: float | None = None
    _paced: tuple[float, int] | None = None
    _load_crashes: int = 0
    _stage_since: float = field(default_factory=time.monotonic)

    async def perform(self) -> Outcome | None:
        """Work until there is nothing more to do here.

        Returns:
            The outcome, if this run decided it.

        Raises:
            EngineUnusableError: the engine cannot be started on this machine; the job has been put back.
            StoreUnavailable: the store was gone for too long; ``reconcile`` will find the job.
        """
        with suppress(QueueUnavailable):
            await self.place.queue.started(self.job)
        if await _insisting(self.place.ledger.ended, self.job):
            await self._clear_deleted()
            return None
        if self.place.stopping.is_set() or not await self._take_lease():
            with suppress(QueueUnavailable):
                await self.place.queue.stopped(self.job)
            await self._put_back(0.0 if self.place.stopping.is_set() else LEASE_TAKEN_SECONDS)
            return None
        workdir = Path(tempfile.mkdtemp(prefix="infinitetalk-"))
        work = asyncio.create_task(self._work(workdir))
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            reason = watch.result()
            await self._halt(work)
            logger.info("%s: stopped, %s", self.job.id, reason.value)
            if reason is _Reason.LOST:
                await self._put_back_later()
            if reason is _Reason.OVERTIME:
                message = (
                    f"The video took longer than the {self.job.max_run_seconds:g} s it was given: allow more, or ask for less."
                )
                return await self._fail(Failure(code="run_time_exceeded", message=message, param="max_run_seconds"))
            return None
        finally:
            await self._halt(work)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            shutil.rmtree(workdir, ignore_errors=True)
            with suppress(QueueUnavailable):
                await self.place.queue.stopped(self.job)
                await self.place.queue.release(self.job.id, self._token)
            await self._clear_deleted()

    # Watching

    async def _watch(self) -> _Reason:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            with suppress(QueueUnavailable):
                if not await self.place.queue.renew(self.job.id, self._token):
                    # Wiped, run out, or taken away to make us look.
                    with suppress(StoreUnavailable):
                        if await blocking(self.place.ledger.ended, self.job):
                            return _Reason.ENDED
                    if not await self.place.queue.lease(self.job.id, self._token):
                        return _Reason.LOST
            with suppress(StoreUnavailable):
                if await blocking(self.place.ledger.ended, self.job):
                    return _Reason.ENDED
            if self._working_since is not None:
                working = time.monotonic() - self._working_since
                if self._usage.engine_seconds + working > self.job.max_run_seconds:
                    return _Reason.OVERTIME

    async def _halt(self, work: asyncio.Task[Outcome | None]) -> None:
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        await self.place.engine.stop()

    async def _take_lease(self) -> bool:
        try:
            return await self.place.queue.lease(self.job.id, self._token)
        except QueueUnavailable:
            return True  # leases only save work

    async def _put_back(self, seconds: float = 0.0) -> None:
        with suppress(QueueUnavailable):  # reconcile will
            await self.place.queue.put_back(self.job, seconds)

    async def _put_back_later(self) -> None:
        # Two that meet may both stop, each having lost to the other; whoever looks again finds a lease, an outcome, or work.
        await self._put_back(self.place.settings.lease_seconds)

    async def _clear_deleted(self) -> None:
        with suppress(StoreUnavailable):
            if await blocking(self.place.ledger.is_deleted, self.job.tenant, self.job.id):
                await blocking(self.place.ledger.forget, self.job.tenant, self.job.id)

    # Working

    async def _work(self, workdir: Path) -> Outcome | None:
        ledger, job = self.place.ledger, self.job
        late_now = job.start_before is not None and time.time() > job.start_before
        if late_now and not await _insisting(ledger.attempts, job.tenant, job.id):
            return await self._fail(late())
        missed = 0
        while True:
            self._commits = await _insisting(ledger.commits, job.tenant, job.id)
            self._plan = await _insisting(ledger.plan, job.tenant, job.id)
            self._usage = _sum(self._commits)
            try:
                await self._fetch_inputs(workdir)
                if self._plan is None or len(self._commits) < self._plan.chunks:
                    outcome = await self._make_chunks(workdir)
                    if outcome is not None:
                        return outcome
                    if self._plan is None or len(self._commits) < self._plan.chunks:
                        return None  # handed back
                return await self._join(workdir)
            except EngineCrashedError:
                ENGINE_RESTARTS.labels(job.engine).inc()
                self._working_since = None
                if self._attempt is None:
                    self._load_crashes += 1
                    if self._load_crashes >= LOAD_TRIES:
                        await self._put_back()
                        raise EngineUnusableError(f"the engine {job.engine} cannot be started") from None
                self._attempt = None
            except ObjectMissing:
                # Deleted at this moment, or a rival has just replaced the checkpoint; else somebody has been in the bucket.
                missed += 1
                if await _insisting(ledger.ended, job):
                    return None
                if missed >= MISSING_TRIES:
                    return await self._fail(Failure(code="data_missing", message=_DATA_MISSING))
            except _LostError:
                logger.info("%s: stopped, %s", job.id, _Reason.LOST.value)
                await self._put_back_later()
                return None

    async def _fetch_inputs(self, workdir: Path) -> None:
        for name, source in (("reference", self.job.reference), ("audio", self.job.audio)):
            if (workdir / name).exists():
                continue
            await _insisting(self._download, source.key, workdir / name)

    def _download(self, key: str, target: Path) -> None:
        pieces = self.place.ledger.store.read(key)
        with target.open("wb") as file:
            file.writelines(pieces)

    async def _make_chunks(self, workdir: Path) -> Outcome | None:
        """Make the chunks that are missing; an outcome only if the job has failed."""
        job, store = self.job, self.place.ledger.store
        checkpoint = (await _insisting(store.get, self._commits[-1].checkpoint),) if self._commits else ()
        await self._say("load")
        await self.place.engine.order("perform", self._perform_order(workdir), *checkpoint)
        while True:
            answer = await self.place.engine.answer()
            if answer.kind == "begin":
                self._attempt = await _insisting(
                    self.place.ledger.begin, job, len(self._commits), self.place.worker, self.place.settings.max_attempts
                )
                if self._attempt is None:
                    await self.place.engine.stop()
                    return await self._fail(_crashed(self.place.settings.max_attempts))
                self._working_since = time.monotonic()
                logger.info("%s: has begun at chunk %d, attempt %d", job.id, self._attempt.chunk, self._attempt.number)
                ATTEMPTS.labels(job.engine).inc()
                await self._say("prepare", "video.in_progress")
            elif answer.kind == "progress":
                await self._note(answer)
            elif answer.kind == "planned":
                await self._keep_plan(answer)
            elif answer.kind == "chunk":
                await self._keep_chunk(answer)
                unfinished = self._plan is not None and len(self._commits) < self._plan.chunks
                if unfinished and (self.place.stopping.is_set() or await self.place.give_way(job)):
                    await self._hand_back()
                    return None
            elif answer.kind == "done":
                return None
            elif answer.kind == "error":
                return await self._fail(Failure(**answer.fields))

    def _perform_order(self, workdir: Path) -> dict[str, Any]:
        job = self.job
        return {
            "engine": job.engine,
            "reference": str(workdir / "reference"),
            "reference_kind": job.reference_kind,
            "audio": str(workdir / "audio"),
            "workdir": str(workdir),
            "max_seconds": self.place.settings.max_video_seconds,
            "seconds": job.seconds,
            "size": job.size,
            "resolution": job.resolution,
            "aspect_ratio": job.aspect_ratio,
            "seed": job.seed,
            "prompt": job.prompt,
            "expressiveness": job.expressiveness,
            "options": job.options,
        }

    async def _note(self, answer: Message) -> None:
        """Show the engine's progress."""
        stage, chunk, done, total = (answer.fields[name] for name in ("stage", "chunk", "done", "total"))
        made = chunk + done / total if total and stage == "perform" else 0.0
        await self._say(stage, "video.progress", made)

    async def _keep_plan(self, answer: Message) -> None:
        """Store what players need first, the first time."""
        if self._plan is None:
            store = self.place.ledger.store
            video_init, sound_init = self._key(f"plan/video-{self._token}.mp4"), self._key(f"plan/sound-{self._token}.mp4")
            await _insisting(store.put, video_init, answer.parts[0], "video/mp4")
            await _insisting(store.put, sound_init, answer.parts[1], "audio/mp4")
            plan = PlanRecord(**answer.fields, video_init=video_init, sound_init=sound_init)
            self._plan = await _insisting(self.place.ledger.create_plan, self.job, plan)
        await self._say("prepare", "video.progress")

    async def _keep_chunk(self, answer: Message) -> None:
        """Store a chunk and make it count."""
        store, index, token = self.place.ledger.store, answer.fields["index"], new_token()
        name = f"{chunk_name(index)}-{token}"
        # Players judge segments by their names' endings, on S3 by those of the keys.
        fragment, sound = self._key(f"fragments/{name}.m4s"), self._key(f"sound/{name}.m4s")
        checkpoint = self._key(f"checkpoints/{name}")
        commit = Commit(
            index=index,
            start=answer.fields["start"],
            frames=answer.fields["frames"],
            seconds=answer.fields["seconds"],
            gpu_seconds=answer.fields["seconds"] if answer.fields["on_gpu"] else 0.0,
            fragment=fragment,
            fragment_bytes=len(answer.parts[0]),
            sound=sound,
            sound_bytes=len(answer.parts[1]),
            sound_seconds=answer.fields["sound_seconds"],
            checkpoint=checkpoint,
            token=token,
        )
        await _insisting(store.put, fragment, answer.parts[0], "video/mp4")
        await _insisting(store.put, sound, answer.parts[1], "audio/mp4")
        await _insisting(store.put, checkpoint, answer.parts[2])
        if len(answer.parts) > 3:
            await _insisting(store.put, self._key("thumbnail.jpg"), answer.parts[3], "image/jpeg")
        if not await _insisting(self.place.ledger.commit, self.job, commit):
            await _insisting(store.delete, fragment, sound, checkpoint)
            raise _LostError
        with suppress(QueueUnavailable):
            await self.place.queue.seize(self.job.id, self._token)
        if self._commits:
            await _insisting(store.delete, self._commits[-1].checkpoint)
        self._commits.append(commit)
        self._count(commit)
        with suppress(QueueUnavailable):
            await self.place.queue.count_made(self.job.tenant, commit.frames / FPS)
        self._usage = _sum(self._commits)
        self._working_since = time.monotonic()
        await self.place.engine.more()
        await self._say("perform", "video.chunk")

    def _count(self, commit: Commit) -> None:
        engine = self.job.engine
        FRAMES.labels(engine).inc(commit.frames)
        CHUNK_DURATION.labels(engine).observe(commit.seconds)
        if commit.seconds > 0:
            REAL_TIME_FACTOR.labels(engine).observe(commit.frames / FPS / commit.seconds)
        if commit.index == 0:
            FIRST_FRAGMENT.labels(engine, self.job.job_class).observe(max(0.0, time.time() - self.job.created_at))

    async def _hand_back(self) -> None:
        """Stop after a committed chunk and let the job wait for the next worker, with nothing counted against it."""
        await self.place.engine.stop()
        self._working_since = None
        if self._attempt:
            await _insisting(self.place.ledger.give_back, self.job, self._attempt)
        await self._say("waiting", "video.progress")
        await self._put_back()
        logger.info("%s: handed back after chunk %d", self.job.id, self._commits[-1].index)

    async def _join(self, workdir: Path) -> Outcome | None:
        """Make the MP4 of the fragments and the original sound, and end the job."""
        store, output = self.place.ledger.store, self._key(f"output/{self._token}.mp4")
        await self._say("finish", "video.progress")
        fragments = workdir / "fragments"
        fragments.mkdir(exist_ok=True)
        for commit in self._commits:
            await _insisting(self._download, commit.fragment, fragments / chunk_name(commit.index))
        made = workdir / "output.mp4"
        plan = self._plan
        if plan is None:
            raise RuntimeError("chunks without a plan")
        await _insisting(self._download, plan.video_init, workdir / "init")
        await self.place.engine.order(
            "finish",
            {
                "init": str(workdir / "init"),
                "fragments": str(fragments),
                "audio": str(workdir / "audio"),
                "output": str(made),
            },
        )
        while (answer := await self.place.engine.answer()).kind != "finished":
            if answer.kind == "error":
                return await self._fail(Failure(**answer.fields))
        await _insisting(self._upload, made, output)
        outcome = Outcome(
            status="completed",
            output=output,
            output_bytes=made.stat().st_size,
            usage=self._usage,
            attempt=self._live.attempt,
        )
        if not await self._end(outcome):
            await _insisting(store.delete, output)
            return None
        await _insisting(store.delete, self._commits[-1].checkpoint)
        return outcome

    def _upload(self, file: Path, key: str) -> None:
        with file.open("rb") as source:
            self.place.ledger.store.upload(key, source, file.stat().st_size, "video/mp4")

    async def _fail(self, failure: Failure) -> Outcome | None:
        outcome = Outcome(status="failed", error=failure, usage=self._usage, attempt=self._live.attempt)
        return outcome if await self._end(outcome) else None

    async def _end(self, outcome: Outcome) -> bool:
        if not await _insisting(self.place.ledger.finish, self.job, outcome):
            return False
        STAGE_DURATION.labels(self.job.engine, self._live.stage).observe(time.monotonic() - self._stage_since)
        logger.info("%s: %s%s", self.job.id, outcome.status, f", {outcome.error.code}" if outcome.error else "")
        with suppress(QueueUnavailable):
            await self.place.queue.ended(self.job)
            video = describe(self.job, plan=self._plan, live=self._live, outcome=outcome)
            await self.place.events.publish(self.job, ENDING_EVENTS[outcome.status], video)
        return True

    async def _say(self, stage: Stage, event: EventType | None = None, made: float = 0.0) -> None:
        """Note where the job stands, and tell those who listen. ``made`` is how many chunks the engine has made, in parts too."""
        if stage != self._live.stage:
            now = time.monotonic()
            STAGE_DURATION.labels(self.job.engine, self._live.stage).observe(now - self._stage_since)
            self._stage_since = now
            trace.get_current_span().add_event("stage", {"stage": stage})
        done = sum(commit.frames for commit in self._commits)
        total = self._plan.frames if self._plan else None
        # The engine is ahead of what has been committed; what has been shown is never taken back.
        share = max(done / total, made / self._plan.chunks) if total and self._plan else 0.0
        self._live = Live(
            stage=stage,
            progress=max(self._live.progress, 100 * min(1.0, share)),
            chunks_done=len(self._commits),
            chunks_total=self._plan.chunks if self._plan else None,
            eta_seconds=self._eta(done, total),
            attempt=self._attempt.number if self._attempt else self._live.attempt,
            usage=self._usage,
        )
        with suppress(QueueUnavailable):
            await self.place.queue.say(self.job.id, self._live)
            if event:
                await self.place.events.publish(self.job, event, describe(self.job, plan=self._plan, live=self._live))

    def _eta(self, done: int, total: int | None) -> float | None:
        if total is None or self._working_since is None:
            return None
        if self._paced is None:
            self._paced = (time.monotonic(), done)
            return None
        since, before = self._paced
        if done == before:
            return None
        return round((time.monotonic() - since) / (done - before) * (total - done), 1)

    def _key(self, name: str) -> str:
        return f"{job_folder(self.job.tenant, self.job.id)}{name}"


def late() -> Failure:
    """Why a job failed that no worker has begun with in time."""
    return Failure(
        code="start_deadline_passed",
        message="No worker was free before the start deadline: submit the video again, with more time or when fewer are waiting.",
        param="start_within_seconds",
    )


def _crashed(attempts: int) -> Failure:
    return Failure(
        code="engine_crashed",
        message=f"The engine ended unexpectedly {attempts} times at the same place: try another picture or recording.",
    )


def _sum(commits: list[Commit]) -> Usage:
    return Usage(
        frames=sum(commit.frames for commit in commits),
        engine_seconds=sum(commit.seconds for commit in commits),
        gpu_seconds=sum(commit.gpu_seconds for commit in commits),
    )
