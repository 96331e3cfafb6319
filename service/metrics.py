"""Every metric of the service, named after Prometheus' conventions; no label ever holds an id.

API and workers count what they themselves do, each process for itself. What all share (:data:`QUEUE_JOBS`,
:data:`QUEUE_OLDEST_WAIT`) is read from the queue whenever somebody asks, and says the same wherever it is asked.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200)
_RATIO = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 10)

HTTP_REQUESTS = Counter(
    "infinitetalk_http_requests_total", "Requests answered, by route template and status.", ["method", "route", "status"]
)
HTTP_DURATION = Histogram(
    "infinitetalk_http_request_duration_seconds",
    "Time from a request to the beginning of its answer.",
    ["method", "route"],
    buckets=_QUICK,
)
CONNECTIONS_REFUSED = Counter(
    "infinitetalk_connections_refused_total", "Connections that were refused or broken off, by reason.", ["reason"]
)
DISK_FREE = Gauge("infinitetalk_disk_free_bytes", "Free space when a process last looked, by folder.", ["folder"])
JOBS_SUBMITTED = Counter("infinitetalk_jobs_submitted_total", "Jobs accepted.", ["engine", "job_class"])
JOBS_ENDED = Counter(
    "infinitetalk_jobs_total", "Jobs that ended: completed, failed or cancelled.", ["engine", "job_class", "status"]
)
FAILURES = Counter("infinitetalk_failures_total", "Jobs that failed, by error code.", ["engine", "code"])
QUEUE_JOBS = Gauge("infinitetalk_queue_jobs", "Jobs that are queued or running.", ["engine", "job_class", "state"])
QUEUE_OLDEST_WAIT = Gauge(
    "infinitetalk_queue_oldest_wait_seconds", "How long the longest-waiting job has waited.", ["engine", "job_class"]
)
QUEUE_UP = Gauge("infinitetalk_queue_up", "1 if the queue answered when this was asked, else 0; its figures are absent then.")
ATTEMPTS = Counter("infinitetalk_attempts_total", "Times a worker began with a job.", ["engine"])
FRAMES = Counter("infinitetalk_frames_total", "Frames made.", ["engine"])
STAGE_DURATION = Histogram(
    "infinitetalk_stage_duration_seconds", "Time a worker spent in each stage of a job.", ["engine", "stage"], buckets=_LONG
)
CHUNK_DURATION = Histogram("infinitetalk_chunk_duration_seconds", "Engine time of a chunk.", ["engine"], buckets=_LONG)
REAL_TIME_FACTOR = Histogram(
    "infinitetalk_real_time_factor", "Seconds of video made for each second of engine time.", ["engine"], buckets=_RATIO
)
FIRST_FRAGMENT = Histogram(
    "infinitetalk_first_fragment_seconds",
    "Time from accepting a job to its first playable fragment.",
    ["engine", "job_class"],
    buckets=_LONG,
)
ENGINE_RESTARTS = Counter(
    "infinitetalk_engine_restarts_total", "Engine processes that ended unasked and were started again.", ["engine"]
)
STORE_DURATION = Histogram(
    "infinitetalk_store_duration_seconds", "Time of a call to the object store.", ["operation", "outcome"], buckets=_QUICK
)
WEBHOOK_DELIVERIES = Counter(
    "infinitetalk_webhook_deliveries_total", "Webhook deliveries tried: delivered, refused, failed or given_up.", ["outcome"]
)
WEBHOOK_DURATION = Histogram("infinitetalk_webhook_duration_seconds", "Time of one webhook delivery.", buckets=_QUICK)
