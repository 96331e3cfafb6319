"""Real servers for tests, each on free loopback ports, each stopped when its `with` block ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import httpx

PATIENCE = 60.0
"""Seconds after which a condition is taken never to come true; nothing normally takes a tenth of it."""

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

T = TypeVar("T")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, with room above each for servers that also take port + 10000."""
    found: list[int] = []
    holders: list[socket.socket] = []
    try:
        while len(found) < count:
            holder = socket.socket()
            holders.append(holder)
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
            if port > 55_000:
                continue
            with socket.socket() as upper:
                try:
                    upper.bind(("127.0.0.1", port + 10_000))
                except OSError:
                    continue
            found.append(port)
    finally:
        for holder in holders:
            holder.close()
    return found


def eventually(condition: Callable[[], T], what: str, seconds: float = PATIENCE, pause: float = 0.05) -> T:
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

    def end(self) -> None:
        """End the whole session, gently first."""
        assert self._popen is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(15)
                break
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

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
