"""Weights are fetched once, resumed, and checked, from a hub's HTTP as it really behaves and from folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from model_store import weights
from model_store.catalogue import COMPONENTS, VARIANTS, Component, WeightFile, component, needed
from model_store.errors import InfiniteTalkError
from model_store.weight_sources import Folder, Hub, open_source
from model_store.weights import Step, WeightCache


def safetensors(values: int) -> bytes:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(4 * values)


CONTENT = {"config.json": b'{"dim": 96}', "model.safetensors": safetensors(1_000_000)}
SHA256 = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
PART = Component(
    "part", "for tests", "some/repository", tuple(WeightFile(name) for name in CONTENT), "Apache-2.0", revision="refs/pr/1"
)


@dataclass
class FakeHub:
    """The hub as seen from outside: large files answer with a redirect to another host, which holds their bytes."""

    url: str = ""
    content: dict[str, bytes] = field(default_factory=lambda: dict(CONTENT))
    tells_checksum: bool = True
    cut_after: list[int] = field(default_factory=list)
    status: int = 200
    resumes: bool = True
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    state = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            state.requests.append((self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            if state.status != 200:
                self.send_response(state.status)
                self.end_headers()
                return
            match = re.fullmatch(r"/some/repository/resolve/refs%2Fpr%2F1/(.+)|/bytes/(.+)", self.path)
            name = unquote(match[1] or match[2]) if match else ""
            if match and match[1] == "config.json":  # small files move within the hub
                self.send_response(307)
                self.send_header("Location", "/bytes/config.json")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if name not in state.content:
                self.send_error(404)
                return
            data = state.content[name]
            if match and match[1] and name.endswith(".safetensors"):
                self.send_response(302)
                self.send_header("Location", f"http://localhost:{server.server_port}/bytes/{name}")
                self.send_header("X-Linked-Size", str(len(data)))
                if state.tells_checksum:
                    self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", "c0ffee")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = (
                int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if "Range" in self.headers and state.resumes else 0
            )
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if body:
                stop = len(data)
                if state.cut_after and name.endswith(".safetensors"):
                    stop = min(stop, start + state.cut_after.pop(0))
                self.wfile.write(data[start:stop])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(weights, "_PAUSE", 0.0)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> WeightCache:
    return WeightCache(tmp_path / "cache")


def fetched(cache: WeightCache) -> dict[str, bytes]:
    return {file.path: path.read_bytes() for file, path in zip(PART.files, cache.files(PART), strict=True)}


def test_what_is_pulled_is_what_was_published(hub: FakeHub, cache: WeightCache) -> None:
    steps: list[Step] = []
    cache.pull([PART], Hub(hub.url), steps.append)
    assert fetched(cache) == CONTENT
    assert cache.missing(PART) == []
    assert cache.verify([PART]) == []
    assert [(s.file, s.index, s.count, s.done, s.total) for s in steps if s.done == s.total][-1] == (
        "model.safetensors", 1, 2, len(CONTENT["model.safetensors"]), len(CONTENT["model.safetensors"]),
    )  # fmt: skip
    record = json.loads((cache.folder / "checked.json").read_text())
    assert record["some/repository/model.safetensors"] == {
        "size": len(CONTENT["model.safetensors"]),
        "sha256": SHA256["model.safetensors"],
        "checked_against": "source",
        "source": hub.url,
        "version": "c0ffee",
    }
    assert record["some/repository/config.json"]["checked_against"].startswith("nothing")


def test_what_is_there_is_not_asked_for_again(hub: FakeHub, cache: WeightCache) -> None:
    cache.pull([PART], Hub(hub.url))
    asked = len(hub.requests)
    cache.pull([PART], Hub(hub.url))
    assert len(hub.requests) == asked


def test_a_broken_connection_is_resumed_where_it_broke(hub: FakeHub, cache: WeightCache) -> None:
    hub.cut_after = [1_500_000, 0, 1_200_000]
    cache.pull([PART], Hub(hub.url))
    assert fetched(cache) == CONTENT
    ranges = [given for method, path, given, _ in hub.requests if method == "GET" and path == "/bytes/model.safetensors"]
    assert ranges == [None, "bytes=1500000-", "bytes=1500000-", "bytes=2700000-"]


def test_another_process_goes_on_where_the_last_one_stopped(hub: FakeHub, cache: WeightCache) -> None:
    hub.cut_after = [1_500_000] + [0] * 20
    with pytest.raises(InfiniteTalkError) as caught:
        cache.pull([PART], Hub(hub.url))
    assert caught.value.code == "source_unreachable"
    assert [file.path for file in cache.missing(PART)] == ["model.safetensors"]
    hub.cut_after = []
    WeightCache(cache.folder).pull([PART], Hub(hub.url))
    assert fetched(cache) == CONTENT
    assert hub.requests[-1][2] == "bytes=1500000-"


def test_a_server_that_cannot_resume_is_read_from_the_start(hub: FakeHub, cache: WeightCache) -> None:
    hub.resumes, hub.cut_after = False, [1_500_000]
    cache.pull([PART], Hub(hub.url))
    assert fetched(cache) == CONTENT


def test_the_token_stays_with_the_hub(hub: FakeHub, cache: WeightCache) -> None:
    cache.pull([PART], Hub(hub.url, token="secret"))
    assert {given for _, path, _, given in hub.requests if path.startswith("/some/")} == {"Bearer secret"}
    assert {given for _, path, _, given in hub.requests if path == "/bytes/model.safetensors"} == {None}


def test_half_a_file_of_other_bytes_is_found_out(hub: FakeHub, cache: WeightCache) -> None:
    path = cache.path(PART, PART.files[1])
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".part").write_bytes(b"x" * 1000)
    with pytest.raises(InfiniteTalkError, match="SHA-256") as caught:
        cache.pull([PART], Hub(hub.url))
    assert caught.value.code == "weights_mismatch"
    cache.pull([PART], Hub(hub.url))
    assert fetched(cache) == CONTENT


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 17}])
def test_a_published_checksum_and_size_must_be_met(hub: FakeHub, cache: WeightCache, wrong: dict[str, object]) -> None:
    published = replace(PART, files=(replace(PART.files[1], **wrong),))
    with pytest.raises(InfiniteTalkError, match="not what was expected") as caught:
        cache.pull([published], Hub(hub.url))
    assert caught.value.code == "weights_mismatch"
    assert not cache.path(PART, PART.files[1]).exists()


def test_the_first_checksum_holds_for_a_source_that_tells_none(hub: FakeHub, cache: WeightCache) -> None:
    hub.tells_checksum = False
    cache.pull([PART], Hub(hub.url))
    cache.path(PART, PART.files[1]).unlink()
    hub.content["model.safetensors"] = safetensors(1_000_000)
    with pytest.raises(InfiniteTalkError, match="SHA-256"):
        cache.pull([PART], Hub(hub.url))


def test_a_page_instead_of_weights_is_found_out(hub: FakeHub, cache: WeightCache) -> None:
    hub.tells_checksum = False
    hub.content["model.safetensors"] = b"<html>please log in</html>" * 10
    with pytest.raises(InfiniteTalkError, match=r"some/repository/model\.safetensors") as caught:
        cache.pull([PART], Hub(hub.url))
    assert caught.value.code == "weights_damaged"
    assert [file.path for file in cache.missing(PART)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("status", "code", "cure"),
    [(401, "weights_forbidden", "HF_TOKEN"), (404, "weights_not_found", "--source"), (500, "source_unreachable", "again")],
)
def test_refusals_say_what_to_do(hub: FakeHub, cache: WeightCache, status: int, code: str, cure: str) -> None:
    hub.status = status
    with pytest.raises(InfiniteTalkError, match=cure) as caught:
        cache.pull([PART], Hub(hub.url))
    assert caught.value.code == code


def test_no_server_at_all(cache: WeightCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_PAUSE", 0.0)
    with pytest.raises(InfiniteTalkError, match="again later") as caught:
        cache.pull([PART], Hub("http://127.0.0.1:9"))
    assert caught.value.code == "source_unreachable"


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    hub: FakeHub, cache: WeightCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InfiniteTalkError, match="INFINITETALK_MODELS") as caught:
        cache.pull([PART], Hub(hub.url))
    assert caught.value.code == "disk_full"
    assert not any(method == "GET" for method, *_ in hub.requests)


def test_two_pulls_into_one_cache_do_not_mix(hub: FakeHub, cache: WeightCache) -> None:
    def meanwhile(step: Step) -> None:
        with pytest.raises(InfiniteTalkError) as caught:
            WeightCache(cache.folder).pull([PART], Hub(hub.url))
        assert caught.value.code == "pull_running"

    cache.pull([PART], Hub(hub.url), meanwhile)
    assert fetched(cache) == CONTENT


def test_a_filled_cache_is_a_source_that_knows_its_checksums(hub: FakeHub, cache: WeightCache, tmp_path: Path) -> None:
    cache.pull([PART], Hub(hub.url))
    other = WeightCache(tmp_path / "other")
    other.pull([PART], Folder(cache.folder))
    assert fetched(other) == CONTENT
    assert json.loads((other.folder / "checked.json").read_text())["some/repository/config.json"]["checked_against"] == "source"
    path = cache.path(PART, PART.files[0])
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(InfiniteTalkError, match="SHA-256"):
        WeightCache(tmp_path / "third").pull([PART], Folder(cache.folder))


def test_verify_names_every_problem(hub: FakeHub, cache: WeightCache) -> None:
    cache.pull([PART], Hub(hub.url))
    config, model = cache.files(PART)
    config.unlink()
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    problems = cache.verify([PART])
    assert [problem.code for problem in problems] == ["weights_missing", "weights_mismatch"]
    model.write_bytes(data[:-1])
    assert [problem.code for problem in cache.verify([PART])] == ["weights_missing", "weights_damaged"]
    with pytest.raises(InfiniteTalkError, match=r"config\.json.*models pull part"):
        cache.files(PART)


def test_a_truncated_file_counts_as_missing_and_is_pulled_again(hub: FakeHub, cache: WeightCache) -> None:
    cache.pull([PART], Hub(hub.url))
    cache.files(PART)[1].write_bytes(b"short")
    assert [file.path for file in cache.missing(PART)] == ["model.safetensors"]
    cache.pull([PART], Hub(hub.url))
    assert fetched(cache) == CONTENT


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InfiniteTalkError, match="not a folder"):
        open_source(str(tmp_path / "none"))


def test_the_catalogue_is_consistent() -> None:
    for part in COMPONENTS.values():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", part.repository)
        for file in part.files:
            assert (file.size is None) == (file.sha256 is None)
            assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
    for name in VARIANTS:
        for people in ("single", "multi"):
            assert [part.name for part in needed(name, people=people)][:2] == ["base", f"adapter-{people}"]
    assert "lora-4-step" in [part.name for part in needed("4-step")]
    assert needed("base", quantised="fp8")[0].name == "transformer-single-fp8"
    for wrong in (lambda: component("nothing"), lambda: needed("3-step"), lambda: needed(quantised="int3")):
        with pytest.raises(InfiniteTalkError, match="choose from"):
            wrong()
