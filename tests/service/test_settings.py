"""Settings: from the environment and from mounted secrets, with errors that name the variable and never show a secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.errors import InfiniteTalkError
from service.settings import load_settings


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_secrets_come_from_mounted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("REDIS_URL", "redis://:hush@valkey:6379/0"), ("S3_ACCESS_KEY", "who"), ("S3_SECRET_KEY", "canary")):
        (tmp_path / f"INFINITETALK_{name}").write_text(f"{value}\n")
    monkeypatch.setenv("INFINITETALK_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("INFINITETALK_S3_ENDPOINT", "https://s3.example.com")
    monkeypatch.setenv("INFINITETALK_S3_ACCESS_KEY", "me")
    settings = load_settings()
    assert settings.queue_url == "redis://:hush@valkey:6379/0"
    assert settings.s3_secret_key is not None
    assert settings.s3_secret_key.get_secret_value() == "canary"
    assert settings.s3_access_key is not None
    assert settings.s3_access_key.get_secret_value() == "me", "the environment goes first"
    assert not {"hush", "canary"} & set(repr(settings).replace(":", " ").replace("'", " ").split())


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "99999"), ("LEASE_SECONDS", "soon"), ("WORKER_CLASSES", "urgent"), ("SECRETS_DIR", "/no/such/folder")],
)
def test_a_bad_setting_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"INFINITETALK_{name}", value)
    with pytest.raises(InfiniteTalkError, match=f"INFINITETALK_{name}") as caught:
        load_settings()
    assert caught.value.code == "settings_invalid"
