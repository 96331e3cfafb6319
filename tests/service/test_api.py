"""The API by itself: what it accepts, refuses, shows and delivers."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from openapi_spec_validator import validate
from servers import Client, Deployment, eventually

from service.storage import open_store


def test_a_video_from_submit_to_mp4(client: Client) -> None:
    answer = client.submit(prompt="a calm speaker", seed=3, metadata={"order": "17"}, expressiveness=0.5)
    assert answer.status_code == 202
    video = answer.json()
    assert video["status"] in ("queued", "in_progress")
    assert answer.headers["location"] == f"/v1/videos/{video['id']}"
    done = client.wait(video["id"])
    assert (done["progress"], done["stage"], done["chunks_done"], done["chunks_total"]) == (100, "done", 10, 10)
    assert (done["size"], done["seconds"], done["model"], done["prompt"]) == ("128x128", "6.40", "steady", "a calm speaker")
    assert (done["seed"], done["expressiveness"], done["metadata"]) == (3, 0.5, {"order": "17"})
    assert done["synthetic"] is True
    assert done["error"] is None
    assert done["usage"]["frames"] == 160
    assert done["usage"]["engine_seconds"] > 0
    assert done["created_at"] <= done["completed_at"] < done["expires_at"]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"consent": None}, 400, "consent_required", "consent"),
        ({"consent": "false"}, 400, "consent_required", "consent"),
        ({"consent": "perhaps"}, 400, "consent_invalid", "consent"),
        ({"model": "sora-2"}, 400, "engine_unknown", "model"),
        ({"size": "127x128"}, 400, "size_invalid", "size"),
        ({"size": "9999x128"}, 400, "size_invalid", "size"),
        ({"size": "large"}, 400, "size_invalid", "size"),
        ({"resolution": "720p"}, 400, "size_ambiguous", "size"),
        ({"size": None, "resolution": "8k"}, 400, "resolution_invalid", "resolution"),
        ({"size": None, "aspect_ratio": "9:1"}, 400, "aspect_ratio_invalid", "aspect_ratio"),
        ({"seconds": "0"}, 400, "seconds_invalid", "seconds"),
        ({"seconds": "nan"}, 400, "seconds_invalid", "seconds"),
        ({"seconds": "1e9"}, 400, "seconds_invalid", "seconds"),
        ({"seed": "-1"}, 400, "seed_invalid", "seed"),
        ({"expressiveness": "3"}, 400, "expressiveness_invalid", "expressiveness"),
        ({"metadata": "not json"}, 400, "metadata_invalid", "metadata"),
        ({"metadata": {"k": "v" * 600}}, 400, "metadata_invalid", "metadata"),
        ({"options": "[1]"}, 400, "options_invalid", "options"),
        ({"job_class": "urgent"}, 400, "job_class_invalid", "job_class"),
        ({"prompt": "x" * 5000}, 400, "prompt_invalid", "prompt"),
        ({"max_run_seconds": "1e9"}, 400, "max_run_seconds_invalid", "max_run_seconds"),
        ({"colour": "blue"}, 400, "field_unknown", "colour"),
    ],
)
def test_what_cannot_be_asked(client: Client, fields: dict[str, Any], status: int, code: str, param: str) -> None:
    assert client.failure(client.submit(**fields)) == (status, code, param)


def test_inputs_that_cannot_be_used(client: Client, picture: Path, speech: Path, tmp_path: Path) -> None:
    image, audio = picture.read_bytes(), speech.read_bytes()

    def post(files: dict[str, bytes], **fields: str) -> tuple[int, str, str | None]:
        parts = {name: (f"{name}.bin", data) for name, data in files.items()}
        return client.failure(client.http.post("/v1/videos", data={"consent": "true", **fields}, files=parts))

    assert post({"audio": audio}) == (400, "image_required", "image")
    assert post({"image": image}) == (400, "audio_required", "audio")
    assert post({"image": b"", "audio": audio}) == (400, "picture_empty", "image")
    assert post({"image": audio, "audio": audio}) == (400, "picture_unsupported", "image")
    assert post({"image": image, "audio": image}) == (400, "audio_unsupported", "audio")
    assert post({"image": image + b"\0" * 3_000_000, "audio": audio}) == (413, "picture_too_large", "image")
    assert post({"image": image, "input_reference": image, "audio": audio}) == (400, "image_ambiguous", "image")
    assert post({"image": image}, audio="file_" + "0" * 24) == (404, "file_not_found", "audio")
    assert post({"image": image}, audio="../../secret") == (404, "file_not_found", "audio")


def test_bodies_that_cannot_be_read(client: Client) -> None:
    http = client.http
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert client.failure(http.post("/v1/videos", content=b"{", headers={"Content-Type": "application/json"}))[:2] == (
        400,
        "json_invalid",
    )
    assert client.failure(http.post("/v1/videos", json=[1]))[:2] == (400, "json_invalid")
    assert client.failure(http.post("/v1/videos", content=b"garbage", headers=form))[:2] == (400, "form_invalid")
    assert client.failure(http.post("/v1/videos", content=b"x", headers={"Content-Type": "text/csv"}))[:2] == (
        415,
        "content_type_unsupported",
    )
    assert client.failure(http.post("/v1/videos", json={"prompt": "x" * 1_100_000}))[:2] == (413, "request_too_large")
    many = {f"field{number}": "x" for number in range(100)}
    assert client.failure(http.post("/v1/videos", data=many, files={"image": b"x"}))[:2] == (400, "form_invalid")
    file = http.post("/v1/files", json={}).json()
    endless = (b"\0" * (1 << 20) for _ in range(40))
    assert client.failure(http.put(file["upload"]["url"], content=endless))[:2] == (413, "request_too_large")
    with socket.create_connection(("127.0.0.1", urlsplit(client.url).port or 0), timeout=10) as announced:
        announced.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        assert announced.recv(100).startswith(b"HTTP/1.1 413 "), "refused before any of it is sent"


def test_what_is_not_there(client: Client) -> None:
    for path in (
        "video_" + "0" * 24,
        "nonsense",
        "..%2f..%2fsecret",
        "video_" + "0" * 24 + "/content",
        "x/events",
        "x/stream.m3u8",
    ):
        assert client.failure(client.http.get(f"/v1/videos/{path}"))[:2] in {(404, "video_not_found"), (404, "route_not_found")}
    assert client.failure(client.http.post("/v1/videos/x/cancel"))[:2] == (404, "video_not_found")
    assert client.failure(client.http.delete("/v1/videos/x"))[:2] == (404, "video_not_found")
    assert client.failure(client.http.get("/v1/nothing"))[:2] == (404, "route_not_found")
    assert client.failure(client.http.put("/v1/videos"))[:2] == (405, "method_not_allowed")


def test_fifty_threads_with_one_key_make_one_video(client: Client) -> None:
    def submit(_: int) -> httpx.Response:
        with client.twin() as caller:
            return caller.submit(headers={"Idempotency-Key": "order 4711"}, seed=9)

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(submit, range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    video_id = answers[0].json()["id"]
    listed = [video["id"] for video in client.http.get("/v1/videos", params={"limit": 100}).json()["data"]]
    assert listed.count(video_id) == 1
    client.wait(video_id)
    assert submit(0).json()["id"] == video_id, "also when it has long been made"


def test_a_key_belongs_to_its_request(client: Client, deployment: Deployment) -> None:
    key = {"Idempotency-Key": "order 4712"}
    video_id = client.submit(headers=key).json()["id"]
    assert client.failure(client.submit(headers=key, seed=1))[:2] == (409, "idempotency_conflict")
    assert client.failure(client.submit(headers={"Idempotency-Key": "k" * 300}))[:2] == (400, "idempotency_key_invalid")
    inputs = [entry.key for entry in open_store(deployment.settings()).entries(f"tenants/default/videos/{video_id}/inputs/")]
    assert len(inputs) == 2, "what the refused request sent is not kept"
    client.http.delete(f"/v1/videos/{video_id}")
    again = eventually(lambda: client.submit(headers=key, seed=1).status_code == 202, "the key is free once the video is deleted")
    assert again


def test_pages(client: Client) -> None:
    ids = [client.make(seconds=0.64) for _ in range(5)]
    newest = client.http.get("/v1/videos", params={"limit": 3}).json()
    assert [video["id"] for video in newest["data"]] == ids[:1:-1]
    assert (newest["first_id"], newest["last_id"], newest["has_more"]) == (ids[4], ids[2], True)
    after = client.http.get("/v1/videos", params={"limit": 2, "after": newest["last_id"]}).json()
    assert [video["id"] for video in after["data"]] == [ids[1], ids[0]]
    oldest = client.http.get("/v1/videos", params={"limit": 100, "order": "asc"}).json()
    assert [video["id"] for video in oldest["data"]][-5:] == ids
    assert oldest["has_more"] is False
    for params, param in (({"limit": 0}, "limit"), ({"order": "random"}, "order"), ({"after": "video_none"}, "after")):
        assert client.failure(client.http.get("/v1/videos", params=params)) == (400, f"{param}_invalid", param)


def test_waiting_for_the_end(client: Client) -> None:
    answer = client.submit(headers={"Prefer": "respond-async, wait=30"}, seconds=0.64)
    assert answer.json()["status"] == "completed"
    assert answer.headers["preference-applied"] == "wait=30"
    slow = client.make(options={"frame_seconds": 0.05})
    asked = time.monotonic()
    answer = client.http.get(f"/v1/videos/{slow}", headers={"Prefer": "wait=1"})
    assert answer.json()["status"] != "completed"
    assert 1 <= time.monotonic() - asked < 6
    client.http.post(f"/v1/videos/{slow}/cancel")
    assert client.http.get(f"/v1/videos/{slow}", headers={"Prefer": "wait=9999"}).headers["preference-applied"] == "wait=60"


def read_events(
    client: Client, video_id: str, last_event_id: str | None = None, stop_after: int | None = None
) -> list[dict[str, Any]]:
    """Events of a stream until it ends, or until there are enough."""
    events: list[dict[str, Any]] = []
    event: dict[str, Any] = {}
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with client.http.stream("GET", f"/v1/videos/{video_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name:
                event[name] = value
            elif "data" in event:
                events.append({**event, "data": json.loads(event["data"])})
                event = {}
                if stop_after is not None and len(events) >= stop_after:
                    break
    return events


def test_events(client: Client) -> None:
    video_id = client.make(options={"frame_seconds": 0.01})
    first = read_events(client, video_id, stop_after=4)
    rest = read_events(client, video_id, last_event_id=first[-1]["id"])
    events = first + rest
    assert events[0]["event"] in ("video.queued", "video.in_progress")
    assert events[-1]["event"] == "video.completed"
    ids = [tuple(map(int, event["id"].split("-"))) for event in events]
    assert ids == sorted(set(ids)), "each once, in order, across the reconnection"
    chunks = [event["data"]["chunks_done"] for event in events if event["event"] == "video.chunk"]
    assert chunks == list(range(chunks[0], 11)), "no chunk is missed"
    progress = [event["data"]["progress"] for event in events]
    assert progress == sorted(progress)
    assert read_events(client, video_id)[0]["event"] == "video.completed", "who comes late is told the end"


def test_cancel_is_final_and_a_completed_video_cannot_be_cancelled(client: Client) -> None:
    done = client.make(seconds=0.64)
    client.wait(done)
    assert client.failure(client.http.post(f"/v1/videos/{done}/cancel"))[:2] == (409, "video_ended")


def test_content_in_ranges(client: Client) -> None:
    video_id = client.make(seconds=0.64)
    client.wait(video_id)
    whole = client.content(video_id)
    assert whole[4:8] == b"ftyp"
    part = client.http.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, whole[100:200])
    assert client.http.get(f"/v1/videos/{video_id}/content", headers={"Range": f"bytes={10**9}-"}).status_code == 416
    thumbnail = client.http.get(f"/v1/videos/{video_id}/content", params={"variant": "thumbnail"})
    assert thumbnail.headers["content-type"] == "image/jpeg"
    assert thumbnail.content.startswith(b"\xff\xd8\xff")


def test_remix(client: Client) -> None:
    video_id = client.make(seed=1, seconds=0.64, prompt="first", metadata={"a": "b"})
    client.wait(video_id)
    answer = client.http.post(f"/v1/videos/{video_id}/remix", json={"prompt": "second", "seed": 2})
    assert answer.status_code == 202
    remix = client.wait(answer.json()["id"])
    assert (remix["remixed_from_video_id"], remix["prompt"], remix["seed"]) == (video_id, "second", 2)
    assert (remix["size"], remix["seconds"], remix["metadata"]) == ("128x128", "0.64", {"a": "b"})
    assert client.content(remix["id"]) != client.content(video_id)
    client.http.delete(f"/v1/videos/{video_id}")
    assert client.content(remix["id"]), "it has its own inputs"
    again = client.http.post(f"/v1/videos/{remix['id']}/remix", json={"seed": 1, "prompt": "third"})
    client.wait(again.json()["id"])
    other_picture = client.http.post(f"/v1/videos/{remix['id']}/remix", json={"image": "file_" + "0" * 24})
    assert client.failure(other_picture) == (400, "consent_required", "consent")


def test_files(client: Client, speech: Path, picture: Path) -> None:
    answer = client.http.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("speech.wav", speech.read_bytes())})
    file = answer.json()
    assert (file["object"], file["filename"], file["status"], file["bytes"]) == (
        "file", "speech.wav", "uploaded", speech.stat().st_size,
    )  # fmt: skip
    image = client.http.post("/v1/files", files={"file": ("face.png", picture.read_bytes())}).json()
    request = {"image": image["id"], "audio": file["id"], "consent": True, "size": "128x128", "seconds": 0.64}
    video = client.http.post("/v1/videos", json=request)
    assert video.status_code == 202, video.text
    client.http.delete(f"/v1/files/{file['id']}")
    assert client.failure(client.http.get(f"/v1/files/{file['id']}"))[:2] == (404, "file_not_found")
    assert client.failure(client.http.post("/v1/videos", json={**request, "seed": 5})) == (404, "file_not_found", "audio")
    client.wait(video.json()["id"])
    assert client.http.get(f"/v1/files/{image['id']}/content").content == picture.read_bytes()
    page = client.http.get("/v1/files", params={"limit": 1}).json()
    assert [entry["id"] for entry in page["data"]] == [image["id"]]
    assert client.failure(client.http.post("/v1/files", files={"other": b"x"})) == (400, "file_required", "file")


@pytest.mark.parametrize("which", ["client", "s3_client"])
def test_large_files_are_put(request: pytest.FixtureRequest, which: str, speech: Path) -> None:
    client: Client = request.getfixturevalue(which)
    file = client.http.post("/v1/files", json={"filename": "speech.wav", "bytes": speech.stat().st_size}).json()
    assert file["status"] == "pending"
    pending = client.http.post("/v1/videos", json={"image": file["id"], "audio": file["id"], "consent": True})
    assert client.failure(pending)[:2] == (409, "file_not_uploaded")
    assert client.http.put(file["upload"]["url"], content=speech.read_bytes()).status_code == 200
    stored = client.http.get(f"/v1/files/{file['id']}").json()
    assert (stored["status"], stored["bytes"], stored["upload"]) == ("uploaded", speech.stat().st_size, None)
    assert client.http.get(f"/v1/files/{file['id']}/content").content == speech.read_bytes()
    assert client.failure(client.http.post("/v1/files", json={"bytes": 10**12}))[:2] == (413, "file_too_large")


def test_a_job_that_fails_says_why(client: Client, tmp_path: Path, speech: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    video_id = Client(client.url, broken, speech).make()
    error = client.wait(video_id, "failed")["error"]
    assert (error["code"], error["param"]) == ("picture_damaged", "image")
    assert client.wait(client.make(options={"colour": 1}), "failed")["error"]["code"] == "option_unknown"


def test_the_api_answers_while_jobs_run_and_loads_no_media_library(client: Client, deployment: Deployment) -> None:
    slow = client.make(options={"frame_seconds": 0.02})
    client.wait_for_chunks(slow, 1)
    times = []
    for _ in range(50):
        asked = time.perf_counter()
        client.get(slow)
        times.append(time.perf_counter() - asked)
    assert sorted(times)[25] < 0.25, "milliseconds on an idle machine; the bound allows for a busy one"
    client.http.post(f"/v1/videos/{slow}/cancel")
    loaded = set()
    for process in psutil.Process(deployment.api.pid).children(recursive=True):
        loaded |= {Path(mapped.path).name for mapped in process.memory_maps()}
    assert any(name.startswith("_multiarray_umath") for name in loaded), "the right process was looked at"
    for library in ("libtorch", "libavcodec", "cv2", "litert", "_imaging", "soxr", "libsndfile"):
        assert not [name for name in loaded if library in name], library


def test_a_worker_answers_for_itself(client: Client, deployment: Deployment) -> None:
    probes = f"http://127.0.0.1:{deployment.settings().worker_port}"
    client.wait(client.make(seconds=0.64))
    assert httpx.get(f"{probes}/livez").status_code == 200
    assert httpx.get(f"{probes}/readyz").status_code == 200
    metrics = httpx.get(f"{probes}/metrics").text
    assert 'infinitetalk_jobs_total{engine="steady",job_class="interactive",status="completed"}' in metrics
    second = deployment.worker()
    assert second.wait() not in (0, 1)
    assert f"Port {deployment.settings().worker_port} on 127.0.0.1 cannot be used" in second.text()
    assert "INFINITETALK_WORKER_PORT" in second.text()


def test_the_openapi_document(client: Client) -> None:
    document = client.http.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    validate(document)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(set(names)) == len(names)
    assert {"create_video", "retrieve_video", "list_videos", "cancel_video", "delete_video", "remix_video"} <= set(names)
    for operation in operations:
        assert "422" not in operation["responses"], "the service never answers with it"
        assert operation["responses"]["4XX"]["content"]["application/json"]["schema"]["$ref"].endswith("ErrorBody")
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}
    assert "consent" in body["multipart/form-data"]["schema"]["required"]
