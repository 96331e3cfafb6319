"""The worker: claims jobs, has them performed one at a time by its engine process, and answers for its own health."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from contextlib import AsyncExitStack, suppress
from datetime import timedelta

from docket import Worker as DocketWorker
from opentelemetry.trace import SpanKind

from model_store.errors import InfiniteTalkError
from service.deletion_cost import DeletionCost
from service.engine_process import EngineCrashedError, EngineProcess
from service.events import Events
from service.index import Index
from service.job import RECORD_VERSION, Job, Outcome
from service.ledger import Ledger
from service.limits import Quota
from service.logs import about, start_logging
from service.probes import Place, serve_probes
from service.queue import Queue, QueueUnavailable
from service.reconcile import Reconciler
from service.room import Room
from service.run import EngineUnusableError, Run, Workplace
from service.settings import JobClass, Settings
from service.storage import StoreUnavailable, open_store
from service.tracing import span, start_tracing
from service.turns import Turns
from service.uploads import Uploads, largest_file

GATE_SECONDS = 0.1
"""How often an idle worker decides which classes of jobs it claims."""

RECONNECT_SECONDS = 1.0

LATER_RELEASE_SECONDS = 5.0
"""How long a job of a later release is left to workers of that release, before this one may claim it again."""

CANCEL_SECONDS = 2.0
"""How long a claimer may take to let go before it is told again."""

IDLE, SEARCHING = timedelta(milliseconds=250), timedelta(milliseconds=5)
"""How often a worker looks for a message: while none may be there, and while it passes over those that are not in turn."""

logger = logging.getLogger(__name__)


class Worker:
    """Performs jobs until it is told to stop.

    Args:
        settings: which queue, store, engines and classes.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self.ledger = Ledger(open_store(settings))
        self.uploads = Uploads(self.ledger.store, settings.retention_seconds, largest_file(settings))
        self.queue = Queue(settings, self.perform)
        self.index = Index(self.queue, self.ledger)
        self.quota = Quota(settings, self.ledger.store, self.queue)
        self.turns = Turns(self.queue, self.quota.running_jobs)
        self.engine = EngineProcess(settings.stall_seconds, settings.log_format)
        self.stopping = asyncio.Event()
        self.place = Workplace(
            settings, self.ledger, self.queue, Events(self.queue), self.engine, self.name, self.stopping, self._gives_way
        )
        self._claimers: dict[tuple[str, JobClass], DocketWorker] = {}
        self._room = Room(settings)
        self._has_room = True
        self._current: Job | None = None
        self._fault: EngineUnusableError | None = None
        self._warm = False
        self._performed = 0
        self._deletion_cost = DeletionCost(settings.pod_dir) if settings.pod_dir else None
        self._idle_since = time.monotonic()

    async def run(self) -> None:
        """Work until :meth:`stop`, then finish or hand back what is under way.

        Raises:
            EngineUnusableError: no engine process can be started here.
        """
        async with AsyncExitStack() as stack:
            place = Place(self.settings.worker_host, self.settings.worker_port, "INFINITETALK_WORKER_PORT")
            await stack.enter_async_context(serve_probes(place, self.is_ready, self.queue.measure))
            await stack.enter_async_context(self.queue)
            stack.push_async_callback(self.engine.kill)
            await self._warm_up()
            reconciler = Reconciler(self.settings, self.ledger, self.queue, self.index, self.uploads)
            tasks = [asyncio.create_task(reconciler.run()), asyncio.create_task(self._gates())]
            if self._deletion_cost:
                tasks.append(asyncio.create_task(self._deletion_cost.run()))
            for line, docket in self.queue.dockets.items():
                if line[1] in self.settings.worker_classes:
                    claimer = DocketWorker(
                        docket,
                        name=self.name,
                        concurrency=0,
                        redelivery_timeout=timedelta(seconds=self.settings.lease_seconds),
                        reconnection_delay=timedelta(seconds=RECONNECT_SECONDS),
                        minimum_check_interval=IDLE,
                        schedule_automatic_tasks=False,
                    )
                    self._claimers[line] = await stack.enter_async_context(claimer)
                    tasks.append(asyncio.create_task(claimer.run_forever()))
            stop = asyncio.create_task(self.stopping.wait())
            await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            while self._current is not None:
                await asyncio.sleep(GATE_SECONDS)
            running = {stop, *tasks}
            while running:
                # More than once, for a cancel that arrives in the middle of a reconnect may be taken for the reconnect's own.
                for task in running:
                    task.cancel()
                _, running = await asyncio.wait(running, timeout=CANCEL_SECONDS)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if self._fault:
            raise self._fault

    def stop(self) -> None:
        """Claim nothing more; the running job is handed back after its running chunk."""
        self.stopping.set()
        self._set_gates(open_for=())

    async def is_ready(self) -> bool:
        """Whether the engine is loaded, there is room for its files, and store and queue can be reached."""
        try:
            await self.queue.ping()
            await asyncio.to_thread(self.ledger.store.ping)
        except (QueueUnavailable, StoreUnavailable):
            return False
        return self._warm and self._has_room and not self.stopping.is_set()

    async def _warm_up(self) -> None:
        """Load the first engine, so that the first job does not wait for it, and a machine that cannot load it takes none."""
        warming = asyncio.create_task(self._load(self.settings.engines[0]))
        stop = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({warming, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not warming.done():
            warming.cancel()
        await asyncio.gather(warming, stop, return_exceptions=True)
        if not warming.cancelled():
            warming.result()
        self._warm = True
        self._idle_since = time.monotonic()

    async def _load(self, engine: str) -> None:
        try:
            await self.engine.order("load", {"engine": engine})
            while (answer := await self.engine.answer()).kind != "loaded":
                if answer.kind == "error":
                    raise InfiniteTalkError(answer.fields["code"], answer.fields["message"])
        except EngineCrashedError:
            raise EngineUnusableError(f"the engine {engine} cannot be started") from None

    async def perform(self, tenant: str, video_id: str) -> None:
        """Perform one claimed job."""
        job = await asyncio.to_thread(self.ledger.job, tenant, video_id)
        if job is None:
            return
        if job.record_version > RECORD_VERSION:
            logger.warning("%s: waits for a worker of a later release", job.id)
            await self.queue.put_back(job, LATER_RELEASE_SECONDS)
            return
        if self._current is not None:
            # Two dockets delivered at the same moment, and there is one engine.
            await self.queue.put_back(job)
            return
        self._current = job
        with suppress(QueueUnavailable, StoreUnavailable):
            out_of_turn = await self.turns.put_back_for(job)
            if out_of_turn is not None:
                self._current = None
                self._look_every(SEARCHING)
                await self.queue.put_back(job, out_of_turn)
                return
        self._look_every(IDLE)
        self._set_gates(open_for=())
        self._say_busy(True)
        with about(video_id=job.id, tenant=job.tenant):
            run = asyncio.ensure_future(self._traced(job))
        try:
            # A cancel of the message is no cancel of the job: the run learns of that from the ledger, and stops in order.
            while not run.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({run})
            run.result()
        except EngineUnusableError as fault:
            self._fault = fault
            self.stop()
        except InfiniteTalkError as error:
            logger.warning("%s: given up for now: %s", video_id, error.message)
        finally:
            self._current = None
            self._say_busy(False)
            self._idle_since = time.monotonic()
            self._performed += 1
            if self._performed == self.settings.worker_jobs:
                self.stop()

    def _say_busy(self, busy: bool) -> None:
        if self._deletion_cost:
            self._deletion_cost.set_busy(busy)

    async def _traced(self, job: Job) -> Outcome | None:
        attributes = {"engine": job.engine, "job_class": job.job_class, "video.id": job.id}
        with span("perform video", job.traceparent, SpanKind.CONSUMER, attributes) as current:
            outcome = await Run(self.place, job).perform()
            current.set_attribute("status", outcome.status if outcome else "handed back")
            return outcome

    async def _gives_way(self, job: Job) -> bool:
        """A batch job goes back to its queue when an interactive one waits that this worker could take."""
        if job.job_class == "interactive":
            return False
        with suppress(QueueUnavailable):
            return await self._interactive_waits()
        return False

    async def _interactive_waits(self) -> bool:
        for engine, job_class in self._claimers:
            if job_class == "interactive" and await self.queue.unclaimed(engine, job_class):
                return True
        return False

    async def _gates(self) -> None:
        """While idle, claim interactive jobs, and batch jobs when no interactive one waits."""
        while True:
            if self._current is None and 0 < self.settings.worker_idle_seconds < time.monotonic() - self._idle_since:
                self.stop()
            if self._current is None and not self.stopping.is_set() and self._look_for_room():
                with suppress(QueueUnavailable):
                    waits = await self._interactive_waits()
                    if self._current is None and not self.stopping.is_set():
                        self._set_gates(open_for=("interactive",) if waits else ("interactive", "batch"))
            await asyncio.sleep(GATE_SECONDS)

    def _look_for_room(self) -> bool:
        had, self._has_room = self._has_room, True
        try:
            self._room.require()
        except InfiniteTalkError as error:
            self._has_room = False
            self._set_gates(open_for=())
            if had:
                logger.error("no job is begun: %s", error.message)
        return self._has_room

    def _look_every(self, interval: timedelta) -> None:
        for claimer in self._claimers.values():
            claimer.minimum_check_interval = interval

    def _set_gates(self, open_for: tuple[JobClass, ...]) -> None:
        # A docket worker reads its concurrency on every pass; 0 lets it keep its leases and claim nothing.
        for (_, job_class), claimer in self._claimers.items():
            claimer.concurrency = int(job_class in open_for)


async def work(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    start_logging(settings.log_format)
    start_tracing("infinitetalk-worker")
    worker = Worker(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    await worker.run()
