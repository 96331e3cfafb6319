from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import soundfile

from tests.chaos.jobs import Battlefield
from tests.chaos.proxy import faulty_proxy


@pytest.fixture(scope="package")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battlefield]:
    """An API on an S3 server behind a proxy that can fail, and what jobs come to in peace; tests bring the workers."""
    folder = tmp_path_factory.mktemp("chaos")
    samples, rate = soundfile.read(servers.ROOT / "examples" / "en_allison.wav", frames=int(6.4 * 16_000))
    speech = folder / "speech.wav"
    soundfile.write(speech, samples, rate)
    with servers.seaweed(folder) as s3, faulty_proxy(s3["INFINITETALK_S3_ENDPOINT"]) as proxy:
        deployment = servers.Deployment(folder / "deployment", {**s3, "INFINITETALK_S3_ENDPOINT": proxy.url})
        try:
            deployment.wait_ready()
            client = servers.Client(deployment.url, Path(servers.ROOT / "examples" / "astronaut.png"), speech)
            yield Battlefield(deployment, client, proxy)
        finally:
            proxy.calm()
            deployment.end()
