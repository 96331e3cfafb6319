"""Where weights come from: the Hugging Face hub, a bucket on any S3 server, or a folder.

A bucket or folder mirrors the hub: ``<owner>/<repository>/<path>``, which is also how a cache is laid out, so a filled
cache copied anywhere is a mirror.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Protocol

from model_store.catalogue import Component, WeightFile
from model_store.errors import InfiniteTalkError

TIMEOUT = 30.0
"""Seconds without an answer, or without a byte, after which a connection is given up."""

BLOCK = 1 << 20
"""Bytes read at a time."""

RECORD = "checked.json"
"""In a cache and in its mirrors: what is known of every file, see ``weights``."""


class Interrupted(Exception):
    """The connection broke; what was received so far is good, and asking again from there may work."""


@dataclass(frozen=True)
class Remote:
    """What a source says of a file: bytes, SHA-256 where it knows it, and the commit or version that it belongs to."""

    size: int
    sha256: str | None = None
    version: str | None = None


class Source(Protocol):
    """A place that has weights."""

    @property
    def name(self) -> str:
        """What to call it in messages and records; holds no secrets."""

    def look(self, component: Component, file: WeightFile) -> Remote:
        """What is known of a file before it is fetched.

        Raises:
            InfiniteTalkError: ``weights_not_found``, ``weights_forbidden``, ``source_unreachable``.
            Interrupted: ask again.
        """

    def read(self, component: Component, file: WeightFile, start: int) -> Iterator[bytes]:
        """The file's bytes from ``start`` on; raises as :meth:`look`."""


def _not_found(source: str, component: Component, file: WeightFile) -> InfiniteTalkError:
    return InfiniteTalkError(
        "weights_not_found",
        f"{source} has no {component.repository}/{file.path}: check the address, or pull {component.name} from elsewhere "
        "with --source.",
    )


def _recorded(record: bytes, component: Component, file: WeightFile) -> str | None:
    """The checksum in a mirror's own record; a record that cannot be read knows nothing."""
    try:
        return str(json.loads(record)[f"{component.repository}/{file.path}"]["sha256"])
    except (ValueError, KeyError, TypeError):
        return None


