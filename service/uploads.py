"""Files that clients upload once and name in any number of requests, and the presigned way for large ones."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict

from model_store.errors import InfiniteTalkError
from service.settings import Settings
from service.storage import ObjectMissing, Store

FILE_ID = re.compile(r"file_[0-9a-f]{24}")


@dataclass(frozen=True)
class Upload:
    """What came with a request: an open file of ``size`` bytes, with the name and type the client gave it."""

    filename: str
    content_type: str
    size: int
    file: BinaryIO


class FileRecord(BaseModel):
    """An uploaded file. ``bytes`` is its size, or the size that was announced as long as it is still to come."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    tenant: str
    filename: str
    content_type: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float
    status: Literal["pending", "uploaded"] = "pending"


def largest_file(settings: Settings) -> int:
    """The most bytes of one file, whatever it turns out to be."""
    return max(settings.max_image_bytes, settings.max_video_bytes, settings.max_audio_bytes)


@dataclass(frozen=True)
class Uploads:
    """The files of all tenants. Methods are blocking and may be called from several threads.

    Args:
        store: where they are kept.
        retention_seconds: how long.
        largest: most bytes of one file.
    """

    store: Store
    retention_seconds: float
    largest: int

    def announce(self, tenant: str, filename: str, content_type: str, purpose: str, size: int) -> FileRecord:
        """Note a file whose content is still to come."""
        self._require_size(size)
        now = time.time()
        record = FileRecord(
            # Ids sort by time, so that a listing of the store is in order and the sweep may end at the first that is not due.
            id=f"file_{int(now * 1000):012x}{secrets.token_hex(6)}",
            tenant=tenant,
            filename=filename,
            content_type=content_type,
            purpose=purpose,
            bytes=size,
            created_at=now,
            expires_at=now + self.retention_seconds,
        )
        self.store.put(f"{self._folder(tenant, record.id)}file.json", record.model_dump_json().encode(), "application/json")
        return record

    def receive(self, record: FileRecord, upload: Upload) -> FileRecord:
        """Store the content."""
        self._require_size(upload.size)
        self.store.upload(self.content_key(record), upload.file, upload.size, record.content_type)
        return record.model_copy(update={"status": "uploaded", "bytes": upload.size})

    def add(self, tenant: str, upload: Upload, purpose: str) -> FileRecord:
        """Store a file that came with a request."""
        return self.receive(self.announce(tenant, upload.filename, upload.content_type, purpose, upload.size), upload)

    def find(self, tenant: str, file_id: str, param: str | None = None) -> FileRecord:
        """A file; ``file_not_found`` if the tenant has none of that id, ``file_too_large`` if more came than is allowed."""
        record = self._record(tenant, file_id) if FILE_ID.fullmatch(file_id) else None
        if record is None or record.expires_at < time.time():
            raise InfiniteTalkError(
                "file_not_found", f"There is no file {file_id[:64]!r}: upload it first, or check its id.", param=param
            )
        entry = self.store.stat(self.content_key(record))
        if entry is None:
            return record
        self._require_size(entry.size)
        return record.model_copy(update={"status": "uploaded", "bytes": entry.size})

    def ready(self, tenant: str, file_id: str, param: str) -> FileRecord:
        """A file whose content is there; ``file_not_uploaded`` if it is still to come."""
        record = self.find(tenant, file_id, param)
        if record.status != "uploaded":
            raise InfiniteTalkError(
                "file_not_uploaded", f"The content of {file_id} has not been uploaded yet: PUT it to its upload URL.", param=param
            )
        return record

    def page(self, tenant: str, limit: int, after: str | None, newest_first: bool) -> tuple[list[FileRecord], bool]:
        """Up to ``limit`` files that follow ``after``, and whether there are more."""
        ids = sorted(self.store.folders(f"tenants/{tenant}/files/"), reverse=newest_first)
        if after is not None:
            ids = [file_id for file_id in ids if (file_id < after if newest_first else file_id > after)]
        found: list[FileRecord] = []
        for file_id in ids[: limit + 1]:
            try:
                found.append(self.find(tenant, file_id))
            except InfiniteTalkError:
                continue  # deleted or expired since the listing
        return found[:limit], len(ids) > limit

    def delete(self, record: FileRecord) -> None:
        """Remove a file; videos that were asked for with it keep their own copy."""
        self.store.delete(f"{self._folder(record.tenant, record.id)}file.json", self.content_key(record))

    def sweep(self) -> None:
        """Delete files whose time is up."""
        due = int((time.time() - self.retention_seconds) * 1000)
        for tenant in self.store.folders("tenants/"):
            for file_id in sorted(filter(FILE_ID.fullmatch, self.store.folders(f"tenants/{tenant}/files/"))):
                if int(file_id.removeprefix("file_")[:12], 16) > due:
                    break
                folder = self._folder(tenant, file_id)
                self.store.delete(f"{folder}file.json", f"{folder}content")

    def content_key(self, record: FileRecord) -> str:
        """Where the content lies."""
        return f"{self._folder(record.tenant, record.id)}content"

    def head(self, record: FileRecord, count: int) -> bytes:
        """The first ``count`` bytes."""
        return b"".join(self.read(record, 0, count))

    def read(self, record: FileRecord, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The content, or a part of it."""
        return self.store.read(self.content_key(record), start, length)

    def _folder(self, tenant: str, file_id: str) -> str:
        return f"tenants/{tenant}/files/{file_id}/"

    def _record(self, tenant: str, file_id: str) -> FileRecord | None:
        try:
            return FileRecord.model_validate_json(self.store.get(f"{self._folder(tenant, file_id)}file.json"))
        except ObjectMissing:
            return None

    def _require_size(self, size: int) -> None:
        if size > self.largest:
            raise InfiniteTalkError(
                "file_too_large", f"The file has {size} bytes, and {self.largest} are allowed: use a smaller one.", param="file"
            )
