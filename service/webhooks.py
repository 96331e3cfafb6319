"""Webhooks: telling a tenant's server that a video has ended, signed, at least once, for a day (standardwebhooks.com).

The intention stands in the object store before the outcome does, so nothing that dies in between is forgotten; it goes when the
server has answered 2xx, or a day has passed. One process delivers at a time, the one that holds the lock in Redis.

=====================================  ==================================================
object                                 what it says
=====================================  ==================================================
``webhooks/<tenant>/<video_id>``       :class:`Pending`: to be delivered when there is an outcome
``secrets/webhooks/<tenant>.json``     :class:`Secrets`: what the tenant's deliveries are signed with
=====================================  ==================================================
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import random
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict
from standardwebhooks import Webhook

from service.addresses import Resolve, callable_address, resolve
from service.intentions import FOLDER, Pending
from service.job import Job, Outcome
from service.ledger import Ledger
from service.metrics import WEBHOOK_DELIVERIES, WEBHOOK_DURATION
from service.queue import Queue, QueueUnavailable
from service.storage import ObjectMissing, Store, StoreUnavailable
from service.video import describe

TICK_SECONDS = 1.0
LOCK_SECONDS = 30.0
CALL_SECONDS = 10.0
"""Bound of one delivery, name look-up included; the answer's body is not read."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, GROWTH = 5.0, 3600.0, 3.0
GIVE_UP_SECONDS = 86_400.0
ROTATION_SECONDS = 86_400.0
"""How long deliveries are also signed with the secret before."""

_AT_ONCE = 16
_GONE = 410

Ending = Literal["delivered", "failed", "refused", "given_up"]

logger = logging.getLogger(__name__)


class Secrets(BaseModel):
    """A tenant's signing secrets (``whsec_...``): the present one, and the one before while receivers change over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    current: str
    previous: str | None = None
    rotated_at: float = 0.0

    def valid(self) -> list[str]:
        """What to sign with now."""
        changing = self.previous is not None and time.time() - self.rotated_at < ROTATION_SECONDS
        return [self.current, *([self.previous] if changing and self.previous else [])]


def signing_secrets(store: Store, tenant: str, *, rotate: bool = False) -> Secrets:
    """A tenant's secrets, made at the first use; with ``rotate``, a new one, with the old one valid for another day."""
    key = f"secrets/webhooks/{tenant}.json"
    while True:
        try:
            standing = Secrets.model_validate_json(store.get(key))
            break
        except ObjectMissing:
            store.create(key, Secrets(current=_new_secret()).model_dump_json().encode())
    if rotate:
        standing = Secrets(current=_new_secret(), previous=standing.current, rotated_at=time.time())
        store.put(key, standing.model_dump_json().encode(), "application/json")
    return standing


def event_id(job: Job, outcome: Outcome) -> str:
    """The same for every delivery of one ending, so that receivers can tell a repetition."""
    return f"evt_{hashlib.sha256('/'.join((job.tenant, job.id, outcome.status, outcome.token)).encode()).hexdigest()[:32]}"


