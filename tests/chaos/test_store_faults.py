"""An object store that is gone, slow, or fails one call in ten: jobs pause and go on, and the API says when to come back."""

from __future__ import annotations

import time

import httpx
import pytest
from servers import Client, eventually

from tests.chaos.jobs import PACE, Battlefield

FAULTS = 0.1


def require_come_back_later(client: Client, answer: httpx.Response) -> None:
    assert client.failure(answer)[:2] == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("seconds", [6.0, pytest.param(30.0, marks=pytest.mark.slow)], ids=["short", "long"])
def test_the_store_is_down(field: Battlefield, seconds: float) -> None:
    field.peace()
    field.deployment.crew(2)
    ids = field.submit(3)
    field.wait_for_progress(ids, 2, "work is under way")
    field.proxy.go_down()
    gone = time.monotonic()
    require_come_back_later(field.client, field.client.submit())
    require_come_back_later(field.client, field.client.http.get(f"/v1/videos/{ids[0]}"))
    assert field.client.http.get("/readyz").status_code == 503
    assert field.client.http.get("/livez").status_code == 200
    time.sleep(max(0.0, seconds - (time.monotonic() - gone)))
    field.proxy.calm()
    eventually(lambda: field.client.http.get("/readyz").status_code == 200, "the API is ready again")
    field.require_unharmed(ids)


@pytest.mark.parametrize(
    ("delay", "seconds"), [(0.25, 1.28), pytest.param(2.0, None, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_the_store_is_slow(field: Battlefield, delay: float, seconds: float | None) -> None:
    field.peace()
    field.deployment.crew(1)
    field.proxy.delay = delay
    try:
        if seconds is None:
            field.require_unharmed([field.client.make(seed=0, options=PACE)], seconds=600)
        else:
            field.client.wait(field.client.make(seconds=seconds))
    finally:
        field.proxy.calm()


@pytest.mark.parametrize("jobs", [2, pytest.param(12, marks=pytest.mark.slow)], ids=["short", "long"])
def test_a_tenth_of_the_calls_fails(field: Battlefield, jobs: int) -> None:
    field.peace()
    field.deployment.crew(2)
    field.proxy.calls = field.proxy.failed = 0
    field.proxy.faults = FAULTS
    try:
        ids = []
        while len(ids) < jobs:
            answer = field.client.submit(seed=len(ids) % 2, options=PACE)
            if answer.status_code == 202:
                ids.append(answer.json()["id"])
            else:
                require_come_back_later(field.client, answer)

        def ended() -> bool:
            answers = [field.client.http.get(f"/v1/videos/{video_id}") for video_id in ids]
            for answer in answers:
                if answer.status_code != 200:
                    require_come_back_later(field.client, answer)
            return all(answer.status_code == 200 and answer.json()["status"] == "completed" for answer in answers)

        eventually(ended, "all jobs complete", seconds=40 * jobs)
    finally:
        field.proxy.calm()
    assert field.proxy.failed > 0.05 * field.proxy.calls, "the store has really failed"
    field.require_unharmed(ids)
