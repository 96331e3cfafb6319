"""What operators read: that the figures move with the work, and keep to Prometheus' conventions."""

from __future__ import annotations

import re
from collections.abc import Iterable

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from servers import Client, Deployment, eventually

_ID = re.compile(r"(video|file)_[0-9a-f]{8}|/[0-9a-f]{8}")
_UNITS = ("_seconds", "_bytes", "_total", "_jobs", "_factor", "_up", "_created")


def scrape(port: int) -> dict[str, Metric]:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert answer.status_code == 200
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    found = [s.value for f in families.values() for s in f.samples if s.name == sample and labels.items() <= s.labels.items()]
    return sum(found)


def test_a_job_moves_the_figures_of_api_and_worker(client: Client, deployment: Deployment) -> None:
    settings = deployment.settings()
    steady = {"engine": "steady", "job_class": "interactive"}
    before, worker_before = scrape(settings.metrics_port), scrape(settings.worker_port)
    client.wait(client.make(seconds=1.92))
    client.http.get("/v1/videos/video_000000000000000000000000")
    client.http.get("/v1/nowhere/at/all")
    after = scrape(settings.metrics_port)

    def more(sample: str, **labels: str) -> float:
        return value(after, sample, **labels) - value(before, sample, **labels)

    assert more("infinitetalk_jobs_submitted_total", **steady) >= 1
    assert more("infinitetalk_http_requests_total", method="POST", route="/v1/videos", status="202") >= 1
    assert more("infinitetalk_http_requests_total", route="/v1/videos/{video_id}", status="404") >= 1
    assert more("infinitetalk_http_requests_total", route="unmatched") >= 1
    assert more("infinitetalk_http_request_duration_seconds_count", route="/v1/videos/{video_id}") >= 1
    assert more("infinitetalk_store_duration_seconds_count", operation="create", outcome="ok") >= 1
    assert value(after, "infinitetalk_queue_up") == 1

    def ended() -> dict[str, Metric] | None:
        families = scrape(settings.worker_port)
        name, status = "infinitetalk_jobs_total", "completed"
        moved = value(families, name, **steady, status=status) - value(worker_before, name, **steady, status=status)
        return families if moved >= 1 else None

    worker = eventually(ended, "the worker counts the job")
    for sample, least in (
        ("infinitetalk_frames_total", 48),
        ("infinitetalk_attempts_total", 1),
        ("infinitetalk_chunk_duration_seconds_count", 3),
        ("infinitetalk_real_time_factor_count", 3),
        ("infinitetalk_first_fragment_seconds_count", 1),
        ("infinitetalk_stage_duration_seconds_count", 3),
    ):
        assert value(worker, sample, engine="steady") - value(worker_before, sample, engine="steady") >= least, sample


def test_waiting_and_running_jobs_show(client: Client, deployment: Deployment) -> None:
    port = deployment.settings().metrics_port
    jobs = [client.make(expressiveness=2) for _ in range(3)]

    def figures(state: str) -> float:
        return value(scrape(port), "infinitetalk_queue_jobs", engine="steady", job_class="interactive", state=state)

    eventually(lambda: figures("running") == 1 and figures("queued") == 2, "one runs and two wait")
    assert value(scrape(port), "infinitetalk_queue_oldest_wait_seconds", engine="steady", job_class="interactive") > 0
    for job in reversed(jobs):
        client.http.post(f"/v1/videos/{job}/cancel")
    eventually(lambda: figures("running") == 0 and figures("queued") == 0, "nothing waits or runs")


def check_names(families: Iterable[Metric]) -> None:
    for family in families:
        if not family.name.startswith("infinitetalk_"):
            continue
        assert family.documentation.endswith("."), family.name
        assert family.type == "counter" or family.name.endswith(_UNITS), family.name
        for sample in family.samples:
            assert family.type != "counter" or sample.name.endswith(("_total", "_created")), sample.name
            assert not any(_ID.search(label) for label in sample.labels.values()), sample


def test_names_keep_to_the_conventions_and_no_label_holds_an_id(client: Client, deployment: Deployment) -> None:
    client.wait(client.make(seconds=0.64))
    settings = deployment.settings()
    for port in (settings.metrics_port, settings.worker_port):
        check_names(scrape(port).values())
