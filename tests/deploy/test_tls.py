"""TLS everywhere: the API's command from the chart, Valkey and S3 behind it, all with certificates of one private authority."""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import servers
import trustme
from servers import Client, Deployment, Process, eventually, free_ports

from tests.deploy.test_chart import containers, render


class Wrapped:
    """A server's plain port, behind TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.upstream = 0
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context))
        self.port: int = server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _end_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            self.connections += 1
            await asyncio.gather(_pass_on(reader, upstream_writer), _pass_on(upstream_reader, writer))
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()


@contextmanager
def wrapped(context: ssl.SSLContext) -> Iterator[Wrapped]:
    proxy = Wrapped(context)
    try:
        yield proxy
    finally:
        proxy.stop()


def test_a_job_runs_with_tls_everywhere(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    (tmp_path / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    (tmp_path / "tls.crt").write_bytes(b"".join(part.bytes() for part in certificate.cert_chain_pems))
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    trust = ssl.create_default_context(cafile=tmp_path / "ca.crt")

    (container,) = [item for item in containers(render({"tls": {"apiSecret": "t", "caConfigMap": "c"}})) if item["name"] == "api"]
    variable = next(entry for entry in container["env"] if entry["value"].endswith("ca.crt"))["name"]
    (port,) = free_ports(1)
    command = [
        {"3000": str(port), "0.0.0.0": "127.0.0.1"}.get(word, word.replace("/tls/", f"{tmp_path}/"))
        for word in container["command"]
    ]

    with servers.seaweed(tmp_path) as s3, wrapped(context) as valkey, wrapped(context) as store:
        store.upstream = urlsplit(s3["INFINITETALK_S3_ENDPOINT"]).port or 0
        deployment = Deployment(
            tmp_path / "service",
            {
                **s3,
                "INFINITETALK_S3_ENDPOINT": f"https://127.0.0.1:{store.port}",
                "INFINITETALK_REDIS_URL": f"rediss://127.0.0.1:{valkey.port}/0",
                variable: str(tmp_path / "ca.crt"),
            },
        )
        valkey.upstream = deployment.redis_port
        api = Process("api over tls", [sys.executable, "-m", *command], tmp_path / "api.log", deployment.env)
        try:
            deployment.worker()
            client = Client(
                f"https://127.0.0.1:{port}", servers.ROOT / "examples/astronaut.png", servers.ROOT / "examples/en_allison.wav"
            )
            client.http = httpx.Client(base_url=client.url, verify=trust, timeout=30, follow_redirects=True)
            eventually(lambda: _ready(client), "the API is ready")
            assert client.content(client.wait(client.make(seconds=1))["id"])[4:8] == b"ftyp"
            assert valkey.connections > 0
            assert store.connections > 0
            assert httpx.get(f"{deployment.url}/readyz").status_code == 200
        finally:
            api.end()
            deployment.end()


def _ready(client: Client) -> bool:
    with suppress(httpx.HTTPError):
        return client.http.get("/readyz").status_code == 200
    return False
