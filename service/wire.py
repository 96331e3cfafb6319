"""Messages between a worker and its engine process: a JSON header and any number of byte strings, over a pipe."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<I")
_MAX_HEADER = 1 << 24
_MAX_PART = 1 << 30


@dataclass(frozen=True)
class Message:
    """What one side tells the other: ``kind`` names it, ``fields`` are plain JSON values, ``parts`` are bytes."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    parts: tuple[bytes, ...] = ()

    def to_bytes(self) -> bytes:
        """Header length, header, parts."""
        header = json.dumps({"kind": self.kind, "fields": self.fields, "parts": [len(part) for part in self.parts]}).encode()
        return b"".join((_LENGTH.pack(len(header)), header, *self.parts))


def read_message(pipe: BinaryIO) -> Message | None:
    """The next message, or None when the other side is gone."""

    def exactly(count: int) -> bytes:
        data = pipe.read(count)
        if len(data) < count:
            raise EOFError
        return data

    try:
        (length,) = _LENGTH.unpack(exactly(_LENGTH.size))
        kind, fields, sizes = _header(exactly(length), length)
        return Message(kind, fields, tuple(exactly(size) for size in sizes))
    except EOFError:
        return None


async def receive_message(reader: asyncio.StreamReader) -> Message | None:
    """Like :func:`read_message`."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > _MAX_HEADER:
            return None
        kind, fields, sizes = _header(await reader.readexactly(length), length)
        return Message(kind, fields, tuple([await reader.readexactly(size) for size in sizes]))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        return None


def _header(data: bytes, length: int) -> tuple[str, dict[str, Any], list[int]]:
    header = json.loads(data)
    sizes = [int(size) for size in header["parts"]]
    if length > _MAX_HEADER or any(not 0 <= size <= _MAX_PART for size in sizes):
        raise ValueError("a message of unreasonable size")
    return str(header["kind"]), dict(header["fields"]), sizes
