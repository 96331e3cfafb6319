"""Weight files opened as tables of tensors: safetensors mapped one tensor at a time, pickles only as plain tensors."""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.safetensors_header import damaged, read_header

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class TensorFile(Protocol):
    """A weight file."""

    @property
    def file(self) -> str:
        """What to call it in errors."""

    def __iter__(self) -> Iterator[str]:
        """Names in the order in which reading them is quickest."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, known without reading it."""

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU, in the file's dtype. It may be a view of the file: copy it to keep it beyond the next read."""


class SafetensorsFile:
    """A ``.safetensors`` file. Each read maps that tensor's bytes alone, so that no more than one is in memory at a time."""

    def __init__(self, path: Path, file: str | None = None) -> None:
        self.file = file or path.name
        self._path = path
        self._entries = read_header(path, self.file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        dtype = _DTYPES[entry.dtype]
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=dtype)
        aligned = entry.start - entry.start % mmap.ALLOCATIONGRANULARITY
        with self._path.open("rb") as stream:
            # A private map, because torch wants memory it may write to; nothing is ever written.
            mapped = mmap.mmap(stream.fileno(), entry.stop - aligned, offset=aligned, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        raw = torch.frombuffer(mapped, dtype=torch.uint8, offset=entry.start - aligned)
        if raw.data_ptr() % dtype.itemsize:  # the format does not promise alignment
            raw = raw.clone()
        return raw.view(dtype).view(entry.shape)


class PickleFile:
    """A ``.pth`` or ``.bin`` file of plain tensors, mapped where its format allows; nothing in it is ever executed."""

    def __init__(self, path: Path, file: str | None = None) -> None:
        self.file = file or path.name
        try:
            try:
                content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError as error:
                if "mmap can only be used with files saved with" not in str(error):
                    raise
                content = torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6
        except FileNotFoundError as error:
            raise InfiniteTalkError(
                "weights_missing", f"{self.file} is missing: fetch it with `infinitetalk models pull`."
            ) from error
        except pickle.UnpicklingError as error:
            raise InfiniteTalkError(
                "weights_unsafe",
                f"{self.file} holds more than plain tensors, or is damaged, and was not opened: use the published file "
                "(`infinitetalk models pull`) or convert it to safetensors.",
            ) from error
        except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            raise damaged(self.file, "it cannot be read as a torch file") from error
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            raise damaged(self.file, "it is not a table of tensors")
        self._tensors: dict[str, Tensor] = {str(name): value for name, value in content.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def open_tensor_file(path: Path, file: str | None = None) -> TensorFile:
    """A weight file by its ending.

    Args:
        path: a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file.
        file: what to call it in errors; its name unless given.

    Raises:
        InfiniteTalkError: ``weights_missing``, ``weights_damaged``, ``weights_unsafe``.
    """
    return SafetensorsFile(path, file) if path.suffix == ".safetensors" else PickleFile(path, file)
