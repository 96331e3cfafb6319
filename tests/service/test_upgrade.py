"""What an earlier release has left half done is finished by this one, from nothing but a copy of its objects.

``python tests/service/test_upgrade.py`` makes the archive anew, with the release that is checked out. It is a folder of objects
with one job, two of whose three chunks are made; it was made by release 0.1.0.
"""

from __future__ import annotations

import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import servers
import soundfile
from PIL import Image
from servers import Client, Deployment, eventually

from service.job import RECORD_VERSION, Job, job_folder
from service.ledger import Ledger
from service.storage import open_store

ARCHIVE = Path(__file__).parent / "data" / "half_done_0.1.0.tar.gz"
CHUNKS = 3
FOREVER = {"INFINITETALK_RETENTION_HOURS": "10000000"}


def inputs(folder: Path) -> tuple[Path, Path]:
    """A small picture and a short recording, always the same."""
    picture, speech = folder / "picture.png", folder / "speech.wav"
    Image.fromarray(np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)).convert("RGB").save(picture)
    samples, rate = soundfile.read(servers.ROOT / "examples" / "en_allison.wav", frames=round(1.92 * 16_000))
    soundfile.write(speech, samples, rate)
    return picture, speech


def make_archive() -> None:
    """Have the present code stop after two chunks, and pack what it has stored."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deployment = Deployment(folder / "old", FOREVER)
        try:
            worker = deployment.worker()
            deployment.wait_ready()
            client = Client(deployment.url, *inputs(folder))
            client.wait_for_chunks(client.make(size="128x128", seed=5, options={"frame_seconds": 0.1}), CHUNKS - 1)
            worker.kill()
        finally:
            deployment.end()
        ARCHIVE.parent.mkdir(exist_ok=True)
        with tarfile.open(ARCHIVE, "w:gz") as archive:
            archive.add(deployment.settings().data_dir / "objects", "objects")


def last_chunk(deployment: Deployment, video_id: str) -> bytes:
    """The fragment of a job's last chunk."""
    store = open_store(deployment.settings())
    *_, commit = Ledger(store).commits("default", video_id)
    assert commit.index == CHUNKS - 1
    return store.get(commit.fragment)


def test_a_copy_of_the_store_goes_on_with_this_release_and_an_empty_queue(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "new", FOREVER)
    try:
        data = deployment.settings().data_dir
        with tarfile.open(ARCHIVE) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none, and needs none
            archive.extractall(data)
        (record,) = (data / "objects" / "data" / "tenants" / "default" / "videos").glob("*/job.json")
        video_id = json.loads(record.read_text())["id"]
        worker = deployment.worker()
        deployment.wait_ready()
        client = Client(deployment.url, *inputs(tmp_path))
        video = client.wait(video_id)
        assert f"{video_id}: has begun at chunk {CHUNKS - 1}, attempt 2" in worker.text(), "what was made is not made again"
        assert (video["attempt"], video["chunks_done"], video["seed"]) == (2, CHUNKS, 5)
        assert client.content(video_id)[4:8] == b"ftyp"
        afresh = client.wait(client.make(size="128x128", seed=5))["id"]
        assert last_chunk(deployment, video_id) == last_chunk(deployment, afresh), "the old checkpoint led to the same frames"
    finally:
        deployment.end()


def test_a_record_of_a_later_release_waits_for_a_worker_of_that_release(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "mixed")
    try:
        deployment.wait_ready()
        client = Client(deployment.url, *inputs(tmp_path))
        video_id = client.make(size="128x128")
        store = open_store(deployment.settings())
        key = f"{job_folder('default', video_id)}job.json"
        job = Job.model_validate_json(store.get(key))
        store.put(key, job.model_copy(update={"record_version": RECORD_VERSION + 1}).to_bytes())
        worker = deployment.worker()
        eventually(
            lambda: f"{video_id}: waits for a worker of a later release" in worker.text(), "the worker says why it does not"
        )
        client.wait(client.make(size="128x128"))
        assert client.get(video_id)["status"] == "queued"
        store.put(key, job.to_bytes())
        client.wait(video_id)
    finally:
        deployment.end()


if __name__ == "__main__":
    make_archive()
