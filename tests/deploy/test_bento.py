"""`bentoml build`: the packed service is whole, and serves what the one in place serves.

`bentoml containerize` needs a Docker engine, which tests have not: the Dockerfile that it would build is read.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from servers import BIN, ROOT, Deployment, Process, eventually, free_ports

PACKAGES = ("service", "model_store", "kernels")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bento store with the service, built from the repository."""
    folder = tmp_path_factory.mktemp("bentos")
    subprocess.run(
        [str(BIN / "bentoml"), "build"], cwd=ROOT, env=environment(folder), check=True, capture_output=True, timeout=120
    )
    return folder


@pytest.fixture(scope="module")
def bento(home: Path) -> Path:
    (folder,) = [path for path in (home / "bentos" / "infinitetalk").iterdir() if path.is_dir()]
    return folder


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}


def files(root: Path) -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(root))


def pins(requirements: Path) -> set[str]:
    return set(re.findall(r"^[\w.-]+(?:\[[\w,]+\])?==[^\s;]+", requirements.read_text(), re.MULTILINE))


def test_the_bento_is_whole_and_holds_nothing_else(bento: Path) -> None:
    packed = set(files(bento / "src"))
    assert packed <= set(files(ROOT))
    assert {
        name for name in files(ROOT) if not name.endswith((".md", ".json", ".csv")) or name.startswith("model_store")
    } <= packed
    assert {path.name for path in (bento / "src").iterdir()} == {
        *PACKAGES, "LICENSE", "NOTICE", "README.md", "bentofile.yaml", "pyproject.toml", "requirements",
    }  # fmt: skip
    assert pins(bento / "env/python/requirements.txt") == pins(ROOT / "requirements/service.txt")
    dockerfile = (bento / "env/docker/Dockerfile").read_text()
    wanted = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["docker"]["python_version"]
    assert f"FROM python:{wanted}" in dockerfile
    assert "USER bentoml" in dockerfile


def test_the_bento_serves_what_the_service_in_place_serves(home: Path, bento: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    deployment = Deployment(tmp_path / "in-place")
    env = {**deployment.env, "BENTOML_HOME": str(home), "PYTHONPATH": ""}
    # From another folder, as where only the bento is.
    command = [sys.executable, "-m", "bentoml", "serve", f"infinitetalk:{bento.name}", "--port", str(port)]
    packed = Process("bento", ["env", "-C", str(tmp_path), *command], tmp_path / "bento.log", env)
    try:
        documents = []
        for url in (f"http://127.0.0.1:{port}", deployment.url):
            eventually(lambda url=url: _answers(f"{url}/readyz"), f"{url} is ready")
            documents.append(httpx.get(f"{url}/openapi.json", timeout=30).json())
        assert documents[0] == documents[1]
    finally:
        packed.end()
        deployment.end()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
