"""Keys, tenants and limits, by the API as it is served."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from docket import Worker as DocketWorker
from servers import ROOT, Client, Deployment, eventually

from model_store.errors import InfiniteTalkError
from service.job import Input, Job
from service.keys import Doorman, Keys
from service.limits import REMEMBERED_SECONDS, Limits, Quota, write_limits
from service.queue import Queue
from service.storage import open_store
from service.turns import Turns
from service.worker import SEARCHING


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API and a worker with keys for two tenants."""
    deployment = Deployment(tmp_path_factory.mktemp("guarded"))
    try:
        deployment.worker()
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


def cli(deployment: Deployment, *words: str) -> object:
    command = [sys.executable, "-m", "service.cli.main", "keys", *words, "--json"]
    done = subprocess.run(command, env=deployment.env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


class Tenant(Client):
    def __init__(self, deployment: Deployment, name: str, picture: Path, speech: Path) -> None:
        super().__init__(deployment.url, picture, speech)
        made = cli(deployment, "create", name)
        assert isinstance(made, dict)
        self.id, self.key = str(made["id"]), str(made["key"])
        self.http.headers["Authorization"] = f"Bearer {self.key}"


@pytest.fixture(scope="module")
def alice(guarded: Deployment, picture: Path, speech: Path) -> Tenant:
    tenant = Tenant(guarded, "alice", picture, speech)
    # The API may have looked a moment ago, and found no key.
    eventually(lambda: httpx.get(f"{guarded.url}/v1/videos").status_code == 401, "keys are asked for")
    return tenant


@pytest.fixture(scope="module")
def bob(guarded: Deployment, alice: Tenant, picture: Path, speech: Path) -> Tenant:
    return Tenant(guarded, "bob", picture, speech)


def test_every_route_asks_for_a_key(alice: Tenant, guarded: Deployment) -> None:
    document = httpx.get(f"{guarded.url}/openapi.json").json()
    routes = [(method, path) for path, methods in document["paths"].items() if path.startswith("/v1/") for method in methods]
    assert len(routes) >= 18
    for method, path in routes:
        address = path.replace("{track}", "video").replace("{index}", "0")
        address = address.replace("{video_id}", "video_" + 24 * "0").replace("{file_id}", "file_" + 24 * "0")
        for authorization in (None, "Bearer nonsense", f"Bearer {alice.key[:-1]}!", f"Basic {alice.key}"):
            headers = {"Authorization": authorization} if authorization else {}
            answer = httpx.request(method, guarded.url + address, headers=headers)
            assert answer.status_code == 401, (method, path, authorization)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] in ("key_required", "key_invalid")
    with alice.picture.open("rb") as picture, alice.speech.open("rb") as speech:
        files = {"image": picture, "audio": speech}
        assert httpx.post(f"{guarded.url}/generate", data={"consent": "true"}, files=files).status_code == 401


def test_another_tenants_things_are_not_there(alice: Tenant, bob: Tenant) -> None:
    video = alice.make(seconds=0.64)
    alice.wait(video)
    with alice.speech.open("rb") as speech:
        file = alice.http.post("/v1/files", files={"file": speech}).json()["id"]
    document = alice.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        if "{video_id}" not in path and "{file_id}" not in path:
            continue
        address = path.replace("{track}", "video").replace("{index}", "0").replace("{video_id}", video).replace("{file_id}", file)
        for method in methods:
            answer = bob.http.request(method, address, json={} if method == "post" else None)
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json()["error"]["code"] in ("video_not_found", "file_not_found"), (method, path)
    assert bob.http.get("/v1/videos").json()["data"] == []
    assert bob.http.get("/v1/files").json()["data"] == []
    with bob.picture.open("rb") as picture:
        answer = bob.http.post("/v1/videos", data={"consent": "true", "audio": file}, files={"image": picture})
    assert bob.failure(answer) == (404, "file_not_found", "audio")
    assert alice.get(video)["status"] == "completed"
    assert alice.http.get(f"/v1/files/{file}").status_code == 200


