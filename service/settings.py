"""Every setting of the service in one class, read from the environment (``INFINITETALK_...``)."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_store.errors import InfiniteTalkError
from service.logs import LogFormat

JobClass = Literal["interactive", "batch"]
"""Interactive jobs have someone waiting; batch jobs run when no interactive one is waiting."""

JOB_CLASSES: tuple[JobClass, ...] = ("interactive", "batch")

_SECRETS_DIR = "INFINITETALK_SECRETS_DIR"
_LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel's own bound is 108, and a server may add a suffix."""


def _default_data_dir() -> Path:
    home = os.environ.get("XDG_DATA_HOME")
    return (Path(home) if home else Path.home() / ".local" / "share") / "infinitetalk"


class Settings(BaseSettings):
    """Settings of API, worker and ``infinitetalk serve``; the README's table repeats these descriptions."""

    model_config = SettingsConfigDict(env_prefix="INFINITETALK_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    port: int = Field(3000, ge=1, le=65535, description="Port the API listens on.")
    allow_public: bool = Field(
        False, description="Serve everyone although there are no keys: only behind a gateway that authenticates."
    )
    metrics_host: str = Field("127.0.0.1", description="Address of the API's health and metrics endpoint.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of that endpoint, which is not for the public; 0 for none.")
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="Where `infinitetalk serve` keeps its queue and, without S3, all objects."
    )
    engines: Annotated[tuple[str, ...], NoDecode] = Field(
        ("portrait",), description="Engines that are offered, with commas between; the first is the default model."
    )

    redis_url: SecretStr | None = Field(
        None,
        description="Redis or Valkey server shared by all processes; without it one is started.",
    )
    redis_prefix: str = Field("infinitetalk", pattern=r"^[a-z0-9-]{1,40}$", description="Prefix of every key on that server.")

    s3_endpoint: str | None = Field(None, description="URL of an S3 server, such as https://s3.example.com; without it a folder.")
    s3_bucket: str = Field("infinitetalk", description="Bucket; it is created if it is missing.")
    s3_region: str = Field("us-east-1", description="Region that requests are signed for.")
    s3_access_key: SecretStr | None = Field(None, description="Access key of the S3 server.")
    s3_secret_key: SecretStr | None = Field(None, description="Secret key of the S3 server.")
    presign_seconds: int = Field(3600, ge=60, le=604800, description="How long a presigned URL works, in seconds.")

    max_image_bytes: int = Field(20_000_000, ge=1, description="Largest picture, in bytes.")
    max_video_bytes: int = Field(500_000_000, ge=1, description="Largest video to be dubbed, in bytes.")
    max_audio_bytes: int = Field(500_000_000, ge=1, description="Largest speech recording, in bytes.")
    max_video_seconds: float = Field(14_400, gt=0, description="Longest video, in seconds.")
    max_queued_jobs: int = Field(1000, ge=1, description="Jobs that may wait; further ones are refused with 429.")
    tenant_requests_per_second: int = Field(
        0, ge=0, le=100_000, description="Requests one tenant may send in a second; 0 for no limit, here and below."
    )
    tenant_queued_jobs: int = Field(250, ge=0, description="Jobs of one tenant that may wait.")
    tenant_running_jobs: int = Field(0, ge=0, description="Jobs of one tenant that may run at a time; others wait their turn.")
    tenant_seconds_per_day: int = Field(0, ge=0, description="Seconds of video made for one tenant in a day (UTC).")
    max_wait_seconds: int = Field(60, ge=0, le=100, description="Upper bound of `Prefer: wait=N`, in seconds.")
    webhook_allow_private: bool = Field(
        False, description="Call webhooks on private networks and over plain HTTP too; every tenant can then reach those."
    )
    max_connections: int = Field(1000, ge=1, description="Connections one API process holds; further ones are refused with 503.")
    max_uploads: int = Field(64, ge=1, description="Requests with large bodies that one API process reads at a time.")
    min_free_bytes: int = Field(
        1_000_000_000, ge=0, description="Free disk space, in bytes, below which no upload is accepted and no job begun."
    )
    log_format: LogFormat = Field("text", description="Format of log lines: text or json.")
    max_event_streams: int = Field(200, ge=1, description="Event streams one API process serves at a time.")
    max_run_seconds: float = Field(86_400, gt=0, description="Engine time a job may use, in seconds, unless it asks for less.")
    retention_hours: float = Field(168, gt=0, description="Jobs and files are deleted this long after their creation, in hours.")

    worker_classes: Annotated[tuple[JobClass, ...], NoDecode] = Field(
        JOB_CLASSES, description="Classes of jobs a worker takes: interactive, batch or both."
    )
    worker_host: str = Field("127.0.0.1", description="Address of a worker's health and metrics endpoint.")
    worker_port: int = Field(3001, ge=0, le=65535, description="Port of that endpoint; 0 for none.")
    worker_jobs: int = Field(
        0, ge=0, description="Jobs after which a worker ends, as one that KEDA starts for each job; 0 for never."
    )
    worker_idle_seconds: float = Field(
        0, ge=0, description="A worker that has had nothing to do for this long ends, in seconds; 0 for never."
    )
    pod_dir: Path | None = Field(
        None,
        description="Folder with the pod's name, namespace, token and ca.crt, with which a busy worker asks Kubernetes to take "
        "an idle one first; without it none is asked.",
    )
    lease_seconds: float = Field(10, ge=1, description="A worker silent for this long loses its job to another, in seconds.")
    reconcile_seconds: float = Field(
        60, ge=1, description="How often queue and indexes are checked against the store, in seconds."
    )
    max_attempts: int = Field(3, ge=1, description="A job that ends its worker this often at the same chunk has failed.")
    stall_seconds: float = Field(
        300, ge=1, description="An engine that reports nothing for this long is started afresh, in seconds."
    )

    @field_validator("engines", "worker_classes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.engines:
            raise ValueError("engines: name at least one engine")
        if not self.worker_classes:
            raise ValueError("worker_classes: name at least one class, interactive or batch")
        if self.s3_endpoint and not (self.s3_access_key and self.s3_secret_key):
            raise ValueError("s3_endpoint is set: set s3_access_key and s3_secret_key too")
        return self

    @property
    def embedded(self) -> bool:
        """Whether this deployment runs its own Valkey."""
        return self.redis_url is None

    @property
    def queue_url(self) -> str:
        """The Redis server's URL: the shared one, or the socket of the embedded Valkey."""
        return self.redis_url.get_secret_value() if self.redis_url else f"unix://{self.valkey_socket}"

    @property
    def valkey_socket(self) -> Path:
        """Socket of the embedded Valkey: in the data folder, or, where that path is too long, in the temporary folder."""
        path = self.data_dir / "valkey" / "valkey.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"infinitetalk-{os.getuid()}-{digest}" / "valkey.sock"

    @property
    def retention_seconds(self) -> float:
        return self.retention_hours * 3600

    def require_safe_address(self, guarded: bool) -> None:
        """Refuse to serve everyone as long as nobody has to show a key (``address_public``)."""
        if not guarded and not self.allow_public and not is_loopback(self.host):
            raise InfiniteTalkError(
                "address_public",
                f"INFINITETALK_HOST is {self.host}, and anybody who reaches it could use the service: create a key "
                "with `infinitetalk keys create`, serve on 127.0.0.1, or set INFINITETALK_ALLOW_PUBLIC=true behind a gateway.",
                param="host",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The process's settings; ``settings_invalid`` names the variable at fault and what it should be.

    Each may also come from a file of the variable's name in the folder INFINITETALK_SECRETS_DIR, as Kubernetes and Docker mount
    secrets; the environment goes first.
    """
    folder = os.environ.get(_SECRETS_DIR)
    if folder is not None and not Path(folder).is_dir():
        raise InfiniteTalkError("settings_invalid", f"{_SECRETS_DIR} is {folder!r}, which is no folder: mount the secrets there.")
    try:
        return Settings(_secrets_dir=folder)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            name = f"INFINITETALK_{fault['loc'][0]}".upper() if fault["loc"] else "The settings"
            faults.append(f"{name}: {fault['msg'].removeprefix('Value error, ')}")
        raise InfiniteTalkError("settings_invalid", ". ".join(faults) + ".") from None
