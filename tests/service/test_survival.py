"""Jobs under fire: real processes killed, stopped and wiped; every output compared with that of an undisturbed run."""

from __future__ import annotations

import signal
import time

import pytest
from servers import Client, Deployment, eventually

from service.job import job_folder
from service.storage import open_store

PACE = {"frame_seconds": 0.01}
SLOW = {"frame_seconds": 0.03}
SEEDS = 2


@pytest.fixture(scope="module")
def undisturbed(client: Client) -> dict[int, bytes]:
    """Outputs by seed, made in peace, on another store and another worker."""
    ids = {seed: client.make(seed=seed) for seed in range(SEEDS)}
    return {seed: client.content(client.wait(video_id)["id"]) for seed, video_id in ids.items()}


def objects(deployment: Deployment, video_id: str, kind: str = "") -> list[str]:
    """Keys of a job's objects."""
    return [entry.key for entry in open_store(deployment.settings()).entries(f"{job_folder('default', video_id)}{kind}")]


def require_undisturbed(deployment: Deployment, client: Client, ids: list[str], undisturbed: dict[int, bytes]) -> None:
    """Every job has completed, with one output, which is that of an undisturbed run. Jobs take the seeds in turn."""
    for number, video_id in enumerate(ids):
        client.wait(video_id)
        assert client.content(video_id) == undisturbed[number % SEEDS], f"job {number}"
        assert len(objects(deployment, video_id, "output/")) == 1
        assert len(objects(deployment, video_id, "chunks/")) == 10


def test_while_nobody_works_and_when_somebody_comes(s3_deployment: Deployment, s3_client: Client) -> None:
    s3_deployment.crew(0)
    first, second, late = s3_client.make(), s3_client.make(), s3_client.make(start_within_seconds=0.5)
    batch = s3_client.make(job_class="batch")
    assert [s3_client.get(video_id)["queue_position"] for video_id in (first, second)] == [0, 1]
    assert s3_client.get(batch)["queue_position"] == 3, "interactive jobs go first"
    assert s3_client.wait(late, "failed")["error"]["code"] == "start_deadline_passed"
    assert s3_client.http.post(f"/v1/videos/{first}/cancel").json()["status"] == "cancelled"
    assert s3_client.get(second)["queue_position"] == 0
    s3_deployment.crew(1)
    s3_client.wait(batch)
    assert s3_client.get(second)["status"] == "completed"
    assert s3_client.get(first)["status"] == "cancelled"
    assert not objects(s3_deployment, first, "attempts/")


def test_a_batch_job_gives_way(s3_deployment: Deployment, s3_client: Client, undisturbed: dict[int, bytes]) -> None:
    s3_deployment.crew(1)
    batch = s3_client.make(seed=0, job_class="batch", options=SLOW)
    s3_client.wait_for_chunks(batch, 1)
    s3_client.wait(s3_client.make())
    assert s3_client.get(batch)["status"] in ("queued", "in_progress"), "it waits, or goes on already"
    require_undisturbed(s3_deployment, s3_client, [batch], undisturbed)


def test_run_time_is_bounded(s3_deployment: Deployment, s3_client: Client) -> None:
    s3_deployment.crew(1)
    long = s3_client.make(options=SLOW, max_run_seconds=1)
    assert s3_client.wait(long, "failed")["error"]["code"] == "run_time_exceeded"


def test_api_killed_and_restarted(s3_deployment: Deployment, s3_client: Client, undisturbed: dict[int, bytes]) -> None:
    s3_deployment.crew(2)
    ids = [s3_client.make(seed=number % SEEDS, options=PACE) for number in range(3)]
    s3_client.wait_for_chunks(ids[0], 1)
    s3_deployment.api.end()
    s3_deployment.api.start()
    s3_deployment.wait_ready()
    require_undisturbed(s3_deployment, s3_client, ids, undisturbed)


def test_valkey_killed_and_restarted(s3_deployment: Deployment, s3_client: Client, undisturbed: dict[int, bytes]) -> None:
    s3_deployment.crew(2)
    ids = [s3_client.make(seed=number % SEEDS, options=PACE) for number in range(3)]
    s3_client.wait_for_chunks(ids[0], 1)
    s3_deployment.valkey.kill()
    assert s3_client.http.get("/readyz").status_code == 503
    ids.append(s3_client.make(seed=1, options=PACE))  # accepted all the same: the store is the truth
    assert s3_client.get(ids[0])["status"] != "failed"
    assert s3_client.failure(s3_client.http.get("/v1/videos"))[:2] == (503, "queue_unavailable")
    s3_deployment.valkey.start()
    require_undisturbed(s3_deployment, s3_client, ids, undisturbed)
    assert ids[-1] in [video["id"] for video in s3_client.http.get("/v1/videos").json()["data"]]


