"""Weights from a bucket of a real S3 server."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

minio = pytest.importorskip("minio", reason="minio is not installed: pip install 'infinite-talk[service]'")
pytest.importorskip("redis", reason="the test servers need the service's dependencies")

from model_store import weights  # noqa: E402
from model_store.catalogue import Component, WeightFile  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.weight_sources import Bucket  # noqa: E402
from model_store.weights import WeightCache  # noqa: E402
from tests.service import servers  # noqa: E402

PART = Component("part", "for tests", "some/repository", (WeightFile("folder/model.pth"),), "Apache-2.0")
DATA = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with servers.seaweed(tmp_path_factory.mktemp("seaweed")) as settings:
        endpoint = settings["INFINITETALK_S3_ENDPOINT"]
        client = minio.Minio(
            endpoint.partition("//")[2],
            access_key=settings["INFINITETALK_S3_ACCESS_KEY"],
            secret_key=settings["INFINITETALK_S3_SECRET_KEY"],
            secure=False,
        )
        client.make_bucket("weights")
        folder = tmp_path_factory.mktemp("data")
        (folder / "model.pth").write_bytes(DATA)
        client.fput_object("weights", "mirror/some/repository/folder/model.pth", str(folder / "model.pth"))
        yield settings


@pytest.fixture
def cache(server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightCache:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(weights, "_PAUSE", 0.0)
    return WeightCache(tmp_path)


def test_a_mirror_in_a_bucket_is_pulled(cache: WeightCache) -> None:
    cache.pull([PART], Bucket("s3://weights/mirror"))
    assert cache.files(PART)[0].read_bytes() == DATA
    record = json.loads((cache.folder / "checked.json").read_text())["some/repository/folder/model.pth"]
    assert record["source"] == "s3://weights/mirror"


def test_half_a_file_is_continued(cache: WeightCache) -> None:
    part = cache.path(PART, PART.files[0])
    part.parent.mkdir(parents=True)
    part.with_name("model.pth.part").write_bytes(DATA[:1_234_567])
    done: list[int] = []
    cache.pull([PART], Bucket("s3://weights/mirror"), lambda step: done.append(step.done))
    assert cache.files(PART)[0].read_bytes() == DATA
    assert done[0] > 1_234_567


@pytest.mark.parametrize(
    ("address", "secret", "code"),
    [
        ("s3://weights/elsewhere", None, "weights_not_found"),
        ("s3://nobucket/mirror", None, "weights_not_found"),
        ("s3://weights/mirror", "wrong", "weights_forbidden"),
        ("s3://", None, "source_invalid"),
    ],
)
def test_what_cannot_be_had_is_said(
    cache: WeightCache, monkeypatch: pytest.MonkeyPatch, address: str, secret: str | None, code: str
) -> None:
    if secret is not None:
        monkeypatch.setenv("INFINITETALK_S3_SECRET_KEY", secret)
    with pytest.raises(InfiniteTalkError) as caught:
        cache.pull([PART], Bucket(address))
    assert caught.value.code == code
