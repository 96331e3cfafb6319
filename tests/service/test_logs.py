"""Log lines for machines: each is JSON, says which job it is about, and none, nor any metric, error or record, holds a secret."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from servers import Client, Deployment, free_ports

from service.keys import Keys
from service.logs import hide_secrets
from service.storage import open_store


def test_lines_are_json_with_ids_and_without_secrets(
    tmp_path: Path, seaweed: dict[str, str], picture: Path, speech: Path
) -> None:
    probes, metrics = free_ports(2)
    settings = {
        **seaweed,
        "INFINITETALK_S3_BUCKET": "logs",
        "INFINITETALK_LOG_FORMAT": "json",
        "INFINITETALK_WORKER_PORT": str(probes),
        "INFINITETALK_METRICS_PORT": str(metrics),
    }
    deployment = Deployment(tmp_path / "logs", settings)
    try:
        _, key = Keys(open_store(deployment.settings())).create("alice")
        worker = deployment.worker()
        deployment.wait_ready()
        client = Client(deployment.url, picture, speech)
        client.http.headers["Authorization"] = f"Bearer {key}"
        video_id = client.make(options={"crash_at": 0})
        client.wait(video_id, "failed")
        video_id = client.wait(client.make())["id"]
        links = client.http.post(f"/v1/videos/{video_id}/links").json()
        presigned = httpx.get(f"{deployment.url}{links['content']}", follow_redirects=False).headers["Location"]
        wrong = client.http.get("/v1/videos", headers={"Authorization": "Bearer itk_0123456789abcdef_wrong"})
        lines = [json.loads(line) for process in (deployment.api, worker) for line in process.text().splitlines()]
        mine = [line for line in lines if line.get("video_id") == video_id]
        assert {line["tenant"] for line in mine} == {"alice"}
        assert any("completed" in line["message"] for line in mine)
        assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
        record = open_store(deployment.settings()).get(f"tenants/alice/videos/{video_id}/job.json").decode()
        seen = [deployment.api.text(), worker.text(), wrong.text, record, json.dumps(client.get(video_id))]
        seen += [httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in (probes, metrics)]
        token = links["content"].partition("token=")[2]
        assert token
        for secret in (key, seaweed["INFINITETALK_S3_SECRET_KEY"], token, presigned.partition("X-Amz-Signature=")[2][:64]):
            assert secret
            assert not any(secret in text for text in seen), secret
    finally:
        deployment.end()


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer S3CRET",
        "GET /v1/videos/video_1/content?token=S3CRET&x=1",
        "https://s3/bucket/key?X-Amz-Credential=S3CRET&X-Amz-Signature=S3CRET",
        "redis://user:S3CRET@queue:6379/0",
        "key itk_0123456789abcdef_S3CRET",
        "whsec_S3CRETS3CRET",
    ],
)
def test_secrets_are_hidden(text: str) -> None:
    assert "S3CRET" not in hide_secrets(text)


@pytest.mark.parametrize("text", ["video_0123: has begun at chunk 3, attempt 1", "https://s3.example.com/bucket?x=1", "a token"])
def test_other_text_stays(text: str) -> None:
    assert hide_secrets(text) == text
