"""Files are written whole or not at all, and a place that cannot be written is known before the work."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from model_store.errors import InfiniteTalkError
from service.media import files


def code_of(call: object, *arguments: object) -> str:
    with pytest.raises(InfiniteTalkError) as raised:
        call(*arguments)  # type: ignore[operator]
    assert raised.value.param == "output"
    return raised.value.code


def test_places_that_cannot_be_written_are_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert code_of(files.require_writable, tmp_path / "missing" / "out.mp4") == "output_folder_missing"
    assert code_of(files.require_writable, tmp_path / "file" / "out.mp4") == "output_folder_missing"
    assert code_of(files.require_writable, tmp_path) == "output_not_writable"
    assert code_of(files.require_writable, tmp_path / "pipe") == "output_not_writable"
    assert code_of(files.require_writable, Path("/proc/out.mp4")) == "output_not_writable"
    files.require_writable(tmp_path / "out.mp4")
    files.require_writable(tmp_path / "file")
    monkeypatch.chdir(tmp_path)
    files.require_writable(Path("out.mp4"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_too_little_space_is_known_at_once(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    files.require_space(tmp_path, free // 2)
    assert code_of(files.require_space, tmp_path, 2 * free) == "no_space"


def test_a_written_file_replaces_the_earlier_one_in_one_step(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    output.write_bytes(b"earlier")
    with files.written_whole(output) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert output.read_bytes() == b"earlier"
    assert output.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, SystemExit])
def test_nothing_is_left_when_the_writing_stops(stop: type[BaseException], tmp_path: Path) -> None:
    def write() -> None:
        with files.written_whole(tmp_path / "out.mp4") as temporary:
            temporary.write_bytes(b"half")
            raise stop

    with pytest.raises(stop):
        write()
    assert not list(tmp_path.iterdir())


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    output = tmp_path / ("x" * 251 + ".mp4")
    with files.written_whole(output) as temporary:
        temporary.write_bytes(b"new")
    assert output.read_bytes() == b"new"
