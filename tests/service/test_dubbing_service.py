"""Videos as references: submitted, refused, remixed, killed and resumed; the infinitetalk engine with its tiny random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from servers import ROOT, Client, Deployment, eventually

from service.job import Job, job_folder
from service.media.video import read_video_frames
from service.storage import open_store


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at 30 frames a second over the astronaut's portrait, with a cut in the middle: 160 x 96."""
    photo = cv2.imread(str(ROOT / "examples" / "astronaut.png"))
    photo = cv2.resize(photo, (200, 200), interpolation=cv2.INTER_AREA)
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for number in range(120):
            part = photo[number // 3 : number // 3 + 96, 10:170] if number < 60 else photo[40:136, 20:180] // 4
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(part), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_a_video_is_dubbed_at_its_own_pace(client: Client, film: Path, tmp_path: Path) -> None:
    video = client.wait(client.make(video=film, size=None, resolution="480p", seconds=4))
    width, height = map(int, video["size"].split("x"))
    assert width / height == pytest.approx(160 / 96, rel=0.02), "the frame has the video's own aspect"
    output = tmp_path / "out.mp4"
    output.write_bytes(client.content(video["id"]))
    frames = list(read_video_frames(output))
    assert len(frames) == 100
    before, after = frames[49].mean(), frames[51].mean()
    assert abs(after - before) > 40, "the cut at two seconds is where it was"
    assert client.http.get(f"/v1/videos/{video['id']}/content", params={"variant": "thumbnail"}).status_code == 200


def test_a_killed_worker_changes_nothing(s3_deployment: Deployment, s3_client: Client, film: Path) -> None:
    s3_deployment.crew(1)
    options = {"frame_seconds": 0.02}
    undisturbed = s3_client.content(s3_client.wait(s3_client.make(video=film, seconds=3))["id"])
    (worker,) = s3_deployment.crew(1)
    video_id = s3_client.make(video=film, seconds=3, options=options)
    s3_client.wait_for_chunks(video_id, 2)
    worker.kill()
    s3_deployment.crew(1)
    assert s3_client.content(s3_client.wait(video_id)["id"]) == undisturbed


def test_a_file_id_and_remixes(client: Client, deployment: Deployment, film: Path) -> None:
    with film.open("rb") as file:
        uploaded = client.http.post("/v1/files", files={"file": ("film.mp4", file)}).json()["id"]
    with client.speech.open("rb") as speech:
        spoken = client.http.post("/v1/files", files={"file": speech}).json()["id"]
    request = {"video": uploaded, "audio": spoken, "consent": True, "size": "128x128", "seconds": 1}
    dubbed = client.http.post("/v1/videos", json=request).json()["id"]
    client.wait(dubbed)
    again = client.http.post(f"/v1/videos/{dubbed}/remix", json={"seed": 7}).json()["id"]
    with client.picture.open("rb") as picture:
        photo = client.http.post("/v1/files", files={"file": picture}).json()["id"]
    still = client.http.post(f"/v1/videos/{dubbed}/remix", json={"image": photo, "consent": True}).json()["id"]
    store = open_store(deployment.settings())
    records = {}
    for video_id in (dubbed, again, still):
        client.wait(video_id)
        raw = store.get(f"{job_folder('default', video_id)}job.json")
        records[video_id] = Job.model_validate_json(raw)
        assert "image" in json.loads(raw), "under the name by which earlier releases know it"
    assert [records[video_id].reference_kind for video_id in (dubbed, again, still)] == ["video", "video", "image"]
    assert [records[video_id].record_version for video_id in (dubbed, again, still)] == [2, 2, 1]


def test_what_cannot_be_dubbed_is_refused_at_once(client: Client, film: Path) -> None:
    def refused(files: dict[str, bytes], **fields: str) -> tuple[int, str, str | None]:
        return client.failure(client.http.post("/v1/videos", data={"consent": "true", **fields}, files=files))

    dub, photo, speech = film.read_bytes(), client.picture.read_bytes(), client.speech.read_bytes()
    assert refused({"video": dub, "image": photo, "audio": speech}) == (400, "reference_ambiguous", "video")
    assert refused({"video": photo, "audio": speech}) == (400, "video_unsupported", "video")
    assert refused({"video": b"", "audio": speech}) == (400, "video_empty", "video")
    assert refused({"video": dub, "audio": speech}, consent="false") == (400, "consent_required", "consent")
    assert refused({"audio": speech}, video="file_" + "0" * 24) == (404, "file_not_found", "video")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\0\0\0\x18ftypisom" + bytes(500), "video_damaged"),
        (b"\x1aE\xdf\xa3" + b"\x01" * 4000, "video_damaged"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2\xff\xff\xff\xffmoov" + bytes(500), "video_unsupported"),
    ],
)
def test_damaged_videos_fail_with_their_name(client: Client, tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    error = client.wait(client.make(video=path), "failed")["error"]
    assert (error["code"], error["param"]) == (code, "video")


def test_a_recording_without_pictures_is_no_video(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    error = client.wait(client.make(video=path), "failed")["error"]
    assert (error["code"], error["param"]) == ("video_unsupported", "video")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory, seaweed: dict[str, str], film: Path) -> Iterator[tuple[Deployment, Client]]:
    """The production engine with random weights on S3, beside the portrait engine."""
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'infinite-talk[gpu]'")
    engines = {"INFINITETALK_ENGINES": "infinitetalk,portrait", "INFINITETALK_VARIANT": "tiny-random"}
    deployment = Deployment(
        tmp_path_factory.mktemp("noisy"),
        {**seaweed, "INFINITETALK_S3_BUCKET": "noisy", **engines},
    )
    try:
        deployment.wait_ready()
        yield deployment, Client(deployment.url, ROOT / "examples" / "astronaut.png", ROOT / "examples" / "en_allison.wav")
    finally:
        deployment.end()


@pytest.mark.parametrize("dubs", [False, True], ids=["photo", "video"])
def test_the_production_engine_goes_the_whole_way(noisy: tuple[Deployment, Client], film: Path, dubs: bool) -> None:
    """Killed inside its second chunk, resumed by another worker: the bytes of an undisturbed run."""
    deployment, client = noisy
    asked = {"video": film if dubs else None, "seconds": 4, "seed": 3, "options": {"steps": 4, "audio_guidance": 2}}
    (worker,) = deployment.crew(1)
    video_id = client.make(**asked)

    def inside() -> bool:
        video = client.get(video_id)
        assert video["status"] != "completed", "too quick to be killed: give it more steps"
        return video["chunks_done"] == 1 and video["progress"] > 50

    eventually(inside, "it is inside the second chunk", pause=0.02)
    worker.kill()
    (worker,) = deployment.crew(1)
    video = client.wait(video_id)
    assert video["chunks_total"] == 2
    assert video["usage"]["frames"] == 100
    assert "#EXT-X-ENDLIST" in client.http.get(f"/v1/videos/{video_id}/stream/video.m3u8").text
    again = client.wait(client.make(**asked))
    assert client.content(video_id) == client.content(again["id"])


def test_an_engine_for_photos_refuses_videos(noisy: tuple[Deployment, Client], film: Path) -> None:
    _, client = noisy
    assert client.failure(client.submit(video=film, model="portrait")) == (400, "video_not_supported", "video")
