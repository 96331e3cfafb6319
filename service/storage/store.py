"""What the service asks of an object store: few operations, each with the same meaning on a folder and on S3.

The one primitive for agreement between processes is :meth:`Store.create`: many may try, one wins. Nothing in the service
reads an object, changes it and writes it back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from model_store.errors import InfiniteTalkError


class ObjectMissing(KeyError):
    """There is no object of that key."""


class StoreUnavailable(InfiniteTalkError):
    """The store did not answer, or not sensibly; the same call may succeed later."""

    def __init__(self) -> None:
        super().__init__("store_unavailable", "The object store does not answer: try again in a few seconds.")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), ())


@dataclass(frozen=True)
class Entry:
    """One object: its key, size in bytes and time of its last change (seconds since 1970)."""

    key: str
    size: int
    modified: float


@runtime_checkable
class Store(Protocol):
    """Objects by key. Every method may raise :class:`StoreUnavailable`; all may be called from several threads.

    Keys are ``/``-separated names of letters, digits, ``.``, ``_`` and ``-`` (:func:`require_key`).
    """

    def get(self, key: str) -> bytes:
        """The whole object; :class:`ObjectMissing` if there is none."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The object in pieces, from byte ``start``, at most ``length`` bytes; :class:`ObjectMissing` at once."""

    def stat(self, key: str) -> Entry | None:
        """Size and time of an object, or None."""

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Write an object, whole or not at all, over any earlier one."""

    def upload(self, key: str, source: BinaryIO, size: int, content_type: str = "application/octet-stream") -> None:
        """Like :meth:`put`, for ``size`` bytes of a file of any length, without holding it in memory."""

    def create(self, key: str, data: bytes, content_type: str = "application/json") -> bool:
        """Write an object if there is none of that key: True for exactly one of those who try with different bytes.

        Repeating a call that won answers True again, so that a call whose answer was lost may be repeated; rivals must
        therefore write different bytes.
        """

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store; :class:`ObjectMissing` if there is no source."""

    def delete(self, *keys: str) -> None:
        """Delete objects; those that are missing are passed over."""

    def entries(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Objects whose key begins with ``prefix`` and sorts after ``after``; those of one folder in the order of their names."""

    def folders(self, prefix: str) -> Iterator[str]:
        """The names that follow ``prefix`` (which ends in ``/``) and are followed by a further ``/``."""

    def link(self, key: str, seconds: int, filename: str | None = None) -> str | None:
        """A URL that gives the object to anyone for some time, as a download named ``filename``; None where there are none."""

    def upload_link(self, key: str, seconds: int) -> str | None:
        """A URL to which anyone may PUT the object for some time; None where there are none."""

    def path(self, key: str) -> Path | None:
        """The object as a file of this machine; None where it is not one."""

    def expire(self, prefix: str, days: int) -> None:
        """Ask the store to delete objects by itself some days after their creation; a folder cannot."""

    def ping(self) -> None:
        """Return if the store can be used; :class:`StoreUnavailable` if not."""


_KEY = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


def require_key(key: str) -> str:
    """The key itself if it is one (no empty name, no ``..``); ValueError otherwise, for a key is never a user's to choose."""
    if not _KEY.fullmatch(key) or len(key) > 512:
        raise ValueError(f"not an object key: {key!r}")
    return key


PIECE = 1 << 18
"""Bytes read or written at a time."""
