"""That the end of a job is to be told: noted before the outcome is, and kept until `service.webhooks` has told it."""

from __future__ import annotations

import time

from pydantic import BaseModel, ConfigDict, Field

from service.job import Job
from service.storage import Store

FOLDER = "webhooks/"


class Pending(BaseModel):
    """A delivery that is still to be made. Times are seconds since 1970."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempts: int = 0
    since: float = Field(default_factory=time.time)
    due: float = 0.0


def intend(store: Store, job: Job) -> None:
    """Note that the end of a job is to be told; before its outcome is written."""
    if job.webhook_url:
        store.create(f"{FOLDER}{job.tenant}/{job.id}", Pending().model_dump_json().encode())
