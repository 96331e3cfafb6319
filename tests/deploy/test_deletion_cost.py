"""A real worker tells Kubernetes when it is busy. The API server is a stand-in that only takes notes: none can be had here."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import servers
import trustme
from servers import Client, Deployment, eventually

from service import deletion_cost


class Notes(BaseHTTPRequestHandler):
    """Writes down every request, and answers as the API server does, or with what ``refusals`` holds first."""

    taken: list[tuple[str, str, str, dict[str, Any]]]
    refusals: list[int]

    def do_PATCH(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.refusals.pop() if self.refusals else 200
        if status == 200:
            self.taken.append((self.path, self.headers["Authorization"], self.headers["Content-Type"], json.loads(body)))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[tuple[type[Notes], dict[str, str], Path]]:
    """The API server's notes, what a worker's environment says of it, and the folder that the chart mounts."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    notes = type("Taken", (Notes,), {"taken": [], "refusals": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), notes)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tmp_path / "pod"
    folder.mkdir()
    (folder / "name").write_text("talk-portrait-5d9c-x2")
    (folder / "namespace").write_text("media")
    (folder / "token").write_text("first\n")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    where = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.server_port)}
    yield notes, {**where, "INFINITETALK_POD_DIR": str(folder)}, folder
    server.shutdown()
    server.server_close()


def test_a_busy_worker_costs_more(tmp_path: Path, pod: tuple[type[Notes], dict[str, str], Path]) -> None:
    notes, env, folder = pod
    deployment = Deployment(tmp_path / "service")
    try:
        client = Client(deployment.url, servers.ROOT / "examples" / "astronaut.png", servers.ROOT / "examples" / "en_allison.wav")
        deployment.worker(env)
        eventually(lambda: len(notes.taken) == 1, "a new process is idle, whatever an earlier one has said")
        (folder / "token").write_text("second\n")
        deployment.wait_ready()
        video_id = client.make(options={"frame_seconds": 0.02}, seconds=4)
        eventually(lambda: len(notes.taken) == 2, "it works")
        assert client.get(video_id)["status"] != "completed"
        client.wait(video_id)
        client.wait(client.make(seconds=1))
        eventually(lambda: len(notes.taken) >= 3 and _costs(notes)[-1] == "0", "it is idle again")
    finally:
        deployment.end()
    assert {taken[0] for taken in notes.taken} == {"/api/v1/namespaces/media/pods/talk-portrait-5d9c-x2"}
    assert {taken[2] for taken in notes.taken} == {"application/merge-patch+json"}
    assert [taken[1] for taken in notes.taken[:3]] == ["Bearer first", "Bearer second", "Bearer second"]
    assert _costs(notes)[:3] == ["0", "100", "0"]


def _costs(notes: type[Notes]) -> list[str]:
    """The costs told, one after another; nothing else is asked to be changed."""
    found = []
    for *_, body in notes.taken:
        (cost,) = body["metadata"]["annotations"].values()
        assert body == {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": cost}}}
        found.append(cost)
    return found


def test_work_does_not_wait_for_kubernetes(tmp_path: Path, pod: tuple[type[Notes], dict[str, str], Path]) -> None:
    notes, env, _ = pod
    notes.refusals += [403]
    deployment = Deployment(tmp_path / "service")
    try:
        client = Client(deployment.url, servers.ROOT / "examples" / "astronaut.png", servers.ROOT / "examples" / "en_allison.wav")
        deployment.wait_ready()
        worker = deployment.worker(env)
        client.wait(client.make(seconds=1))
        eventually(lambda: "this pod's deletion cost cannot be set" in worker.text(), "the log says why")
        eventually(lambda: notes.taken, "it is tried again", seconds=6 * deletion_cost.RETRY_SECONDS)
        worker.terminate()
        assert worker.wait() == 0
    finally:
        deployment.end()


def test_a_folder_that_is_not_a_pods_is_refused(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "service")
    try:
        worker = deployment.worker({"INFINITETALK_POD_DIR": str(tmp_path), "KUBERNETES_SERVICE_HOST": "127.0.0.1"})
        assert worker.wait() != 0
        assert "INFINITETALK_POD_DIR" in worker.text()
        assert "KUBERNETES_SERVICE_PORT" in worker.text()
    finally:
        deployment.end()
