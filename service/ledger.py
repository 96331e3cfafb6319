"""The jobs in the object store: the truth, from which everything else can be rebuilt.

Nothing here is changed in place. Whatever several processes may want to decide differently (who owns an id, which chunk counts,
how a job ended) is a conditional create, so that one of them decides.

Beside the jobs' folders stand two kinds of marks, so that nobody has to search all jobs for the few that matter:
``open/<tenant>/<id>`` while a job has no outcome, ``deleted/<tenant>/<id>`` while objects of a deleted job may still appear.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from service.intentions import intend
from service.job import Attempt, Commit, Job, Outcome, PlanRecord, chunk_name, job_folder
from service.metrics import FAILURES, JOBS_ENDED
from service.storage import ObjectMissing, Store

ORPHAN_SECONDS = 3600.0
"""A submit that has not come to a record within this time has been given up."""

DELETED_SECONDS = 600.0
"""How long after a deletion its mark stands: longer than any worker can go on unaware."""

R = TypeVar("R", bound=BaseModel)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """A mark beside the jobs: whose, and since when (seconds since 1970)."""

    tenant: str
    video_id: str
    since: float


@dataclass(frozen=True)
class Ledger:
    """Reads and writes job records. All methods are blocking and may be called from several threads."""

    store: Store

    @staticmethod
    def video_id(tenant: str, idempotency_key: str | None) -> str:
        """The id of a job: decided by tenant and key where there is a key, random otherwise."""
        if idempotency_key is None:
            return f"video_{secrets.token_hex(12)}"
        return f"video_{hashlib.sha256(chr(0).join((tenant, idempotency_key)).encode()).hexdigest()[:24]}"

    def announce(self, tenant: str, video_id: str) -> None:
        """Mark a job open before anything of it is written, so that what a dying process leaves behind is found."""
        self.store.put(f"open/{tenant}/{video_id}", b"")

    def create(self, job: Job) -> Job:
        """Write the record if nobody has: the record that stands, which may be another's."""
        key = f"{job_folder(job.tenant, job.id)}job.json"
        while not self.store.create(key, job.to_bytes()):
            standing = self.job(job.tenant, job.id)
            if standing is not None:
                return standing
        return job

    def job(self, tenant: str, video_id: str) -> Job | None:
        """What was asked."""
        return self._read(Job, f"{job_folder(tenant, video_id)}job.json")

    def outcome(self, tenant: str, video_id: str) -> Outcome | None:
        """How it ended, if it has."""
        return self._read(Outcome, f"{job_folder(tenant, video_id)}outcome.json")

    def ended(self, job: Job) -> bool:
        """Whether there is nothing more to do: the job has an outcome, or has been deleted (and perhaps submitted anew)."""
        if self.store.stat(f"{job_folder(job.tenant, job.id)}outcome.json"):
            return True
        standing = self.job(job.tenant, job.id)
        return standing is None or standing.token != job.token

    def finish(self, job: Job, outcome: Outcome) -> bool:
        """End a job; False if it has ended otherwise."""
        intend(self.store, job)
        won = self.store.create(f"{job_folder(job.tenant, job.id)}outcome.json", outcome.to_bytes())
        self.close(job.tenant, job.id)
        if won:
            JOBS_ENDED.labels(job.engine, job.job_class, outcome.status).inc()
            if outcome.error:
                FAILURES.labels(job.engine, outcome.error.code).inc()
        return won

    def close(self, tenant: str, video_id: str) -> None:
        """Take the mark of an open job away."""
        self.store.delete(f"open/{tenant}/{video_id}")

    # Attempts

    def begin(self, job: Job, chunk: int, worker: str, limit: int) -> Attempt | None:
        """Count an attempt at ``chunk``; None if ``limit`` earlier ones at that same chunk ended without a word."""
        folder = f"{job_folder(job.tenant, job.id)}attempts/"
        while True:
            keys = [entry.key for entry in self.store.entries(folder)]
            here = f"{folder}{chunk_name(chunk)}/"
            begun = {key for key in keys if key.endswith(".json")}
            lost = {key for key in begun if key.startswith(here) and key.replace(".json", ".returned") not in keys}
            if len(lost) >= limit:
                return None
            attempt = Attempt(number=len(begun) + 1, chunk=chunk, worker=worker)
            if self.store.create(f"{here}{attempt.number:04d}.json", attempt.to_bytes()):
                return attempt

    def give_back(self, job: Job, attempt: Attempt) -> None:
        """Say that an attempt ended in order, so that it does not count against the job."""
        self.store.put(f"{job_folder(job.tenant, job.id)}attempts/{chunk_name(attempt.chunk)}/{attempt.number:04d}.returned", b"")

    def attempts(self, tenant: str, video_id: str) -> int:
        """How often workers have begun."""
        return sum(entry.key.endswith(".json") for entry in self.store.entries(f"{job_folder(tenant, video_id)}attempts/"))

    # Plan and chunks

    def create_plan(self, job: Job, plan: PlanRecord) -> PlanRecord:
        """Write the plan if nobody has: the plan that stands."""
        if self.store.create(f"{job_folder(job.tenant, job.id)}plan.json", plan.to_bytes()):
            return plan
        return self.plan(job.tenant, job.id) or plan

    def plan(self, tenant: str, video_id: str) -> PlanRecord | None:
        """The plan, once an engine has made one."""
        return self._read(PlanRecord, f"{job_folder(tenant, video_id)}plan.json")

    def commit(self, job: Job, commit: Commit) -> bool:
        """Make a chunk count; False if another worker's chunk counts."""
        return self.store.create(f"{job_folder(job.tenant, job.id)}chunks/{chunk_name(commit.index)}.json", commit.to_bytes())

    def commits(self, tenant: str, video_id: str, start: int = 0) -> list[Commit]:
        """The chunks that count, in order, from chunk ``start`` on."""
        folder = f"{job_folder(tenant, video_id)}chunks/"
        after = f"{folder}{chunk_name(start - 1)}.json" if start else ""
        found = (self._read(Commit, entry.key) for entry in self.store.entries(folder, after) if entry.key.endswith(".json"))
        return [commit for commit in found if commit is not None]

    # Deletion

    def delete(self, tenant: str, video_id: str) -> None:
        """Remove a job and every object of it, whatever its state; what a worker still writes is removed by the sweep."""
        self.store.put(f"deleted/{tenant}/{video_id}", b"")
        self.remove(tenant, video_id)
        self.close(tenant, video_id)

    def remove(self, tenant: str, video_id: str) -> None:
        """Delete the objects of a job, its record first."""
        folder = job_folder(tenant, video_id)
        self.store.delete(f"{folder}job.json")
        while keys := [entry.key for entry in self.store.entries(folder)]:
            self.store.delete(*keys)

    def is_deleted(self, tenant: str, video_id: str) -> bool:
        """Whether objects of a deleted job of that id may still appear."""
        return self.store.stat(f"deleted/{tenant}/{video_id}") is not None

    def forget(self, tenant: str, video_id: str) -> None:
        """Remove what has appeared of a deleted job, and the mark: nobody works at it any more."""
        self.remove(tenant, video_id)
        self.store.delete(f"deleted/{tenant}/{video_id}")

    # Enumeration

    def open_jobs(self) -> Iterator[Mark]:
        """Jobs that may have no outcome yet."""
        return self._marks("open/")

    def deleted_jobs(self) -> Iterator[Mark]:
        """Jobs whose objects may still appear."""
        return self._marks("deleted/")

    def all_jobs(self) -> Iterator[Job]:
        """Every job of every tenant: slow, for rebuilding the indexes."""
        for tenant in self.store.folders("tenants/"):
            for video_id in self.store.folders(f"tenants/{tenant}/videos/"):
                if job := self.job(tenant, video_id):
                    yield job

    def _marks(self, prefix: str) -> Iterator[Mark]:
        for entry in self.store.entries(prefix):
            tenant, _, video_id = entry.key.removeprefix(prefix).partition("/")
            yield Mark(tenant, video_id, entry.modified)

    def _read(self, kind: type[R], key: str) -> R | None:
        try:
            return kind.model_validate_json(self.store.get(key))
        except ObjectMissing:
            return None
        except ValidationError:
            logger.exception("%s cannot be read and is passed over", key)
            return None

    def orphaned(self, mark: Mark) -> bool:
        """Whether an open mark without a record is what a submit that died left behind."""
        return time.time() - mark.since > ORPHAN_SECONDS
