"""Images and compose file: linted, and with the names and ports that the code really has. Nothing here builds or runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
OTHER_VARIABLES = {"INFINITETALK_MODELS"}  # read by model_store.weights
SETTINGS = {f"INFINITETALK_{name}".upper() for name in Settings.model_fields} | OTHER_VARIABLES


def variables(text: str) -> set[str]:
    return set(re.findall(r"\b(INFINITETALK_[A-Z0-9_]+)", text))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return loaded


def test_there_are_images() -> None:
    assert [file.name for file in DOCKERFILES] == ["api.Dockerfile", "worker.Dockerfile"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_are_clean(file: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([str(linter), str(file)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles_set_what_there_is_and_run_as_nobody(file: Path) -> None:
    text = file.read_text()
    assert variables(text) <= SETTINGS
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for path in source.split():
            assert (ROOT / path).exists(), path
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert "HEALTHCHECK" in text
    assert all("==" in line or ":" in line for line in re.findall(r"^FROM (.+)$", text, re.MULTILINE))


def test_the_api_image_has_no_torch() -> None:
    names = {line.split("==")[0] for line in (ROOT / "requirements" / "service.txt").read_text().splitlines() if "==" in line}
    assert {"bentoml", "opencv-python-headless"} <= names
    assert not names & {"torch", "triton", "diffusers", "transformers"}


def test_compose_names_settings_and_ports_that_exist(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in ("api", "worker", "gpu-worker"):
        assert set(services[name]["environment"]) <= SETTINGS, name
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    assert services["api"]["ports"] == [f"127.0.0.1:{Settings().port}:{Settings().port}"]
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())
    targets = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    exposed = {
        int(port) for port in re.findall(r"\d+", re.findall(r"^EXPOSE (.+)$", DOCKERFILES[0].read_text(), re.MULTILINE)[0])
    }
    metrics_port = int(re.findall(r"INFINITETALK_METRICS_PORT=(\d+)", DOCKERFILES[0].read_text())[0])
    assert targets == [f"api:{metrics_port}", f"worker:{Settings().worker_port}"]
    assert exposed == {Settings().port, Settings().worker_port, metrics_port}


def test_compose_holds_no_secret_and_pins_every_image(compose: dict[str, Any]) -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    for name, secret in re.findall(r"([A-Z_]*(?:PASSWORD|SECRET_KEY|ACCESS_KEY)): +\"?([^\s,}\"]+)", text):
        assert secret.startswith("${"), name
    for service in compose["services"].values():
        assert ":" in service["image"] or "build" in service or service["image"] == "infinite-talk-api", service["image"]
        assert not service["image"].endswith(":latest")
