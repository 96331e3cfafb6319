"""The table of contents of a safetensors file, read and checked without torch.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes back to back
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from model_store.errors import InfiniteTalkError

BITS: dict[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Bits an element of each dtype that is read."""

_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its dtype by the format's name, its shape, and where its bytes lie from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def damaged(file: str, why: str) -> InfiniteTalkError:
    """The error for a weight file that is not what it should be."""
    return InfiniteTalkError(
        "weights_damaged",
        f"{file} is damaged: {why}. Delete it and fetch it again with `infinitetalk models pull`.",
    )


def read_header(path: Path, file: str | None = None) -> dict[str, TensorEntry]:
    """Every tensor in the file by name, in the order of its bytes.

    Args:
        path: the file.
        file: what to call it in errors; its name unless given.

    Raises:
        InfiniteTalkError: ``weights_missing``; ``weights_damaged`` where the header cannot be read, where sizes and shapes
            disagree, or where the file is shorter or longer than its header says.
    """
    file = file or path.name
    try:
        with path.open("rb") as stream:
            return _parse(stream, path.stat().st_size, file)
    except FileNotFoundError as error:
        raise InfiniteTalkError("weights_missing", f"{file} is missing: fetch it with `infinitetalk models pull`.") from error


def _parse(stream: BinaryIO, size: int, file: str) -> dict[str, TensorEntry]:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > _MAX_HEADER or 8 + length > size:
        raise damaged(file, f"it has {size} bytes and no whole header")
    try:
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        base = 8 + length
        entries = {
            name: TensorEntry(
                str(e["dtype"]), tuple(map(int, e["shape"])), base + e["data_offsets"][0], base + e["data_offsets"][1]
            )
            for name, e in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(file, "its header is not a safetensors header") from error
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    position = base
    for name, entry in ordered.items():
        if entry.dtype not in BITS:
            raise damaged(file, f"tensor {name} has the dtype {entry.dtype}, which is not read")
        if entry.start != position or entry.stop - entry.start != math.prod(entry.shape) * BITS[entry.dtype] // 8:
            raise damaged(file, f"the bytes of tensor {name} do not fit its shape {list(entry.shape)}")
        position = entry.stop
    if position != size:
        raise damaged(file, f"it has {size} bytes, its header asks for {position}")
    return ordered
