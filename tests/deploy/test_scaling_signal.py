"""What KEDA would read from a real deployment: the stream that the chart names is as long as jobs are queued and running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import soundfile
from servers import Client, Deployment, eventually

from tests.deploy.test_chart import POOL, of_kind, render

PACE = {"frame_seconds": 0.02}
UNENDED = ("queued", "in_progress")


@pytest.fixture(scope="module")
def trigger() -> dict[str, Any]:
    """The metadata of the first trigger of a pool for the steady engine."""
    pool = {**POOL, "engine": "steady", "jobClass": "interactive"}
    (scaled,) = of_kind(render({"pools": {"portrait-interactive": pool}}), "ScaledObject")
    metadata: dict[str, Any] = scaled["spec"]["triggers"][0]["metadata"]
    assert "consumerGroup" not in metadata, "KEDA counts the whole stream, not a group's lag"
    return metadata


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("signal"))
    try:
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


def test_the_signal_is_queued_plus_running_at_every_moment(deployment: Deployment, trigger: dict[str, Any]) -> None:
    client = Client(deployment.url, servers.ROOT / "examples" / "astronaut.png", deployment.folder / "speech.wav")
    _speech(client.speech)
    redis = deployment.redis()
    ids: list[str] = []

    def signal() -> int:
        return int(redis.xlen(trigger["stream"]))

    def unended() -> int:
        return sum(client.get(video_id)["status"] in UNENDED for video_id in ids)

    def agree(what: str) -> None:
        eventually(lambda: signal() == unended(), what, seconds=5, pause=0.05)

    def watch(until: int) -> None:
        """Until so many are left, the signal may at no moment be less than what is left, nor more for longer than a moment."""
        while (left := unended()) > until:
            read = signal()
            assert read >= unended(), "a pod would be taken away that has work"
            assert read <= left or eventually(lambda: signal() <= left, "the ended jobs leave", seconds=3, pause=0.05) is not None
            time.sleep(0.1)

    assert signal() == 0, "nothing was ever asked for"
    ids += [client.make(options=PACE) for _ in range(4)]
    assert signal() == 4, "queued"
    client.http.post(f"/v1/videos/{ids[1]}/cancel")
    agree("a queued job is cancelled")
    assert signal() == 3

    (worker,) = deployment.crew(1)
    client.wait_for_chunks(ids[0], 2)
    assert signal() == 3, "one runs, two wait"
    worker.kill()
    assert signal() == 3, "its worker is dead"
    time.sleep(deployment.settings().lease_seconds + 0.5)
    assert signal() == 3, "and its lease has run out"

    (worker,) = deployment.crew(1)
    client.wait_for_chunks(ids[0], 4)
    assert signal() == 3, "it is done again"
    redis.flushall()
    eventually(lambda: signal() == unended() == 3, "everything is wiped, and found again in the store")
    watch(until=2)
    agree("one has completed")

    crashing = client.make(options={"crash_at": 0})
    ids.append(crashing)
    assert signal() == unended()
    running = eventually(lambda: [video_id for video_id in ids if client.get(video_id)["status"] == "in_progress"], "one runs")
    client.http.post(f"/v1/videos/{running[0]}/cancel")
    agree("the running job is cancelled")
    watch(until=0)
    agree("all have ended, one after three crashes")
    assert client.get(crashing)["error"]["code"] == "engine_crashed"
    worker.terminate()
    worker.wait()
    assert signal() == 0, "zero means zero"
    time.sleep(2 * deployment.settings().reconcile_seconds)
    assert signal() == 0, "and stays"


def _speech(path: Path) -> None:
    samples, rate = soundfile.read(servers.ROOT / "examples" / "en_allison.wav", frames=int(6.4 * 16_000))
    soundfile.write(path, samples, rate)


def test_a_worker_for_one_job_ends_with_it(deployment: Deployment) -> None:
    client = Client(deployment.url, servers.ROOT / "examples" / "astronaut.png", deployment.folder / "speech.wav")
    _speech(client.speech)
    deployment.crew(0)
    first, second = client.make(), client.make()
    once = {"INFINITETALK_WORKER_JOBS": "1", "INFINITETALK_WORKER_IDLE_SECONDS": "1"}
    assert deployment.worker(once).wait() == 0
    assert [client.get(video_id)["status"] for video_id in (first, second)] == ["completed", "queued"]
    assert deployment.worker(once).wait() == 0
    assert client.get(second)["status"] == "completed"
    assert deployment.worker(once).wait() == 0, "it found nothing to do"