def test_players_get_by_with_links(alice: Tenant, bob: Tenant, guarded: Deployment) -> None:
    video, other = alice.make(seconds=1.28), alice.make(seconds=0.64)
    alice.wait(video)
    alice.wait(other)
    links = alice.http.post(f"/v1/videos/{video}/links").json()
    player = httpx.Client(base_url=guarded.url, follow_redirects=True)
    assert player.get(links["content"]).content == alice.content(video)
    assert player.get(links["thumbnail"]).headers["content-type"] == "image/jpeg"
    master = player.get(links["stream"])
    track = next(line for line in master.text.splitlines() if line and not line.startswith("#"))
    playlist = player.get(master.url.join(track))
    segments = [line for line in playlist.text.splitlines() if line and not line.startswith("#")]
    assert segments
    assert all(player.get(playlist.url.join(segment)).status_code == 200 for segment in segments)
    token = links["content"].partition("token=")[2]
    forged = token.replace("alice", "bob", 1)
    for address in (f"{other}/content?token={token}", f"{video}/content?token={forged}", f"{video}/content?token={token[:-1]}0x"):
        answer = player.get(f"/v1/videos/{address}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token_invalid"), address
    assert player.get(f"/v1/videos/{video}?token={token}").status_code == 401, "a token plays, and does nothing else"


