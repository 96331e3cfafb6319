"""What every store keeps to, asked of a folder and of a real S3 server."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from service.storage import LocalStore, ObjectMissing, Store, StoreUnavailable, open_store
from service.storage.s3 import S3Store


def settings_of(variables: dict[str, str], data_dir: Path) -> Settings:
    prefix = "INFINITETALK_"
    return Settings(data_dir=data_dir, **{name.removeprefix(prefix).lower(): value for name, value in variables.items()})


@pytest.fixture
def store(store_settings: dict[str, str], tmp_path: Path) -> Store:
    return open_store(settings_of(store_settings, tmp_path))


def test_an_object_is_what_was_put_last(store: Store) -> None:
    store.put("a/b.bin", b"first")
    store.put("a/b.bin", b"second, longer")
    assert store.get("a/b.bin") == b"second, longer"
    entry = store.stat("a/b.bin")
    assert entry is not None
    assert (entry.key, entry.size) == ("a/b.bin", 14)
    assert abs(entry.modified - time.time()) < 60


def test_what_is_missing_is_said_to_be(store: Store) -> None:
    assert store.stat("no/such") is None
    with pytest.raises(ObjectMissing):
        store.get("no/such")
    with pytest.raises(ObjectMissing):
        store.read("no/such")
    with pytest.raises(ObjectMissing):
        store.copy("no/such", "else/where")
    store.delete("no/such")
    assert list(store.entries("no/")) == []
    assert list(store.folders("no/")) == []


def test_ranges(store: Store) -> None:
    data = bytes(range(256)) * 4000
    store.put("r", data)
    assert b"".join(store.read("r")) == data
    assert b"".join(store.read("r", 1000)) == data[1000:]
    assert b"".join(store.read("r", 1000, 700_001)) == data[1000:701_001]
    assert b"".join(store.read("r", 5, 0)) == b""


def test_a_long_upload_arrives_whole(store: Store) -> None:
    data = bytes(range(251)) * 150_000  # 37 MB: three parts on S3
    store.upload("long.bin", io.BytesIO(data), len(data), "video/mp4")
    assert store.get("long.bin") == data


def test_of_rivals_exactly_one_creates(store: Store) -> None:
    rivals = [f"rival {n}".encode() for n in range(16)]
    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(lambda data: store.create("race/one", data), rivals))
    assert sum(won) == 1
    winner = rivals[won.index(True)]
    assert store.get("race/one") == winner
    assert store.create("race/one", winner), "the winner may ask again"
    assert not store.create("race/one", b"a latecomer")
    assert store.get("race/one") == winner


def test_a_deleted_name_can_be_created_again(store: Store) -> None:
    assert store.create("again/x", b"1")
    store.delete("again/x")
    assert store.create("again/x", b"2")
    assert store.get("again/x") == b"2"


def test_listing_shows_everything_below_a_prefix(store: Store) -> None:
    keys = ["t/a-b/x", "t/a/1", "t/a/2", "t/a.json", "t/b/c/d", "t/b0", "u/z"]
    for key in keys:
        store.put(key, b".")
    assert sorted(entry.key for entry in store.entries("t/")) == sorted(key for key in keys if key.startswith("t/"))
    assert sorted(entry.key for entry in store.entries("t/a")) == ["t/a-b/x", "t/a.json", "t/a/1", "t/a/2"]
    assert sorted(store.folders("t/")) == ["a", "a-b", "b"]


def test_listing_a_folder_is_in_order_and_resumes(store: Store) -> None:
    names = [f"{number:06d}.json" for number in range(25)]
    for name in reversed(names):
        store.put(f"flat/{name}", b".")
    assert [entry.key for entry in store.entries("flat/")] == [f"flat/{name}" for name in names]
    assert [entry.key for entry in store.entries("flat/", after="flat/000019.json")] == [f"flat/{name}" for name in names[20:]]


def test_copies_outlive_their_source(store: Store) -> None:
    store.put("from", b"content")
    store.copy("from", "deep/er/to")
    store.delete("from")
    assert store.get("deep/er/to") == b"content"


def test_many_objects_are_deleted_at_once(store: Store) -> None:
    for number in range(20):
        store.put(f"many/{number}", b".")
    store.delete(*[f"many/{number}" for number in range(20)], "many/none")
    assert list(store.entries("many/")) == []
    store.delete()


def test_keys_cannot_leave_the_store(store: Store) -> None:
    for key in ("../x", "a/../../x", "/etc/passwd", "a//b", "", "a/./b", "a\0b", "a b"):
        with pytest.raises(ValueError, match="not an object key"):
            store.get(key)
        with pytest.raises(ValueError, match="not an object key"):
            store.put(key, b".")


def test_a_store_that_can_be_used_says_so(store: Store) -> None:
    store.put("x", b".")
    store.ping()


def test_a_folder_has_files_and_no_links(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("a/b", b"content")
    path = store.path("a/b")
    assert path is not None
    assert path.read_bytes() == b"content"
    assert store.link("a/b", 60) is None
    assert store.upload_link("a/b", 60) is None
    assert not list((tmp_path / "unfinished").iterdir())


def test_links_work_for_anyone_and_only_while_valid(seaweed: dict[str, str], tmp_path: Path) -> None:
    store = open_store(settings_of(seaweed, tmp_path))
    upload, wrong = store.upload_link("linked/file", 60), store.link("linked/file", 60)
    assert upload is not None
    assert wrong is not None
    assert httpx.put(upload, content=b"by link").status_code == 200
    assert store.get("linked/file") == b"by link"

    link = store.link("linked/file", 60, filename="naïve name.mp4")
    assert link is not None
    answer = httpx.get(link, headers={"Range": "bytes=3-"})
    assert (answer.status_code, answer.content) == (206, b"link")
    assert "na%C3%AFve%20name.mp4" in answer.headers["content-disposition"]

    assert httpx.get(link.replace("linked/file", "linked/other")).status_code == 403
    brief = store.link("linked/file", 1)
    assert brief is not None
    deadline = time.monotonic() + 30
    while httpx.get(brief).status_code == 200:
        assert time.monotonic() < deadline, "an expired link still works"
        time.sleep(0.2)
    assert httpx.get(brief).status_code == 403


def test_the_server_is_told_the_retention(seaweed: dict[str, str], tmp_path: Path) -> None:
    store = open_store(settings_of({**seaweed, "INFINITETALK_S3_BUCKET": "kept"}, tmp_path))
    assert isinstance(store, S3Store)
    store.expire("tenants/", 7)
    rules = store._client.get_bucket_lifecycle("kept")
    assert rules is not None
    assert [(rule.rule_filter.prefix, rule.expiration.days) for rule in rules.rules] == [("tenants/", 7)]


def test_a_server_that_is_gone_or_refuses_is_unavailable(seaweed: dict[str, str], tmp_path: Path) -> None:
    gone = open_store(settings_of({**seaweed, "INFINITETALK_S3_ENDPOINT": "http://127.0.0.1:9"}, tmp_path))
    stranger = open_store(settings_of({**seaweed, "INFINITETALK_S3_SECRET_KEY": "guessed"}, tmp_path))
    for store in (gone, stranger):
        for call in (
            lambda s=store: s.get("x"),
            lambda s=store: s.create("x", b"."),
            store.ping,
        ):
            with pytest.raises(StoreUnavailable):
                call()
