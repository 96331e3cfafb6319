"""Requests nobody thought of, made from the OpenAPI document: none may be answered with a server's error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import httpx
import pytest
from servers import BIN, Deployment

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"


@pytest.fixture
def api(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "api", {"INFINITETALK_TENANT_QUEUED_JOBS": "0", "INFINITETALK_MAX_QUEUED_JOBS": "100000"})


def test_no_request_makes_the_api_fail(api: Deployment, tmp_path: Path) -> None:
    command = [
        str(BIN / "schemathesis"), "--no-color", "run", f"{api.url}/openapi.json", "--checks", CHECKS,
        "--phases", "examples,coverage,fuzzing", "--max-examples", "12", "--seed", "1", "--max-time", "25",
        "--request-timeout", "20", "--continue-on-failure", "--generation-database", "none",
    ]  # fmt: skip
    try:
        api.wait_ready()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
        assert httpx.get(f"{api.url}/readyz", timeout=5).status_code == 200, "the API is still well"
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "internal_error" not in api.api.text()
    finally:
        api.end()
