"""A job's record: what was asked, what has been made, how it ended. Every part is written once and never changed.

=====================================  ==================================================================
object, below the job's own folder     what it says
=====================================  ==================================================================
``job.json``                           :class:`Job`: what was asked
``inputs/...``                         picture or video, and speech, as they came
``attempts/<chunk>/<n>.json``          :class:`Attempt`: a worker began to work at that chunk
``attempts/<chunk>/<n>.returned``      that worker gave the job back in order
``plan.json``                          :class:`PlanRecord`: size, frames and chunks, and how players begin
``chunks/<chunk>.json``                :class:`Commit`: the chunk is made; names its fragment and the checkpoint after it
``fragments/...``, ``sound/...``       what commits name
``checkpoints/...``                    what commits name; only the last one is kept
``output/...``, ``thumbnail.jpg``      the MP4 that the outcome names, and its first frame
``outcome.json``                       :class:`Outcome`: how it ended; whoever creates it decides
=====================================  ==================================================================

A job is *queued* until the first attempt, then *in_progress* until there is an outcome.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.settings import JobClass

Ending = Literal["completed", "failed", "cancelled"]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
Stage = Literal["queued", "waiting", "load", "prepare", "listen", "perform", "finish", "done"]
"""Where a job stands: ``waiting`` is between two workers, ``finish`` joins the chunks, the others are the engine's own words."""

ReferenceKind = Literal["image", "video"]

VIDEO_ID = re.compile(r"video_[0-9a-f]{24}")
TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
DEFAULT_TENANT = "default"
"""Whose everything is as long as there are no keys."""

RECORD_VERSION = 2
"""The newest version of a job's objects that this release reads; it reads the one before, too. A record carries the lowest
version whose readers understand it: 1, or 2 where a video is dubbed. A release that knows less leaves the job alone."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", validate_by_name=True, validate_by_alias=True)

    def to_bytes(self) -> bytes:
        return self.model_dump_json(by_alias=True).encode()


def new_token() -> str:
    """Makes what one worker writes different from what its rival writes."""
    return secrets.token_hex(8)


class Input(_Record):
    """A stored input: its key, its size in bytes, the name and type it came with, and the SHA-256 or file id it came from."""

    key: str
    bytes: int
    filename: str
    content_type: str
    origin: str


class Job(_Record):
    """What was asked. Times are seconds since 1970. ``reference`` is what performs: a picture, or a video to be dubbed."""

    id: str
    tenant: str
    token: str = Field(default_factory=new_token)
    created_at: float = Field(default_factory=time.time)
    expires_at: float
    fingerprint: str
    engine: str
    job_class: JobClass
    reference: Input = Field(validation_alias="image", serialization_alias="image")  # its name when there were only pictures
    reference_kind: ReferenceKind = "image"
    audio: Input
    prompt: str = ""
    seed: int = 0
    expressiveness: float = 1.0
    size: tuple[int, int] | None = None
    resolution: str = "720p"
    aspect_ratio: tuple[int, int] | None = None
    seconds: float | None = None
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    metadata: dict[str, str] = Field(default_factory=dict)
    webhook_url: str | None = None
    traceparent: str | None = None
    start_before: float | None = None
    max_run_seconds: float
    remixed_from: str | None = None
    record_version: int = Field(default_factory=lambda fields: 2 if fields["reference_kind"] == "video" else 1)


class Attempt(_Record):
    """A worker began at chunk ``chunk``."""

    number: int
    chunk: int
    worker: str
    token: str = Field(default_factory=new_token)
    at: float = Field(default_factory=time.time)


class PlanRecord(_Record):
    """What the engine will make, and what players must know first: no segment is longer than ``longest_seconds``."""

    width: int
    height: int
    frames: int
    chunks: int
    longest_seconds: float
    video_init: str
    video_codec: str
    sound_init: str
    sound_codec: str
    token: str = Field(default_factory=new_token)


class Commit(_Record):
    """Chunk ``index`` is made: ``frames`` from ``start`` on, in ``seconds`` of engine time, ``gpu_seconds`` of them on a GPU.

    ``fragment``, ``sound`` and ``checkpoint`` are keys; the fragment lasts as long as its frames, the sound ``sound_seconds``.
    """

    index: int
    start: int
    frames: int
    seconds: float
    gpu_seconds: float
    fragment: str
    fragment_bytes: int
    sound: str
    sound_bytes: int
    sound_seconds: float
    checkpoint: str
    token: str


class Usage(_Record):
    """What a job has used: frames made, seconds of engine time, and how many of those were on a GPU."""

    frames: int = 0
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0


class Failure(_Record):
    """Why a job failed: a stable code, a sentence with cause and cure, and the field at fault if there is one."""

    code: str
    message: str
    param: str | None = None


class Outcome(_Record):
    """How a job ended."""

    status: Ending
    at: float = Field(default_factory=time.time)
    token: str = Field(default_factory=new_token)
    error: Failure | None = None
    output: str | None = None
    output_bytes: int = 0
    usage: Usage = Usage()
    attempt: int = 0


class Live(_Record):
    """What a job's worker says about it while it runs; kept beside the queue and lost with it, never needed to go on."""

    stage: Stage
    progress: float = 0.0
    chunks_done: int = 0
    chunks_total: int | None = None
    eta_seconds: float | None = None
    attempt: int = 0
    usage: Usage = Usage()


def job_folder(tenant: str, video_id: str) -> str:
    """Prefix of every object of a job."""
    return f"tenants/{tenant}/videos/{video_id}/"


def chunk_name(index: int) -> str:
    """A chunk's number, so that names sort as numbers do."""
    return f"{index:07d}"
