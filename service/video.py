"""The video object: what clients see of a job, everywhere the same (answers, events, the Bento endpoint)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from model_store.engine import FPS
from service.job import Failure, Job, Live, Outcome, PlanRecord, Stage, Status, Usage
from service.settings import JobClass


class VideoError(BaseModel):
    """Why a video could not be made."""

    code: str = Field(description="Stable name of the failure.", examples=["no_face"])
    message: str = Field(description="What is wrong, and what to do about it.")
    param: str | None = Field(None, description="The request's field at fault, if it is one.")


class VideoUsage(BaseModel):
    """What a video has used so far."""

    frames: int = Field(0, description="Frames made.")
    engine_seconds: float = Field(0.0, description="Seconds an engine has worked.")
    gpu_seconds: float = Field(0.0, description="How many of those a GPU was held.")


class Video(BaseModel):
    """A video that is asked for, being made, or made."""

    id: str = Field(examples=["video_0123456789abcdef01234567"])
    object: Literal["video"] = "video"
    model: str = Field(description="The engine that performs.", examples=["portrait"])
    status: Status
    progress: int = Field(ge=0, le=100, description="Per cent done.")
    stage: Stage = Field(description="What is being done.")
    created_at: int = Field(description="Seconds since 1970.")
    completed_at: int | None = Field(None, description="When it ended, in seconds since 1970.")
    expires_at: int = Field(description="When it is deleted, in seconds since 1970.")
    chunks_done: int = 0
    chunks_total: int | None = Field(None, description="Known once the speech has been measured.")
    queue_position: int | None = Field(None, description="Videos that will be begun before this one, while it waits.")
    eta_seconds: float | None = Field(None, description="Estimated seconds until it is complete, while it is being made.")
    attempt: int = Field(0, description="How often a worker has begun with it.")
    job_class: JobClass
    size: str = Field("", description="Width x height; empty until known.", examples=["720x720"])
    seconds: str = Field("", description="Length; empty until known.", examples=["12.48"])
    prompt: str | None = None
    seed: int = 0
    expressiveness: float = 1.0
    remixed_from_video_id: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    synthetic: Literal[True] = Field(True, description="The video shows a performance that never took place.")
    error: VideoError | None = None
    usage: VideoUsage = VideoUsage()


def describe(
    job: Job,
    *,
    plan: PlanRecord | None = None,
    live: Live | None = None,
    outcome: Outcome | None = None,
    position: int | None = None,
) -> Video:
    """The video object of a job.

    Args:
        job: what was asked.
        plan: the plan, once there is one.
        live: what its worker last said; needed as long as there is no outcome.
        outcome: how it ended.
        position: its place in the queue, if it waits.
    """
    live = live or Live(stage="queued")
    usage = outcome.usage if outcome else live.usage
    completed = outcome is not None and outcome.status == "completed"
    status: Status = outcome.status if outcome else "queued" if live.attempt == 0 else "in_progress"
    size = (plan.width, plan.height) if plan else job.size
    return Video(
        id=job.id,
        model=job.engine,
        status=status,
        progress=100 if completed else min(99, int(live.progress)),
        stage="done" if outcome else live.stage,
        created_at=int(job.created_at),
        completed_at=int(outcome.at) if outcome else None,
        expires_at=int(job.expires_at),
        chunks_done=plan.chunks if completed and plan else live.chunks_done,
        chunks_total=plan.chunks if plan else live.chunks_total,
        queue_position=position if status == "queued" else None,
        eta_seconds=None if outcome else live.eta_seconds,
        attempt=outcome.attempt if outcome else live.attempt,
        job_class=job.job_class,
        size=f"{size[0]}x{size[1]}" if size else "",
        seconds=f"{plan.frames / FPS:.2f}" if plan else "",
        prompt=job.prompt or None,
        seed=job.seed,
        expressiveness=job.expressiveness,
        remixed_from_video_id=job.remixed_from,
        metadata=job.metadata,
        error=_error(outcome.error) if outcome and outcome.error else None,
        usage=_usage(usage),
    )


def _error(failure: Failure) -> VideoError:
    return VideoError(code=failure.code, message=failure.message, param=failure.param)


def _usage(usage: Usage) -> VideoUsage:
    return VideoUsage(frames=usage.frames, engine_seconds=round(usage.engine_seconds, 3), gpu_seconds=round(usage.gpu_seconds, 3))
