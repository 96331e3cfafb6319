"""What one round of reconciling mends, on a real Valkey and a folder whose clock the test may turn back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from servers import Process, eventually, free_ports, valkey_command

from service.events import Events
from service.index import Index
from service.intake import Given, Intake, VideoRequest
from service.job import DEFAULT_TENANT, Job, Outcome
from service.jobs import Jobs
from service.ledger import Ledger
from service.limits import Quota
from service.queue import Queue
from service.reconcile import Reconciler
from service.settings import Settings
from service.storage import LocalStore
from service.uploads import Upload, Uploads


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("valkey")
    process = Process("valkey", valkey_command(port, folder), folder / "log")
    try:
        eventually(lambda: _pings(port), "Valkey is up")
        yield port
    finally:
        process.end()


def _pings(port: int) -> bool:
    try:
        return bool(redis.Redis(port=port).ping())
    except redis.ConnectionError:
        return False


class House:
    """The service's parts without processes around them."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.store = LocalStore(settings.data_dir / "objects")
        self.ledger = Ledger(self.store)
        self.uploads = Uploads(self.store, settings.retention_seconds, 10**9)
        self.queue = queue
        self.index = Index(queue, self.ledger)
        self.intake = Intake(settings, self.ledger, self.uploads)
        quota = Quota(settings, self.store, queue)
        self.jobs = Jobs(settings, self.ledger, self.intake, queue, self.index, Events(queue), quota)
        self.reconciler = Reconciler(settings, self.ledger, queue, self.index, self.uploads)

    def submit(self, picture: Path, speech: Path) -> Job:
        """Write a record, and die before the queue hears of it."""
        with picture.open("rb") as image, speech.open("rb") as audio:
            face, voice = [Upload(file.name, "x/y", os.fstat(file.fileno()).st_size, file) for file in (image, audio)]
            return self.intake.submit(DEFAULT_TENANT, VideoRequest(consent=True), Given(image=face, audio=voice)).job

    def age(self, key: str, seconds: float) -> None:
        """Make an object look older."""
        path = self.store.path(key)
        assert path is not None
        then = time.time() - seconds
        os.utime(path, (then, then))

    def keys(self, prefix: str = "") -> list[str]:
        return [entry.key for entry in self.store.entries(prefix)]


@pytest.fixture
def settings(valkey: int, tmp_path: Path) -> Settings:
    redis.Redis(port=valkey).flushall()
    return Settings(data_dir=tmp_path, redis_url=f"redis://127.0.0.1:{valkey}/0", retention_hours=1)


def test_a_job_that_was_never_queued_is_queued_once(settings: Settings, picture: Path, speech: Path) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            job = house.submit(picture, speech)
            assert await queue.unclaimed("portrait", "interactive") == 0
            for _ in range(3):
                await house.reconciler.once()
            assert await queue.unclaimed("portrait", "interactive") == 1
            assert await queue.position(job) == 0
            page = await house.index.page(DEFAULT_TENANT, 10, None, "desc")
            assert page is not None
            assert page.ids == [job.id]

    asyncio.run(scenario())


def test_ten_processes_reconcile_at_once(settings: Settings, picture: Path, speech: Path) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            for _ in range(3):
                house.submit(picture, speech)
            await asyncio.gather(*(House(settings, queue).reconciler.once() for _ in range(10)))
            assert await queue.unclaimed("portrait", "interactive") == 3

    asyncio.run(scenario())


def test_an_ended_job_is_not_queued_again(settings: Settings, picture: Path, speech: Path) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            job = house.submit(picture, speech)
            house.ledger.finish(job, Outcome(status="cancelled"))
            house.ledger.announce(job.tenant, job.id)  # as if its process had died before taking the mark away
            await house.reconciler.once()
            assert await queue.unclaimed("portrait", "interactive") == 0
            assert house.keys("open/") == []

    asyncio.run(scenario())


def test_what_a_dying_submit_left_is_removed_after_an_hour(settings: Settings) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            video_id = "video_" + "0" * 24
            house.ledger.announce("default", video_id)
            house.store.put(f"tenants/default/videos/{video_id}/inputs/image", b"stray")
            await house.reconciler.once()
            assert len(house.keys()) == 2, "it may still be under way"
            house.age(f"open/default/{video_id}", 3700)
            await house.reconciler.once()
            assert house.keys() == []

    asyncio.run(scenario())


def test_time_is_up(settings: Settings, picture: Path, speech: Path) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            job = house.submit(picture, speech)
            with speech.open("rb") as file:
                house.uploads.add("default", Upload("speech.wav", "audio/wav", 5, file), "user_data")
            short = Settings(data_dir=settings.data_dir, redis_url=settings.redis_url, retention_hours=1e-6)
            await house.reconciler.once()
            assert house.ledger.job("default", job.id)
            queue.settings = short
            late = House(short, queue)
            await asyncio.sleep(0.01)
            await late.reconciler.once()
            assert house.ledger.job("default", job.id) is None
            assert house.keys("tenants/") == []
            assert await queue.unclaimed("portrait", "interactive") == 0

    asyncio.run(scenario())


def test_a_deleted_jobs_stray_objects_are_swept(settings: Settings, picture: Path, speech: Path) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            job = house.submit(picture, speech)
            house.ledger.delete(job.tenant, job.id)
            house.store.put(f"tenants/default/videos/{job.id}/fragments/late", b"from a worker that did not know")
            await house.reconciler.once()
            assert house.keys("tenants/") == []
            assert house.keys("deleted/") == [f"deleted/default/{job.id}"]
            house.age(f"deleted/default/{job.id}", 700)
            await house.reconciler.once()
            assert house.keys() == []

    asyncio.run(scenario())


def test_the_index_survives_a_wipe(settings: Settings, picture: Path, speech: Path, valkey: int) -> None:
    async def scenario() -> None:
        async with Queue(settings) as queue:
            house = House(settings, queue)
            ids = [house.submit(picture, speech).id for _ in range(5)]
            await house.reconciler.once()
            redis.Redis(port=valkey).flushall()
            videos, more = await house.jobs.page(DEFAULT_TENANT, 3, None, "asc")
            assert [video.id for video in videos] == ids[:3]
            assert more
            videos, more = await house.jobs.page(DEFAULT_TENANT, 3, ids[2], "asc")
            assert [video.id for video in videos] == ids[3:]
            assert not more

    asyncio.run(scenario())