def test_a_tokens_time_is_up(tmp_path: Path, guarded: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(open_store(guarded.settings()))
    keys.create("carol")
    doorman = Doorman(keys, token_seconds=60)
    token = doorman.token("carol", "video_1")
    assert doorman.holder(token, "video_1") == "carol"
    later = time.time() + 121
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(InfiniteTalkError, match="time is up"):
        doorman.holder(token, "video_1")


def test_a_revoked_key_is_worth_nothing_within_seconds(guarded: Deployment, alice: Tenant, picture: Path, speech: Path) -> None:
    dave = Tenant(guarded, "dave", picture, speech)
    assert dave.http.get("/v1/videos").status_code == 200
    cli(guarded, "revoke", dave.id)
    eventually(lambda: dave.http.get("/v1/videos").status_code == 401, "the key is refused", seconds=15)
    listed = cli(guarded, "list")
    assert isinstance(listed, list)
    assert {row["id"]: row["revoked"] for row in listed}[dave.id] is True


def test_only_a_hash_is_kept(alice: Tenant, guarded: Deployment) -> None:
    secret = alice.key.split("_", 2)[2].encode()
    files = [path for path in guarded.folder.rglob("*") if path.is_file()]
    assert any("key.json" in path.name for path in files)
    for path in files:
        assert secret not in path.read_bytes(), path


def test_limits_answer_with_when_to_come_back(guarded: Deployment, alice: Tenant, picture: Path, speech: Path) -> None:
    erin = Tenant(guarded, "erin", picture, speech)
    assert cli(guarded, "limit", "erin", "--requests-per-second", "3") == {
        "requests_per_second": 3, "queued_jobs": 250, "running_jobs": 0, "seconds_per_day": 0,
    }  # fmt: skip
    answers = [erin.http.get("/v1/videos") for _ in range(12)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert answers[0].status_code == 200
    assert (refused[0].json()["error"]["code"], refused[0].headers["retry-after"]) == ("rate_limited", "1")
    assert alice.http.get("/v1/videos").status_code == 200, "another tenant is not affected"

    frank = Tenant(guarded, "frank", picture, speech)
    cli(guarded, "limit", "frank", "--queued-jobs", "2", "--seconds-per-day", "3")
    busy = alice.make()
    alice.wait_for_chunks(busy, 1)
    waiting = [frank.make(seconds=3.2), frank.make(seconds=3.2)]
    answer = frank.submit()
    assert frank.failure(answer) == (429, "tenant_queue_full", None)
    assert int(answer.headers["retry-after"]) > 0
    alice.http.post(f"/v1/videos/{busy}/cancel")
    for video in waiting:
        frank.wait(video)
    answer = frank.submit()
    assert frank.failure(answer) == (429, "daily_limit_reached", None)
    assert 0 < int(answer.headers["retry-after"]) <= 86_400


def test_one_job_does_not_wait_for_anothers_many(guarded: Deployment, alice: Tenant, bob: Tenant) -> None:
    busy = alice.make()
    alice.wait_for_chunks(busy, 1)
    many = [alice.make(seconds=0.64) for _ in range(12)]
    one = bob.make(seconds=0.64)
    alice.http.post(f"/v1/videos/{busy}/cancel")
    bob.wait(one)
    waiting = [video for video in many if alice.get(video)["status"] == "queued"]
    assert len(waiting) >= 8, "bob's only job is one of the next"
    for video in many:
        alice.wait(video)


def test_a_tenant_runs_no_more_than_it_may(guarded: Deployment, alice: Tenant, bob: Tenant) -> None:
    cli(guarded, "limit", "alice", "--running-jobs", "1")
    time.sleep(REMEMBERED_SECONDS)
    guarded.crew(2)
    videos = [alice.make(seconds=1.92) for _ in range(4)]
    most = 0
    while (states := [alice.get(video)["status"] for video in videos]) != ["completed"] * 4:
        most = max(most, states.count("in_progress"))
        assert not {"failed", "cancelled"} & set(states)
        time.sleep(0.05)
    cli(guarded, "limit", "alice", "--running-jobs", "0")
    guarded.crew(1)
    assert most == 1


@pytest.mark.parametrize(
    ("tenants", "each"), [(10, 8), pytest.param(20, 50, marks=pytest.mark.slow)], ids=["80 jobs", "1000 jobs"]
)
def test_jobs_of_many_tenants_take_turns(tenants: int, each: int, guarded: Deployment) -> None:
    settings = guarded.settings().model_copy(update={"redis_prefix": f"turns{tenants}", "engines": ("none",)})

    def job(tenant: int, number: int) -> Job:
        content = Input(key="k", bytes=1, filename="f", content_type="t", origin="o")
        return Job(
            id=f"video_{tenant:012x}{number:012x}", tenant=f"t{tenant}", expires_at=time.time() + 3600, fingerprint="f",
            engine="none", job_class="batch", reference=content, audio=content, max_run_seconds=60,
        )  # fmt: skip

    jobs = {made.id: made for tenant in range(tenants) for number in range(each) if (made := job(tenant, number))}
    order: list[str] = []
    lengths: list[int] = []

    async def any_number(_: str) -> int:
        return 0

    async def perform(_: str, video_id: str) -> None:
        if (seconds := await turns.put_back_for(jobs[video_id])) is not None:
            await queue.put_back(jobs[video_id], seconds)
            return
        await queue.started(jobs[video_id])
        order.append(jobs[video_id].tenant)
        lengths.append(await queue.redis.xlen(queue.dockets["none", "batch"].stream_key))
        await queue.stopped(jobs[video_id])

    queue = Queue(settings, perform)
    turns = Turns(queue, any_number)

    async def work() -> None:
        async with queue:
            for made in jobs.values():
                await queue.add(made)
            line = queue.dockets["none", "batch"]
            async with DocketWorker(
                line, concurrency=1, minimum_check_interval=SEARCHING, schedule_automatic_tasks=False
            ) as worker:
                await worker.run_until_finished()

    asyncio.run(work())
    assert len(order) == tenants * each
    for start in range(0, len(order), tenants):
        assert len(set(order[start : start + tenants])) == tenants, "everybody once in every round"
    assert lengths == list(range(tenants * each, 0, -1)), "taking turns neither loses nor doubles a message"


def test_limits_of_a_tenant_are_its_own(guarded: Deployment) -> None:
    settings = guarded.settings()
    store = open_store(settings)
    write_limits(store, "grace", Limits(queued_jobs=7))

    async def look() -> tuple[int, int]:
        async with Queue(settings) as queue:
            quota = Quota(settings, store, queue)
            return (await quota.limits("grace")).queued_jobs, (await quota.limits("heidi")).queued_jobs

    assert asyncio.run(look()) == (7, settings.tenant_queued_jobs)


@pytest.mark.slow
def test_a_thousand_waiting_jobs_cost_the_api_no_memory(tmp_path: Path, picture: Path, speech: Path) -> None:
    deployment = Deployment(tmp_path / "thousand")
    try:
        tenants = [Tenant(deployment, f"tenant-{number}", picture, speech) for number in range(20)]
        deployment.wait_ready()
        eventually(lambda: httpx.get(f"{deployment.url}/v1/videos").status_code == 401, "keys are asked for")

        def submit(each: int) -> float:
            """MiB of the API and what it has started, after so many more jobs of every tenant, which have been listed."""
            for tenant in tenants:
                for _ in range(each):
                    tenant.make(job_class="batch")
                assert tenant.http.get("/v1/videos", params={"limit": 100}).status_code == 200
            api = psutil.Process(deployment.api.pid)
            return sum(process.memory_info().rss for process in [api, *api.children(recursive=True)]) / 2**20

        begun, grown = submit(5), submit(45)
        print(f"API: {begun:.0f} MiB with 100 jobs, {grown:.0f} MiB with 1,000")
        assert grown - begun < 30
        refused = tenants[0].submit()
        assert tenants[0].failure(refused)[:2] == (429, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
    finally:
        deployment.end()
