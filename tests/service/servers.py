"""Real servers for tests, each on free loopback ports, each stopped when its `with` block ends."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import redis

from service.embedded import valkey_binary
from service.settings import Settings

PATIENCE = 60.0
"""Seconds after which a condition is taken never to come true; nothing normally takes a tenth of it."""

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on port + 10000, which some servers take too.

    Both lie below 32768, where Linux begins to give ports to outgoing connections: until a server has started, no client of
    another test can be given one of them.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_000, 22_000)
        if port not in found and all(map(_is_free, (port, port + 10_000))):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as holder:
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def eventually(condition: Callable[[], T], what: str, seconds: float = PATIENCE, pause: float = 0.2) -> T:
    """The first true answer of `condition`, which is asked again and again; an assertion error after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)


class Process:
    """A child process in a session of its own, with its output in a file."""

    def __init__(self, name: str, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name, self.command, self.log, self.env = name, command, log, dict(env or os.environ)
        self._popen: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as out:
            self._popen = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env, cwd=ROOT, start_new_session=True
            )

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        assert self._popen is not None
        return self._popen.poll()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to this process alone, as the kernel's memory killer would; what it started must notice by itself."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        assert self._popen is not None
        return self._popen.wait(seconds)

    def terminate(self) -> None:
        """Ask the process to end."""
        self.signal(signal.SIGTERM)

    def end(self) -> None:
        """End the whole session, gently first, and then what it has started in sessions of their own, as BentoML does."""
        assert self._popen is not None
        offspring: list[psutil.Process] = []
        with suppress(psutil.Error):
            offspring = psutil.Process(self._popen.pid).children(recursive=True)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(15)
                break
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        for process in offspring:
            with suppress(psutil.Error):
                process.kill()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server; yields the settings that point the service at it."""
    master, volume, filer, s3 = free_ports(4)
    env = {**os.environ, "AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret"}
    data = folder / "seaweed"
    data.mkdir(parents=True)
    command = [
        str(BIN / "weed"), "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={s3}",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", "-webdav=false", "-admin.ui=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    process = Process("seaweed", command, folder / "seaweed.log", env)
    try:
        eventually(lambda: _answers(f"http://127.0.0.1:{s3}/"), "SeaweedFS is up")
        yield {
            "INFINITETALK_S3_ENDPOINT": f"http://127.0.0.1:{s3}",
            "INFINITETALK_S3_BUCKET": "videos",
            "INFINITETALK_S3_ACCESS_KEY": "testkey",
            "INFINITETALK_S3_SECRET_KEY": "testsecret",
        }
    finally:
        process.end()
        shutil.rmtree(data, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=2)
    except httpx.HTTPError:
        return False
    return True


def valkey_command(port: int, folder: Path) -> list[str]:
    return [
        str(valkey_binary()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--appendonly",
        "yes",
        "--save",
        "",
    ]


class Deployment:
    """Valkey, an API and any number of workers as separate processes, as on several machines; stopped by `end`.

    Args:
        folder: for data and logs.
        settings: further INFINITETALK_ variables, such as those of an S3 server.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.redis_port, self.port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INFINITETALK_")},
            "PYTHONPATH": str(ROOT / "tests/service/engines"),
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(folder / "bentoml"),
            "INFINITETALK_DATA_DIR": str(folder / "data"),
            "INFINITETALK_PORT": str(self.port),
            "INFINITETALK_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "INFINITETALK_ENGINES": "steady",
            "INFINITETALK_WORKER_PORT": "0",
            "INFINITETALK_LEASE_SECONDS": "3",
            "INFINITETALK_RECONCILE_SECONDS": "1",
            **(settings or {}),
        }
        self.processes: list[Process] = []
        (folder / "valkey").mkdir()
        self.valkey = self._run("valkey", valkey_command(self.redis_port, folder / "valkey"))
        self.api = self._run(
            "api",
            [
                sys.executable,
                "-m",
                "bentoml",
                "serve",
                "service.bento:InfiniteTalk",
                "--host",
                "127.0.0.1",
                "--port",
                str(self.port),
            ],
        )

    def _run(self, name: str, command: list[str], env: Mapping[str, str] | None = None) -> Process:
        process = Process(name, command, self.folder / f"{name}-{len(self.processes)}.log", {**self.env, **(env or {})})
        self.processes.append(process)
        return process

    def wait_ready(self) -> None:
        eventually(lambda: _status(f"{self.url}/readyz") == 200, "the API is ready")

    def worker(self, settings: Mapping[str, str] | None = None) -> Process:
        """Start a worker, with settings of its own beside the deployment's."""
        return self._run("worker", [sys.executable, "-m", "service.cli.main", "--debug", "worker"], settings)

    def crew(self, count: int) -> list[Process]:
        """Exactly so many running workers: those there are, and new ones, or some sent home."""
        running = [process for process in self.processes if process.name == "worker" and process.returncode is None]
        for surplus in running[count:]:
            surplus.terminate()
        for surplus in running[count:]:
            surplus.wait()
        return running[:count] + [self.worker() for _ in range(count - len(running))]

    def settings(self) -> Settings:
        """The deployment's settings, for looking into its store and queue."""
        prefix = "INFINITETALK_"
        own = {name.removeprefix(prefix).lower(): value for name, value in self.env.items() if name.startswith(prefix)}
        return Settings(**own)

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.redis_port, socket_timeout=5)

    def end(self) -> None:
        for process in self.processes[1:]:  # Valkey last: the others say goodbye to it
            if process.returncode is None:
                process.terminate()
        for process in reversed(self.processes):
            process.end()


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.HTTPError:
        return 0