class Folder:
    """A folder that mirrors the hub."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)
        if not path.is_dir():
            raise InfiniteTalkError("source_unreachable", f"{path} is not a folder: check --source.", param="source")

    def look(self, component: Component, file: WeightFile) -> Remote:
        path = self._path / component.repository / file.path
        if not path.is_file():
            raise _not_found(self.name, component, file)
        record = self._path / RECORD
        return Remote(path.stat().st_size, _recorded(record.read_bytes(), component, file) if record.is_file() else None)

    def read(self, component: Component, file: WeightFile, start: int) -> Iterator[bytes]:
        with (self._path / component.repository / file.path).open("rb") as stream:
            stream.seek(start)
            while block := stream.read(BLOCK):
                yield block


def _secret(name: str) -> str | None:
    """A secret from the environment, or from the file of its name in INFINITETALK_SECRETS_DIR, as the service reads its own."""
    folder = os.environ.get("INFINITETALK_SECRETS_DIR")
    if name in os.environ or folder is None:
        return os.environ.get(name)
    file = Path(folder) / name
    return file.read_text().strip() if file.is_file() else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by hand: the hub's answer carries the checksum, and its token must not reach other hosts."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Hub:
    """The Hugging Face hub, or a server that speaks as it does.

    Args:
        endpoint: its address; ``HF_ENDPOINT`` or the public one unless given.
        token: for repositories that need one; ``HF_TOKEN`` unless given.
    """

    _REDIRECTS = 5

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self._token = token or _secret("HF_TOKEN")
        self.name = self._endpoint
        self._opener = urllib.request.build_opener(_NoRedirect)

    def look(self, component: Component, file: WeightFile) -> Remote:
        url = self._url(component, file)
        for _ in range(self._REDIRECTS):
            status, headers, response = self._ask(url, component, file, {"Accept-Encoding": "identity"}, "HEAD")
            response.close()
            if "X-Linked-Size" not in headers and 300 <= status < 400:
                url = urllib.parse.urljoin(url, headers.get("Location") or "")
                continue
            size = headers.get("X-Linked-Size") or headers.get("Content-Length")
            if size is None:
                raise InfiniteTalkError(
                    "source_unreachable", f"{self.name} does not say how large {file.path} is: pull it from elsewhere."
                )
            tag = (headers.get("X-Linked-Etag") or "").strip('W/"')
            return Remote(int(size), tag if len(tag) == 64 else None, headers.get("X-Repo-Commit"))
        raise self._circles(file)

    def read(self, component: Component, file: WeightFile, start: int) -> Iterator[bytes]:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        status, _, response = self._follow(self._url(component, file), component, file, headers, "GET")
        with contextlib.closing(response):
            try:
                if start and status == 200:  # the server does not resume: skip what is known
                    left = start
                    while left:
                        left -= len(response.read(min(left, BLOCK))) or left
                while block := response.read(BLOCK):
                    yield block
            except (OSError, http.client.HTTPException) as error:
                raise Interrupted from error

    def _url(self, component: Component, file: WeightFile) -> str:
        revision, path = urllib.parse.quote(component.revision, safe=""), urllib.parse.quote(file.path)
        return f"{self._endpoint}/{component.repository}/resolve/{revision}/{path}"

    def _follow(
        self, url: str, component: Component, file: WeightFile, headers: dict[str, str], method: str
    ) -> tuple[int, Message, Any]:
        for _ in range(self._REDIRECTS):
            status, answer, response = self._ask(url, component, file, headers, method)
            if not 300 <= status < 400:
                return status, answer, response
            response.close()
            url = urllib.parse.urljoin(url, answer.get("Location") or "")
        raise self._circles(file)

    def _circles(self, file: WeightFile) -> InfiniteTalkError:
        return InfiniteTalkError("source_unreachable", f"{self.name} sends {file.path} in circles: pull it from elsewhere.")

    def _ask(
        self, url: str, component: Component, file: WeightFile, headers: dict[str, str], method: str
    ) -> tuple[int, Message, Any]:
        request = urllib.request.Request(url, headers={"User-Agent": "infinite-talk", **headers}, method=method)
        if self._token and url.startswith(f"{self._endpoint}/"):
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            response = self._opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                return error.code, error.headers, error
            error.close()
            if error.code in (401, 403):
                raise InfiniteTalkError(
                    "weights_forbidden",
                    f"{self.name} does not give {component.repository}/{file.path} to us: accept its licence on its "
                    "page there and set HF_TOKEN.",
                ) from error
            if error.code in (404, 410):
                raise _not_found(self.name, component, file) from error
            if error.code == 429 or error.code >= 500:
                raise Interrupted from error
            raise InfiniteTalkError(
                "source_unreachable", f"{self.name} answers {error.code} for {file.path}: try again later."
            ) from error
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", error), socket.gaierror):
                raise InfiniteTalkError(
                    "source_unreachable",
                    f"{self.name} cannot be reached: check the network, or pull from a folder or bucket with --source.",
                ) from error
            raise Interrupted from error
        return response.status, response.headers, response


class Bucket:
    """A bucket on an S3 server, with ``INFINITETALK_S3_ENDPOINT``, ``_REGION``, ``_ACCESS_KEY`` and ``_SECRET_KEY``.

    Args:
        address: ``s3://bucket`` or ``s3://bucket/prefix``.
    """

    def __init__(self, address: str) -> None:
        try:
            import minio  # noqa: PLC0415 - only those who use a bucket need it
            import urllib3  # noqa: PLC0415
        except ImportError:
            raise InfiniteTalkError(
                "dependency_missing", "Buckets need the minio package: pip install 'infinite-talk[service]'.", param="source"
            ) from None
        bucket, _, prefix = address.removeprefix("s3://").partition("/")
        endpoint = urllib.parse.urlsplit(os.environ.get("INFINITETALK_S3_ENDPOINT", "https://s3.amazonaws.com"))
        if not bucket or not endpoint.netloc:
            raise InfiniteTalkError(
                "source_invalid",
                f"{address} with the server {endpoint.geturl()!r} is no address: use s3://bucket/prefix and set "
                "INFINITETALK_S3_ENDPOINT to a URL such as https://s3.example.com.",
                param="source",
            )
        self.name = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._record: bytes | None = None
        self._s3_error: type[Any] = minio.error.S3Error
        self._broken = (urllib3.exceptions.HTTPError, OSError, minio.error.ServerError)
        self._client = minio.Minio(
            endpoint.netloc,
            access_key=_secret("INFINITETALK_S3_ACCESS_KEY"),
            secret_key=_secret("INFINITETALK_S3_SECRET_KEY"),
            region=os.environ.get("INFINITETALK_S3_REGION", "us-east-1"),
            secure=endpoint.scheme == "https",
            http_client=urllib3.PoolManager(timeout=urllib3.Timeout(connect=TIMEOUT, read=TIMEOUT), retries=False),
        )

    def look(self, component: Component, file: WeightFile) -> Remote:
        with self._translated(component, file):
            found = self._client.stat_object(self._bucket, self._key(component, file))
            if self._record is None:
                self._record = self._read_record()
        return Remote(int(found.size or 0), _recorded(self._record, component, file), found.version_id or found.etag)

    def read(self, component: Component, file: WeightFile, start: int) -> Iterator[bytes]:
        with self._translated(component, file):
            response = self._client.get_object(self._bucket, self._key(component, file), offset=start)
            try:
                yield from response.stream(BLOCK)
            finally:
                response.close()
                response.release_conn()

    def _read_record(self) -> bytes:
        try:
            response = self._client.get_object(self._bucket, f"{self._prefix}{RECORD}")
        except self._s3_error as error:
            if error.code == "NoSuchKey":
                return b"{}"
            raise
        with contextlib.closing(response):
            return bytes(response.read())

    def _key(self, component: Component, file: WeightFile) -> str:
        return f"{self._prefix}{component.repository}/{file.path}"

    @contextlib.contextmanager
    def _translated(self, component: Component, file: WeightFile) -> Iterator[None]:
        try:
            yield
        except self._s3_error as error:
            if error.code in ("NoSuchKey", "NoSuchBucket", "NoSuchVersion"):
                raise _not_found(self.name, component, file) from error
            if error.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                raise InfiniteTalkError(
                    "weights_forbidden",
                    f"{self.name} refuses our key: check INFINITETALK_S3_ACCESS_KEY and INFINITETALK_S3_SECRET_KEY.",
                ) from error
            raise Interrupted from error
        except self._broken as error:
            raise Interrupted from error


def open_source(address: str) -> Source:
    """A source by its address: ``hub``, an ``http(s)://`` hub endpoint, ``s3://bucket/prefix``, or a folder.

    Raises:
        InfiniteTalkError: ``source_invalid``, ``source_unreachable``, ``dependency_missing``.
    """
    if address == "hub":
        return Hub()
    if address.startswith(("http://", "https://")):
        return Hub(address)
    if address.startswith("s3://"):
        return Bucket(address)
    return Folder(Path(address).expanduser())