def test_valkey_wiped(s3_deployment: Deployment, s3_client: Client, undisturbed: dict[int, bytes]) -> None:
    s3_deployment.crew(2)
    ids = [s3_client.make(seed=number % SEEDS, options=PACE) for number in range(4)]
    s3_client.wait_for_chunks(ids[0], 1)
    s3_deployment.redis().flushall()
    listed = s3_client.http.get("/v1/videos", params={"limit": 100}).json()["data"]
    assert set(ids) <= {video["id"] for video in listed}, "the index is rebuilt before it answers"
    s3_client.wait_for_chunks(ids[1], 2)
    s3_deployment.redis().flushall()
    require_undisturbed(s3_deployment, s3_client, ids, undisturbed)


def test_two_workers_hold_one_job(s3_deployment: Deployment, s3_client: Client, undisturbed: dict[int, bytes]) -> None:
    workers = s3_deployment.crew(2)
    video_id = s3_client.make(seed=0, options=SLOW)
    s3_client.wait_for_chunks(video_id, 1)
    first = next(worker for worker in workers if "has begun" in worker.text() and video_id in worker.text())
    first.signal(signal.SIGSTOP)  # silent, as on a machine that has lost its network; its engine goes on
    try:
        second = next(worker for worker in workers if worker is not first)
        eventually(lambda: f"{video_id}: has begun" in second.text(), "the other worker takes over")
    finally:
        first.signal(signal.SIGCONT)
    lost = f"{video_id}: stopped, another worker has it"
    eventually(lambda: lost in first.text() or lost in second.text(), "one of them stops", seconds=5)
    require_undisturbed(s3_deployment, s3_client, [video_id], undisturbed)
    # Either stays, or, meeting in the same moment, both stop and one begins once more.
    assert len(objects(s3_deployment, video_id, "attempts/")) in (2, 3)


@pytest.mark.parametrize("stubborn", [False, True], ids=["engine-listens", "engine-does-not"])
def test_cancel(s3_deployment: Deployment, s3_client: Client, stubborn: bool) -> None:
    workers = s3_deployment.crew(2)
    video_id = s3_client.make(options={"frame_seconds": 0.2, "stubborn": stubborn})
    other = s3_client.make(options=PACE)
    eventually(lambda: s3_client.get(video_id)["stage"] == "perform", "the engine works")
    worker = next(worker for worker in workers if f"{video_id}: has begun" in worker.text())
    cancelled = time.monotonic()
    answer = s3_client.http.post(f"/v1/videos/{video_id}/cancel")
    assert answer.json()["status"] == "cancelled"
    eventually(lambda: f"{video_id}: stopped, it has ended" in worker.text(), "the work stops", pause=0.02)
    took = time.monotonic() - cancelled
    assert took < 2.0 if not stubborn else took < 4.0, f"stopped after {took:.2f} s"
    before = objects(s3_deployment, video_id)
    s3_client.wait(other)  # the worker, or its fellow, goes on with the next
    assert objects(s3_deployment, video_id) == before
    assert s3_client.get(video_id)["status"] == "cancelled"
    assert s3_client.failure(s3_client.http.get(f"/v1/videos/{video_id}/content"))[:2] == (409, "content_not_ready")
    assert s3_client.http.post(f"/v1/videos/{video_id}/cancel").json()["status"] == "cancelled", "twice is once"


def test_delete_while_it_runs(s3_deployment: Deployment, s3_client: Client) -> None:
    s3_deployment.crew(2)
    video_id = s3_client.make(options=SLOW)
    s3_client.wait_for_chunks(video_id, 2)
    assert s3_client.http.delete(f"/v1/videos/{video_id}").json()["deleted"] is True
    assert s3_client.failure(s3_client.http.get(f"/v1/videos/{video_id}"))[:2] == (404, "video_not_found")
    store = open_store(s3_deployment.settings())
    eventually(lambda: not list(store.entries(f"deleted/default/{video_id}")), "the last mark is gone")
    assert objects(s3_deployment, video_id) == []
    assert not list(store.entries(f"open/default/{video_id}"))
    s3_client.wait(s3_client.make(options=PACE))
    assert objects(s3_deployment, video_id) == []


def test_an_engine_that_crashes_every_time(s3_deployment: Deployment, s3_client: Client) -> None:
    s3_deployment.crew(2)
    video_id, other = s3_client.make(options={"crash_at": 0}), s3_client.make()
    video = s3_client.wait(video_id, "failed")
    assert (video["error"]["code"], video["attempt"], video["chunks_done"]) == ("engine_crashed", 3, 0)
    s3_client.wait(other)


def test_sigterm_hands_the_job_back(s3_deployment: Deployment, s3_client: Client, undisturbed: dict[int, bytes]) -> None:
    workers = s3_deployment.crew(2)
    video_id = s3_client.make(seed=0, options=SLOW)
    s3_client.wait_for_chunks(video_id, 1)
    worker = next(worker for worker in workers if f"{video_id}: has begun" in worker.text())
    asked = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - asked < 8, "it waited for one chunk of 0.8 s, not for the job"
    assert f"{video_id}: handed back" in worker.text()
    require_undisturbed(s3_deployment, s3_client, [video_id], undisturbed)
    assert sum(key.endswith(".returned") for key in objects(s3_deployment, video_id, "attempts/")) == 1
