"""The object store of many machines: any S3 server that honours ``If-None-Match``, through the ``minio`` client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import BinaryIO
from urllib.parse import quote, urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, CopySource, Filter
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, Expiration, LifecycleConfig, Rule

from model_store.errors import InfiniteTalkError
from service.storage.store import PIECE, Entry, ObjectMissing, StoreUnavailable, require_key

CONNECT_SECONDS, READ_SECONDS = 3.0, 20.0
RETRIES = urllib3.Retry(
    total=3, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504], allowed_methods=None, raise_on_status=False
)
CONNECTIONS = 32
PART_SIZE = 16 << 20
"""Bytes of one part of a multipart upload; an upload holds at most a few in memory."""

_MISSING = {"NoSuchKey", "NoSuchObject", "NotFound"}
_CREATE_TRIES = 5


@contextmanager
def _server_errors(key: str = "") -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code in _MISSING:
            raise ObjectMissing(key) from None
        raise StoreUnavailable from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise StoreUnavailable from error


class S3Store:
    """Objects in one bucket. The bucket is looked for, and created if it is missing, at the first use.

    Args:
        endpoint: the server's URL, ``http://`` or ``https://``.
        bucket: the bucket's name.
        access_key, secret_key, region: for signatures.
    """

    def __init__(self, endpoint: str, bucket: str, *, access_key: str, secret_key: str, region: str) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
            raise InfiniteTalkError(
                "settings_invalid", f"INFINITETALK_S3_ENDPOINT is {endpoint!r}: give a URL such as https://s3.example.com."
            )
        self._http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS), maxsize=CONNECTIONS, retries=RETRIES
        )
        self._client = Minio(
            url.netloc,
            access_key=access_key,
            secret_key=secret_key,
            region=region,
            secure=url.scheme == "https",
            http_client=self._http,
        )
        self._bucket = bucket
        self._bucket_seen = False
        self._bucket_lock = Lock()

    def get(self, key: str) -> bytes:
        return b"".join(self.read(key))

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length == 0:
            return iter(())
        with _server_errors(key):
            response = self._client.get_object(self._ready(), require_key(key), offset=start, length=length or 0)
        return _pieces(response)

    def stat(self, key: str) -> Entry | None:
        try:
            with _server_errors(key):
                found = self._client.stat_object(self._ready(), require_key(key))
        except ObjectMissing:
            return None
        return Entry(key, found.size or 0, found.last_modified.timestamp() if found.last_modified else 0.0)

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        self.upload(key, BytesIO(data), len(data), content_type)

    def upload(self, key: str, source: BinaryIO, size: int, content_type: str = "application/octet-stream") -> None:
        with _server_errors(key):
            self._client.put_object(
                self._ready(), require_key(key), source, size, content_type, part_size=PART_SIZE, num_parallel_uploads=2
            )

    def create(self, key: str, data: bytes, content_type: str = "application/json") -> bool:
        # The client has no argument for If-None-Match; a presigned request takes the header beside its signature.
        headers = {"If-None-Match": "*", "Content-Type": content_type}
        for attempt in range(_CREATE_TRIES):
            with _server_errors(key):
                url = self._client.get_presigned_url("PUT", self._ready(), require_key(key), timedelta(minutes=5))
                status = self._http.request("PUT", url, body=data, headers=headers).status
            if status in (200, 201, 204):
                return True
            if status == 412:
                try:
                    return self.get(key) == data
                except ObjectMissing:
                    continue
            if status != 409:  # 409: another create of the same key was under way
                break
            time.sleep(0.05 * 2**attempt)
        raise StoreUnavailable

    def copy(self, source: str, target: str) -> None:
        with _server_errors(source):
            bucket = self._ready()
            self._client.copy_object(bucket, require_key(target), CopySource(bucket, require_key(source)))

    def delete(self, *keys: str) -> None:
        if not keys:
            return
        with _server_errors():
            faults = list(self._client.remove_objects(self._ready(), [DeleteObject(require_key(key)) for key in keys]))
        if any(fault.code not in _MISSING for fault in faults):
            raise StoreUnavailable

    def entries(self, prefix: str, after: str = "") -> Iterator[Entry]:
        with _server_errors():
            for found in self._client.list_objects(self._ready(), prefix, recursive=True, start_after=after or None):
                if found.object_name and not found.is_dir:
                    modified = found.last_modified.timestamp() if found.last_modified else 0.0
                    yield Entry(found.object_name, found.size or 0, modified)

    def folders(self, prefix: str) -> Iterator[str]:
        with _server_errors():
            for found in self._client.list_objects(self._ready(), prefix):
                if found.object_name and found.is_dir:
                    yield found.object_name.removeprefix(prefix).rstrip("/")

    def link(self, key: str, seconds: int, filename: str | None = None) -> str | None:
        headers: dict[str, str | list[str] | tuple[str]] = {}
        if filename:
            headers["response-content-disposition"] = f"attachment; filename*=UTF-8''{quote(filename)}"
        with _server_errors(key):
            return self._client.get_presigned_url("GET", self._bucket, require_key(key), timedelta(seconds=seconds), headers)

    def upload_link(self, key: str, seconds: int) -> str | None:
        with _server_errors(key):
            return self._client.get_presigned_url("PUT", self._bucket, require_key(key), timedelta(seconds=seconds))

    def path(self, key: str) -> Path | None:
        return None

    def expire(self, prefix: str, days: int) -> None:
        rule = Rule(
            ENABLED,
            rule_filter=Filter(prefix=prefix),
            rule_id="infinitetalk-retention",
            expiration=Expiration(days=days),
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=1),
        )
        with _server_errors():
            self._client.set_bucket_lifecycle(self._ready(), LifecycleConfig([rule]))

    def ping(self) -> None:
        with _server_errors():
            if not self._client.bucket_exists(self._ready()):
                self._bucket_seen = False
                raise StoreUnavailable

    def _ready(self) -> str:
        if not self._bucket_seen:
            with self._bucket_lock, _server_errors():
                if not self._bucket_seen and not self._client.bucket_exists(self._bucket):
                    with suppress(S3Error):  # another process may create it at the same moment; the next call tells
                        self._client.make_bucket(self._bucket)
                self._bucket_seen = True
        return self._bucket


def _pieces(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    try:
        with _server_errors():
            yield from response.stream(PIECE)
    except BaseException:
        response.close()  # what was not read would be in the way of the next answer
        raise
    finally:
        response.release_conn()
