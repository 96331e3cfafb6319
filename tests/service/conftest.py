from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import soundfile


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One SeaweedFS for all tests of a run, as the settings that point at it."""
    with servers.seaweed(tmp_path_factory.mktemp("seaweed")) as settings:
        yield settings


@pytest.fixture(params=["folder", "s3"])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Settings of either kind of store, empty."""
    if request.param == "folder":
        return {}
    seaweed: dict[str, str] = request.getfixturevalue("seaweed")
    return {**seaweed, "INFINITETALK_S3_BUCKET": f"bucket-{abs(hash(request.node.nodeid)):x}"}


@pytest.fixture(scope="session")
def picture() -> Path:
    return servers.ROOT / "examples" / "astronaut.png"


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6.4 seconds of a real voice: ten chunks of the steady engine."""
    samples, rate = soundfile.read(servers.ROOT / "examples" / "en_allison.wav", frames=int(6.4 * 16_000))
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Deployment]:
    """An API and a worker on a folder, for tests that break nothing."""
    probes, metrics = servers.free_ports(2)
    settings = {
        "INFINITETALK_WORKER_PORT": str(probes),
        "INFINITETALK_METRICS_PORT": str(metrics),
        "INFINITETALK_MAX_IMAGE_BYTES": "2000000",
        "INFINITETALK_MAX_VIDEO_BYTES": "4000000",
        "INFINITETALK_MAX_AUDIO_BYTES": "8000000",
    }
    deployment = servers.Deployment(tmp_path_factory.mktemp("deployment"), settings)
    try:
        deployment.worker()
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


@pytest.fixture(scope="session")
def s3_deployment(tmp_path_factory: pytest.TempPathFactory, seaweed: dict[str, str]) -> Iterator[servers.Deployment]:
    """An API on SeaweedFS, to which tests add workers; what they break, they mend."""
    deployment = servers.Deployment(tmp_path_factory.mktemp("s3"), {**seaweed, "INFINITETALK_S3_BUCKET": "deployment"})
    try:
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.end()


@pytest.fixture(scope="session")
def client(deployment: servers.Deployment, picture: Path, speech: Path) -> servers.Client:
    return servers.Client(deployment.url, picture, speech)


@pytest.fixture(scope="session")
def s3_client(s3_deployment: servers.Deployment, picture: Path, speech: Path) -> servers.Client:
    return servers.Client(s3_deployment.url, picture, speech)
