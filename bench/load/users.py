"""Who asks: readers of one video, submitters of small files, callers of the peer; locust runs each class by its name."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from locust import FastHttpUser, between, events, task

RATE = 10
"""Requests a second of one user, at random intervals: users at a fixed pace fall into step, and ask all at the same instant."""

PICTURE = Path(os.environ.get("LOAD_PICTURE", ""))
SPEECH = Path(os.environ.get("LOAD_SPEECH", ""))


@events.init.add_listener
def _leave_modules_to_themselves(**_: object) -> None:
    # The tool's own collections would count as the service's slowness.
    gc.collect()
    gc.freeze()


class Reader(FastHttpUser):
    """Asks how a video stands."""

    wait_time = between(0.5 / RATE, 1.5 / RATE)

    @task
    def read(self) -> None:
        """GET /v1/videos/{id}."""
        self.client.get(f"/v1/videos/{os.environ['LOAD_VIDEO']}", name="read")


class Submitter(FastHttpUser):
    """Submits a batch job of small files, and cancels it, so that the queue does not fill."""

    wait_time = between(0.5, 1.5)

    @task
    def submit(self) -> None:
        """POST /v1/videos."""
        files = {"image": ("a.png", PICTURE.read_bytes(), "image/png"), "audio": ("a.wav", SPEECH.read_bytes(), "audio/wav")}
        form = {"consent": "true", "job_class": "batch", "seconds": "1"}
        with self.client.post("/v1/videos", data=form, files=files, name="submit", catch_response=True) as answer:
            video = answer.json() if answer.status_code == 202 else None
            if video is None:
                answer.failure(f"status {answer.status_code}")
                return
        self.client.post(f"/v1/videos/{video['id']}/cancel", name="cancel")


class Caller(FastHttpUser):
    """Says hello to the peer."""

    wait_time = between(0.5 / RATE, 1.5 / RATE)

    @task
    def call(self) -> None:
        """POST /hello."""
        self.client.post("/hello", json={}, name="hello")