class Client:
    """What tests ask of the API. One for each thread: in httpcore 1.0 a thread that tidies the shared pool can close a connection
    that another has just begun to use (Bad file descriptor)."""

    def __init__(self, url: str, picture: Path, speech: Path) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30, follow_redirects=True)
        self.picture, self.speech = picture, speech

    @contextmanager
    def twin(self) -> Iterator[Client]:
        """The same client with connections of its own."""
        twin = Client(self.url, self.picture, self.speech)
        with twin.http:
            yield twin

    def submit(self, headers: Mapping[str, str] | None = None, video: Path | None = None, **fields: object) -> httpx.Response:
        """A request with the client's picture, or a video in its place."""
        form = {"consent": "true", "size": "128x128", **fields}
        data = {
            name: json.dumps(value) if isinstance(value, dict) else str(value)
            for name, value in form.items()
            if value is not None
        }
        with (video or self.picture).open("rb") as reference, self.speech.open("rb") as speech:
            files = {"video" if video else "image": reference, "audio": speech}
            return self.http.post("/v1/videos", data=data, files=files, headers=headers)

    def make(self, video: Path | None = None, **fields: object) -> str:
        """Submit, and the id."""
        answer = self.submit(video=video, **fields)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def get(self, video_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/videos/{video_id}")
        assert answer.status_code == 200, answer.text
        video: dict[str, Any] = answer.json()
        return video

    def wait(self, video_id: str, *statuses: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The video once it has one of the statuses; completed unless told otherwise."""
        wanted = statuses or ("completed",)

        def reached() -> dict[str, Any] | None:
            video = self.get(video_id)
            assert video["status"] in (*wanted, "queued", "in_progress"), video
            return video if video["status"] in wanted else None

        return eventually(reached, f"{video_id} is {' or '.join(wanted)}", seconds)

    def wait_for_chunks(self, video_id: str, count: int) -> dict[str, Any]:
        def enough() -> dict[str, Any] | None:
            video = self.get(video_id)
            assert video["status"] in ("queued", "in_progress", "completed"), video
            return video if video["chunks_done"] >= count else None

        return eventually(enough, f"{video_id} has {count} chunks", pause=0.1)

    def content(self, video_id: str) -> bytes:
        answer = self.http.get(f"/v1/videos/{video_id}/content")
        assert answer.status_code == 200, answer.text
        return answer.content

    def failure(self, answer: httpx.Response) -> tuple[int, str, str | None]:
        """Status, code and param of an error, whose shape is checked."""
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"].endswith("."), error
        return answer.status_code, error["code"], error["param"]
