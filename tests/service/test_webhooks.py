"""Webhooks: signed, told again until heard, and never sent where they must not go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from servers import Client, Deployment, eventually
from standardwebhooks import Webhook

from service.addresses import callable_address, require_url
from service.intentions import FOLDER
from service.job import Input, Job, Outcome
from service.ledger import Ledger
from service.queue import Queue
from service.storage import LocalStore, open_store
from service.webhooks import Deliverer, signing_secrets


@dataclass
class Receiver:
    """A tenant's server: answers with the statuses it is given, the last one for ever, and keeps what it hears."""

    port: int = 0
    statuses: list[int] = field(default_factory=lambda: [200])
    heard: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.heard.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            status = state.statuses.pop(0) if len(state.statuses) > 1 else state.statuses[0]
            self.send_response(status)
            if status == 302:
                self.send_header("location", f"http://127.0.0.1:{state.port}/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment that may call receivers on this machine."""
    deployment = Deployment(tmp_path_factory.mktemp("calling"), {"INFINITETALK_WEBHOOK_ALLOW_PRIVATE": "true"})
    try:
        deployment.worker()
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


def test_the_end_of_a_video_is_told_until_it_is_heard(
    calling: Deployment, receiver: Receiver, picture: Path, speech: Path
) -> None:
    client = Client(calling.url, picture, speech)
    receiver.statuses = [500, 204]
    done = client.wait(client.make(seconds=0.64, webhook_url=receiver.url))
    eventually(lambda: len(receiver.heard) == 2, "told again after a failure")
    secret = Webhook(signing_secrets(open_store(calling.settings()), "default").current)
    (_, first, _), (path, second, body) = receiver.heard
    event = secret.verify(body, second)
    assert (path, event["type"], event["data"]["id"]) == ("/hook", "video.completed", done["id"])
    assert event["data"]["status"] == "completed"
    assert first["webhook-id"] == second["webhook-id"]
    with pytest.raises(Exception, match="signature"):
        secret.verify(body.replace(b"completed", b"cancelled"), second)

    cancelled = client.make(webhook_url=receiver.url)
    client.http.post(f"/v1/videos/{cancelled}/cancel")
    eventually(lambda: len(receiver.heard) == 3, "a cancelled video is told too")
    assert secret.verify(receiver.heard[2][2], receiver.heard[2][1])["type"] == "video.cancelled"
    time.sleep(2)
    assert len(receiver.heard) == 3, "what was heard is not told again"


@pytest.mark.parametrize(
    "url",
    ["http://example.com/hook", "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest", "https://10.1.2.3/",
     "https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://100.64.0.1/", "https://user@example.com/", "ftp://example.com/",
     "https:///path", "https://example.com:99999/", "nonsense"],
)  # fmt: skip
def test_addresses_that_must_not_be_called_are_refused_at_once(client: Client, url: str) -> None:
    assert client.failure(client.submit(webhook_url=url)) == (400, "webhook_url_invalid", "webhook_url")


def test_public_addresses_are_accepted() -> None:
    require_url("https://hooks.example.com:8443/a?b=c", allow_private=False)
    require_url("https://93.184.216.34/", allow_private=False)


@pytest.mark.parametrize(
    ("addresses", "called"),
    [
        (["93.184.216.34"], "93.184.216.34"),
        (["2606:2800:220:1::1"], "2606:2800:220:1::1"),
        (["127.0.0.1"], None),
        (["93.184.216.34", "192.168.0.1"], None),
        (["fe80::1%eth0"], None),
        (["fd00::1"], None),
        (["224.0.0.1"], None),
        (["0.0.0.0"], None),
        (["2002:7f00:1::"], None),
        ([], None),
    ],
)
def test_names_are_judged_by_every_address_they_have(addresses: list[str], called: str | None) -> None:
    async def look_up(_: str, __: int) -> list[str]:
        return addresses

    assert asyncio.run(callable_address("name", 443, False, look_up)) == called


class House:
    """A deliverer and its ledger, on a folder and a real queue, without processes around them."""

    def __init__(self, folder: Path, deployment: Deployment) -> None:
        self.ledger = Ledger(LocalStore(folder / "objects"))
        self.settings = deployment.settings().model_copy(update={"redis_prefix": folder.name.replace("_", "-")[:40]})

    def end(self, url: str) -> Job:
        content = Input(key="k", bytes=1, filename="f", content_type="t", origin="o")
        job = Job(
            id=self.ledger.video_id("t", None), tenant="t", expires_at=time.time() + 3600, fingerprint="f", engine="steady",
            job_class="batch", reference=content, audio=content, max_run_seconds=60, webhook_url=url,
        )  # fmt: skip
        self.ledger.create(job)
        assert self.ledger.finish(job, Outcome(status="cancelled"))
        return job

    def deliver(self, *, allow_private: bool = True, look_up: Callable[[str, int], Awaitable[list[str]]] | None = None) -> None:
        """What a process that has just started does."""

        async def once() -> None:
            async with Queue(self.settings) as queue:
                deliverer = Deliverer(self.ledger, queue, allow_private)
                if look_up:
                    deliverer.look_up = look_up
                await deliverer.once()

        asyncio.run(once())

    def pending(self) -> int:
        return len(list(self.ledger.store.entries(FOLDER)))


@pytest.fixture
def house(tmp_path: Path, deployment: Deployment) -> House:
    return House(tmp_path, deployment)


def test_a_name_that_comes_to_mean_this_machine_is_not_called(house: House, receiver: Receiver) -> None:
    async def rebound(_: str, __: int) -> list[str]:
        return ["127.0.0.1"]

    house.end(f"https://hooks.example.com:{receiver.port}/hook")
    house.deliver(allow_private=False, look_up=rebound)
    assert (receiver.heard, house.pending()) == ([], 0)


def test_a_redirect_is_not_followed(house: House, receiver: Receiver) -> None:
    receiver.statuses = [302]
    house.end(receiver.url)
    house.deliver()
    assert [path for path, _, _ in receiver.heard] == ["/hook"]
    assert house.pending() == 1, "a redirect is a failure, to be tried again"


def test_pending_deliveries_outlive_the_process_and_the_queue(house: House, receiver: Receiver, deployment: Deployment) -> None:
    receiver.statuses = [503, 200]
    house.end(receiver.url)
    house.deliver()
    house.deliver()
    assert len(receiver.heard) == 1, "not before its time"
    key = next(entry.key for entry in house.ledger.store.entries(FOLDER))
    house.ledger.store.put(key, b'{"attempts": 1}')
    house.deliver()
    assert (len(receiver.heard), house.pending()) == (2, 0)


def test_after_a_day_it_is_given_up(house: House, receiver: Receiver) -> None:
    receiver.statuses = [500]
    house.end(receiver.url)
    key = next(entry.key for entry in house.ledger.store.entries(FOLDER))
    house.ledger.store.put(key, b'{"attempts": 30, "since": 1000}')
    house.deliver()
    assert (len(receiver.heard), house.pending()) == (1, 0)


def test_a_new_secret_signs_beside_the_old_one(house: House, receiver: Receiver) -> None:
    old = signing_secrets(house.ledger.store, "t").current
    new = signing_secrets(house.ledger.store, "t", rotate=True).current
    assert old != new
    house.end(receiver.url)
    house.deliver()
    for secret in (old, new):
        assert Webhook(secret).verify(receiver.heard[0][2], receiver.heard[0][1])["type"] == "video.cancelled"


def test_one_process_delivers_at_a_time(house: House) -> None:
    async def hold() -> list[bool]:
        async with Queue(house.settings) as queue:
            return [await queue.hold("webhooks", holder, 30) for holder in ("a", "b", "a")]

    assert asyncio.run(hold()) == [True, False, True]
