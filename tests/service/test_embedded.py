"""`infinitetalk serve` on one machine: started, used, hurt, stopped, started again."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import psutil
import pytest
from servers import BIN, ROOT, Client, Process, eventually, free_ports

from model_store.errors import InfiniteTalkError
from service.settings import Settings, load_settings


class Serve:
    """An `infinitetalk serve` with a data folder of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INFINITETALK_")},
            "PYTHONPATH": str(ROOT / "tests/service/engines"),
            "INFINITETALK_DATA_DIR": str(folder / "data"),
            "INFINITETALK_PORT": str(self.port),
            "INFINITETALK_ENGINES": "steady,portrait",
            "INFINITETALK_LEASE_SECONDS": "2",
            "INFINITETALK_RECONCILE_SECONDS": "1",
            **settings,
        }
        self.process: Process | None = None

    def start(self, *command: str) -> Process:
        self.process = Process(
            "serve", list(command) or [str(BIN / "infinitetalk"), "serve"], self.folder / "serve.log", self.env
        )
        return self.process

    def parts(self, word: str) -> list[psutil.Process]:
        """Descendants whose command line holds a word."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # or a zombie, which has no command line either
                if any(word in argument for argument in process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    serve = Serve(tmp_path)
    yield serve
    if serve.process:
        serve.process.end()


def fails(serve: Serve) -> tuple[int, str]:
    """Exit status and output of a serve that cannot start."""
    log = serve.folder / "refused.log"
    process = Process("refused", [str(BIN / "infinitetalk"), "serve"], log, serve.env)
    try:
        return process.wait(), process.text()
    finally:
        process.end()


def test_one_machine(serve: Serve, picture: Path, speech: Path) -> None:
    process = serve.start()
    client = Client(serve.url, picture, speech)
    eventually(lambda: "Infinite Talk is ready" in process.text(), "it says that it is ready")

    # The embedded engine, from the real photo and the real voice.
    real = client.make(model="portrait", seconds=1.2, size="256x256")
    slow = client.make(options={"frame_seconds": 0.03})
    video = client.wait(real, seconds=120)
    assert video["usage"]["frames"] == 30
    with av.open(io.BytesIO(client.content(real))) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert sum(1 for _ in container.decode(video=0)) == 30

    # The worker dies: another is started and goes on. So does Valkey.
    client.wait_for_chunks(slow, 1)
    (worker,) = serve.parts("service.cli.main")
    worker.kill()
    (valkey,) = serve.parts("valkey-server")
    valkey.kill()
    eventually(lambda: [part for part in serve.parts("valkey-server") if part.pid != valkey.pid], "another Valkey")
    client.wait(slow)

    # Others are refused, with a reason.
    status, text = fails(serve)
    assert status != 0
    assert f"Port {serve.port} on 127.0.0.1" in text
    assert "INFINITETALK_PORT" in text
    (other,) = free_ports(1)
    second = Serve(serve.folder, INFINITETALK_PORT=str(other))
    status, text = fails(second)
    assert status != 0
    assert f"Process {process.pid} already serves from" in text

    # A job is under way when it is stopped; it stops in order and leaves no process behind.
    pending = client.make(options={"frame_seconds": 0.03}, seed=4)
    client.wait_for_chunks(pending, 1)
    below = psutil.Process(process.pid).children(recursive=True)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not [part for part in below if part.is_running() and part.status() != psutil.STATUS_ZOMBIE]

    # It is all there again after a restart, and what was under way goes on.
    process = serve.start()
    eventually(lambda: process.text().count("Infinite Talk is ready") == 2, "it is ready again")
    assert client.content(real)
    assert client.wait(pending)["chunks_total"] == 10
    listed = [video["id"] for video in client.http.get("/v1/videos").json()["data"]]
    assert listed == [pending, slow, real]

    # Killed outright, it takes its parts along.
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    eventually(lambda: not [part for part in below if _lives(part)], "nothing is left behind")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_bentoml_serve_alone(serve: Serve, picture: Path, speech: Path) -> None:
    serve.env["BENTOML_DO_NOT_TRACK"] = "True"
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "service.bento:InfiniteTalk",
        "--host",
        "0.0.0.0",
        "--port",
        str(serve.port),
    ]
    process = serve.start(*command)
    client = Client(serve.url, picture, speech)
    eventually(lambda: _ready(client), "it is ready")
    client.wait(client.make())
    own = next(
        (address.address for addresses in psutil.net_if_addrs().values() for address in addresses
         if address.family == socket.AF_INET and not address.address.startswith("127.")), None,
    )  # fmt: skip
    if own:
        stranger = Client(f"http://{own}:{serve.port}", picture, speech)
        assert stranger.failure(stranger.http.get("/v1/videos"))[:2] == (403, "address_public")
        assert stranger.http.post("/generate").status_code == 403
        assert stranger.http.get("/livez").status_code == 200
    below = psutil.Process(process.pid).children(recursive=True)
    process.signal(signal.SIGTERM)
    process.wait()
    eventually(lambda: not [part for part in below if _lives(part)], "its companions end with it")


def _ready(client: Client) -> bool:
    try:
        return client.http.get("/readyz").status_code == 200
    except OSError:
        return False
    except Exception as error:
        return not type(error).__module__.startswith("http")


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    status, text = fails(Serve(tmp_path, INFINITETALK_HOST="0.0.0.0"))
    assert status not in (0, 1), text
    assert "Traceback" not in text
    assert "INFINITETALK_HOST is 0.0.0.0" in text
    assert "INFINITETALK_ALLOW_PUBLIC" in text


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("INFINITETALK_PORT", "http", "INFINITETALK_PORT: Input should be a valid integer"),
        ("INFINITETALK_PORT", "0", "INFINITETALK_PORT: Input should be greater"),
        ("INFINITETALK_ENGINES", ",", "engines: name at least one engine"),
        ("INFINITETALK_WORKER_CLASSES", "urgent", "INFINITETALK_WORKER_CLASSES: "),
        ("INFINITETALK_S3_ENDPOINT", "http://s3", "set s3_access_key and s3_secret_key too"),
    ],
)
def test_settings_name_variable_and_cure(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str) -> None:
    monkeypatch.setenv(variable, value)
    load_settings.cache_clear()
    try:
        with pytest.raises(InfiniteTalkError, match=words) as refused:
            load_settings()
        assert refused.value.code == "settings_invalid"
    finally:
        load_settings.cache_clear()


def test_a_long_data_folder_still_has_a_socket(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / ("x" * 120))
    assert len(str(settings.valkey_socket)) < 100
    assert settings.valkey_socket != Settings(data_dir=tmp_path / ("y" * 120)).valkey_socket
    assert settings.queue_url == f"unix://{settings.valkey_socket}"


def test_secrets_are_not_shown() -> None:
    settings = Settings(redis_url="redis://:hunter2@host/0", s3_secret_key="hunter3")
    assert "hunter" not in f"{settings!r} {settings}"