@dataclass
class Deliverer:
    """Delivers what is due, again and again.

    Args:
        ledger: jobs and outcomes.
        queue: for the lock.
        allow_private: whether receivers may be on private networks, and speak plain HTTP.
        look_up: how names become addresses.
    """

    ledger: Ledger
    queue: Queue
    allow_private: bool
    look_up: Resolve = resolve
    _due: dict[str, float] = field(default_factory=dict)
    _holder: str = field(default_factory=lambda: secrets.token_hex(8))

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            try:
                if await self.queue.hold("webhooks", self._holder, LOCK_SECONDS):
                    await self.once()
                else:
                    self._due.clear()  # another delivers: what is remembered here grows old
            except (QueueUnavailable, StoreUnavailable) as error:
                logger.warning("webhooks wait: %s", error.message)
            except Exception:
                logger.exception("delivering webhooks failed")
            await asyncio.sleep(TICK_SECONDS)

    async def once(self) -> None:
        """Try every delivery that is due."""
        keys = await asyncio.to_thread(lambda: [entry.key for entry in self.ledger.store.entries(FOLDER)])
        self._due = {key: due for key, due in self._due.items() if key in set(keys)}
        now = time.time()
        due = [key for key in keys if self._due.get(key, 0.0) <= now][:_AT_ONCE]
        await asyncio.gather(*(self._attend(key) for key in due))

    async def _attend(self, key: str) -> None:
        tenant, _, video_id = key.removeprefix(FOLDER).partition("/")
        store = self.ledger.store
        try:
            pending = Pending.model_validate_json(await asyncio.to_thread(store.get, key))
        except ObjectMissing:
            return
        if pending.due > time.time():
            self._due[key] = pending.due
            return
        job = await asyncio.to_thread(self.ledger.job, tenant, video_id)
        if job is None or not job.webhook_url:
            await asyncio.to_thread(store.delete, key)
            return
        outcome = await asyncio.to_thread(self.ledger.outcome, tenant, video_id)
        if outcome is None:  # whoever intended to end it has not done so yet
            self._due[key] = time.time() + TICK_SECONDS
            return
        ending = await self._deliver(job, outcome)
        if ending == "failed" and time.time() - pending.since > GIVE_UP_SECONDS:
            ending = "given_up"
        WEBHOOK_DELIVERIES.labels(ending).inc()
        if ending == "failed":
            pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * GROWTH**pending.attempts) * random.uniform(0.8, 1.2)
            later = pending.model_copy(update={"attempts": pending.attempts + 1, "due": time.time() + pause})
            await asyncio.to_thread(store.put, key, later.model_dump_json().encode(), "application/json")
            self._due[key] = later.due
            return
        if ending != "delivered":
            logger.warning("%s: its webhook is %s", job.id, ending)
        await asyncio.to_thread(store.delete, key)

    async def _deliver(self, job: Job, outcome: Outcome) -> Ending:
        plan = await asyncio.to_thread(self.ledger.plan, job.tenant, job.id)
        found = await asyncio.to_thread(signing_secrets, self.ledger.store, job.tenant)
        video = describe(job, plan=plan, outcome=outcome)
        ended = datetime.fromtimestamp(outcome.at, UTC)
        content = {"type": f"video.{outcome.status}", "timestamp": ended.isoformat(), "data": video.model_dump(mode="json")}
        body = json.dumps(content, separators=(",", ":"))
        now, identity = datetime.now(UTC), event_id(job, outcome)
        headers = {
            "content-type": "application/json",
            "user-agent": "infinite-talk",
            "webhook-id": identity,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(Webhook(secret).sign(identity, now, body) for secret in found.valid()),
        }
        began = time.perf_counter()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                status = await self._post(job.webhook_url or "", body, headers)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, ValueError) as error:
            logger.info("%s: its webhook failed (%s)", job.id, type(error).__name__)
            return "failed"
        finally:
            WEBHOOK_DURATION.observe(time.perf_counter() - began)
        if status is None:
            return "refused"
        if 200 <= status < 300:
            return "delivered"
        logger.info("%s: its webhook answered %d", job.id, status)
        return "given_up" if status == _GONE else "failed"

    async def _post(self, url: str, body: str, headers: dict[str, str]) -> int | None:
        """The status of the answer; None if the address may not be called. Connects to the very address that was judged."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        address = await callable_address(host, port, self.allow_private, self.look_up)
        if address is None or (parts.scheme != "https" and not self.allow_private):
            return None
        place = f"[{address}]" if ":" in address else address
        target = httpx.URL(url).copy_with(host=place, port=port)
        async with httpx.AsyncClient(timeout=CALL_SECONDS, trust_env=False, follow_redirects=False) as client:
            request = client.build_request(
                "POST", target, content=body, headers={**headers, "host": parts.netloc}, extensions={"sni_hostname": host}
            )
            answer = await client.send(request, stream=True)
            with suppress(httpx.HTTPError):
                await answer.aclose()
            return answer.status_code


def _new_secret() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"
