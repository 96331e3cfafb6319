"""The object store of one machine: a folder, where a file is an object."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from service.storage.store import PIECE, Entry, ObjectMissing, StoreUnavailable, require_key


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreUnavailable from error


class LocalStore:
    """Objects as files below ``root``; written beside their place and moved there, so that nobody sees half of one.

    A conditional create is ``link(2)``, which fails where the name exists and, unlike ``O_EXCL``, shows the object whole.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "data"
        self._unfinished = root / "unfinished"
        with _disk_errors():
            for folder in (root, self._objects, self._unfinished):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, key: str) -> bytes:
        try:
            with _disk_errors():
                return self._file(key).read_bytes()
        except FileNotFoundError:
            raise ObjectMissing(key) from None

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        try:
            with _disk_errors():
                file = self._file(key).open("rb")
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        return _pieces(file, start, length)

    def stat(self, key: str) -> Entry | None:
        try:
            with _disk_errors():
                info = self._file(key).stat()
        except FileNotFoundError:
            return None
        return Entry(key, info.st_size, info.st_mtime)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        with _disk_errors(), self._written(data) as written:
            self._place(written, key)

    def upload(self, key: str, source: BinaryIO, size: int, content_type: str = "application/octet-stream") -> None:
        with _disk_errors(), self._written(source) as written:
            self._place(written, key)

    def create(self, key: str, data: bytes, content_type: str = "application/json") -> bool:
        target = self._file(key)
        with _disk_errors(), self._written(data) as written:
            while True:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                try:
                    os.link(written, target)
                except FileExistsError:
                    with suppress(FileNotFoundError):
                        return target.read_bytes() == data
                except FileNotFoundError:
                    continue  # a delete took the empty folder away in between
                else:
                    return True

    def copy(self, source: str, target: str) -> None:
        try:
            with _disk_errors(), self._file(source).open("rb") as file, self._written(file) as written:
                self._place(written, target)
        except FileNotFoundError:
            raise ObjectMissing(source) from None

    def delete(self, *keys: str) -> None:
        for key in keys:
            file = self._file(key)
            with _disk_errors(), suppress(FileNotFoundError):
                file.unlink()
                self._prune(file.parent)

    def entries(self, prefix: str, after: str = "") -> Iterator[Entry]:
        folder, _, begins = prefix.rpartition("/")
        yield from self._walk(f"{folder}/" if folder else "", begins, after)

    def folders(self, prefix: str) -> Iterator[str]:
        for name, is_folder in self._names(prefix):
            if is_folder:
                yield name

    def link(self, key: str, seconds: int, filename: str | None = None) -> str | None:
        return None

    def upload_link(self, key: str, seconds: int) -> str | None:
        return None

    def path(self, key: str) -> Path | None:
        return self._file(key)

    def expire(self, prefix: str, days: int) -> None:
        pass  # a folder has no clock: the service's own sweep deletes what is due

    def ping(self) -> None:
        with _disk_errors():
            if not os.access(self._objects, os.W_OK) or shutil.disk_usage(self._objects).free == 0:
                raise StoreUnavailable

    def _file(self, key: str) -> Path:
        return self._objects / require_key(key)

    @contextmanager
    def _written(self, data: bytes | BinaryIO) -> Iterator[Path]:
        """A finished, flushed file that holds the data and is gone afterwards if it was not moved."""
        file = self._unfinished / uuid4().hex
        try:
            with file.open("xb") as out:
                if isinstance(data, bytes):
                    out.write(data)
                else:
                    shutil.copyfileobj(data, out, PIECE)
                out.flush()
                os.fsync(out.fileno())
            yield file
        finally:
            file.unlink(missing_ok=True)

    def _place(self, written: Path, key: str) -> None:
        target = self._file(key)
        while True:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.replace(written, target)
            except FileNotFoundError:
                if not written.exists():
                    raise
            else:
                return

    def _prune(self, folder: Path) -> None:
        """Remove folders that have become empty: they are no objects, and S3 would not show them."""
        while folder != self._objects:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _names(self, prefix: str) -> list[tuple[str, bool]]:
        """Names in a folder and whether each is a folder, in the order that S3 lists the keys below them."""
        try:
            with _disk_errors(), os.scandir(self._objects / prefix) as entries:
                found = [(entry.name, entry.is_dir()) for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda name: name[0] + ("/" if name[1] else ""))

    def _walk(self, prefix: str, begins: str, after: str) -> Iterator[Entry]:
        for name, is_folder in self._names(prefix):
            if not name.startswith(begins):
                continue
            key = prefix + name
            if is_folder:
                if f"{key}/" > after or after.startswith(f"{key}/"):
                    yield from self._walk(f"{key}/", "", after)
            elif key > after and (entry := self.stat(key)):
                yield entry


def _pieces(file: BinaryIO, start: int, length: int | None) -> Iterator[bytes]:
    with file, _disk_errors():
        file.seek(start)
        left = length
        while left is None or left > 0:
            piece = file.read(PIECE if left is None else min(PIECE, left))
            if not piece:
                return
            if left is not None:
                left -= len(piece)
            yield piece
