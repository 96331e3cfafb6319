"""Bounds that only a real socket can reach: slow and silent clients, too many of them, endless bodies, a full disk."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest
from servers import Client, Deployment, eventually, free_ports
from test_metrics import scrape, value

MOST_CONNECTIONS, MOST_UPLOADS = 24, 2


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    settings = {
        "INFINITETALK_MAX_CONNECTIONS": str(MOST_CONNECTIONS),
        "INFINITETALK_MAX_UPLOADS": str(MOST_UPLOADS),
        "INFINITETALK_MAX_IMAGE_BYTES": "2000000",
        "INFINITETALK_MAX_VIDEO_BYTES": "4000000",
        "INFINITETALK_MAX_AUDIO_BYTES": "8000000",
        "INFINITETALK_METRICS_PORT": str(free_ports(1)[0]),
    }
    deployment = Deployment(tmp_path_factory.mktemp("tight"), settings)
    try:
        deployment.worker()
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


def call(deployment: Deployment, first: bytes, drip: bytes = b"", seconds: float = 60.0) -> tuple[bytes, float]:
    """Send ``first``, then a byte of ``drip`` each half second until the line closes; the answer, and when that was."""
    began = time.monotonic()
    with closing(socket.create_connection(("127.0.0.1", deployment.port), timeout=0.5)) as line:
        line.sendall(first)
        answer = b""
        while time.monotonic() - began < seconds:
            try:
                piece = line.recv(65536)
            except TimeoutError:
                with suppress(OSError):
                    line.sendall(drip[:1])
                    drip = drip[1:]
                continue
            except ConnectionError:
                break
            if not piece:
                break
            answer += piece
        return answer, time.monotonic() - began


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of an error in the usual shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(body)["error"]["code"])


def upload(length: int, extra: str = "") -> bytes:
    return (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {length}\r\n"
        f'{extra}\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    ).encode()


def test_slow_clients_are_cut_off(tight: Deployment, picture: Path, speech: Path) -> None:
    client = Client(tight.url, picture, speech)
    video_id = client.wait(client.make(size="512x512"))["id"]

    def reads_nothing() -> float:
        with closing(socket.socket()) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", tight.port))
            request = f"GET /v1/videos/{video_id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            began = time.monotonic()
            for _ in range(40):  # pipelined: more than fits into the kernel's buffers
                line.sendall(request)
            before = value(scrape(port), "infinitetalk_connections_refused_total", reason="slow_reader")

            def cut() -> bool:
                return value(scrape(port), "infinitetalk_connections_refused_total", reason="slow_reader") > before

            eventually(cut, "the reader is cut off")
            return time.monotonic() - began

    port = tight.settings().metrics_port
    with ThreadPoolExecutor() as pool:
        head = pool.submit(call, tight, b"GET /v1/videos HTTP/1.1\r\nX-Slow: ", b"a" * 200)
        silent = pool.submit(call, tight, b"")
        body = pool.submit(call, tight, upload(1_000_000), b"a" * 200)
        generate = pool.submit(call, tight, upload(1_000_000).replace(b"/v1/files", b"/generate"), b"a" * 200)
        reader = pool.submit(reads_nothing)
        assert client.http.get("/v1/files").status_code == 200, "others are served meanwhile"
        assert 14 < head.result()[1] < 25
        assert refusal(head.result()[0]) == (408, "request_too_slow")
        assert refusal(silent.result()[0]) == (408, "request_too_slow")
        assert 19 < body.result()[1] < 40
        assert refusal(body.result()[0]) == (408, "request_too_slow")
        assert generate.result()[0].split()[1] == b"408"
        assert reader.result() < 50


def test_connections_are_bounded(tight: Deployment) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", tight.port))))
        time.sleep(0.5)
        answer, _ = call(tight, b"")
        assert refusal(answer) == (503, "too_many_connections")
        assert b"retry-after: 1\r\n" in answer
    assert eventually(lambda: _status(tight) == 200, "there is room again")


def _status(deployment: Deployment) -> int:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{deployment.url}/v1/files").status_code
    return 0


def test_uploads_are_bounded(tight: Deployment) -> None:
    logged = len(tight.api.text())
    with ExitStack() as stack:
        for _ in range(MOST_UPLOADS):
            line = stack.enter_context(closing(socket.create_connection(("127.0.0.1", tight.port))))
            line.sendall(upload(1_000_000))
        time.sleep(0.5)
        answer = httpx.post(f"{tight.url}/v1/files", files={"file": b"a" * 100_000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_uploads")
        assert int(answer.headers["Retry-After"]) >= 1
        assert httpx.post(f"{tight.url}/v1/files", files={"file": b"a" * 100}).status_code == 200, "small ones are no burden"

    def accepted() -> bool:
        return httpx.post(f"{tight.url}/v1/files", files={"file": b"a" * 100_000}).status_code == 200

    assert eventually(accepted, "the places are free again")
    assert "Traceback" not in tight.api.text()[logged:], "a client that leaves is no fault of ours"


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/files", "/generate"])
def test_an_endless_body_is_cut_off(tight: Deployment, path: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        while True:
            yield b"a" * (1 << 20)

    with ExitStack() as stack:
        stack.enter_context(suppress(httpx.WriteError, httpx.ReadError))  # the line may break before the answer is read
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = httpx.post(f"{tight.url}{path}", content=pieces(), headers=headers, timeout=60)
        assert answer.status_code == 413
    announced, _ = call(tight, upload(10**12).replace(b"/v1/files", path.encode()))
    assert announced.split()[1] == b"413"


def test_headers_are_bounded_and_what_is_no_http_is_refused(tight: Deployment) -> None:
    for first in (b"GET /v1/files HTTP/1.1\r\nX-Long: " + b"a" * 200_000, b"\x16\x03\x01\x02\x00 hello\r\n\r\n"):
        answer, took = call(tight, first)
        assert refusal(answer) == (400, "http_invalid")
        assert took < 10


def test_a_full_disk_is_a_clear_refusal(tmp_path: Path, picture: Path, speech: Path) -> None:
    probes = free_ports(1)[0]
    full = {"INFINITETALK_MIN_FREE_BYTES": str(10**15), "INFINITETALK_WORKER_PORT": str(probes)}
    deployment = Deployment(tmp_path / "full", full)
    try:
        worker = deployment.worker()
        deployment.wait_ready()
        answer = Client(deployment.url, picture, speech).submit()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "disk_full")
        assert int(answer.headers["Retry-After"]) >= 1
        eventually(lambda: "no job is begun" in worker.text(), "the worker says why it does nothing")
        assert httpx.get(f"http://127.0.0.1:{probes}/readyz").status_code == 503
        assert value(scrape(probes), "infinitetalk_disk_free_bytes", folder="temporary") > 0
    finally:
        deployment.end()
