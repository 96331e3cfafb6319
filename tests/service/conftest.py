from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers


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
