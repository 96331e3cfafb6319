"""Keeping what was derived from a tensor for exactly as long as it stays true."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Entry(Generic[Value]):
    source: weakref.ref[Tensor]
    version: int | None
    value: Value


class TensorMemo(Generic[Value]):
    """Values by the tensor they were made from.

    A value is forgotten when its tensor is gone, when the tensor was changed in place, or when ``capacity`` newer ones
    came. Tensors made under ``torch.inference_mode`` do not count their changes: never change one in place that was
    used as a source, make a new one.

    Args:
        capacity: how many values are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[int, _Entry[Value]] = OrderedDict()

    def __reduce__(self) -> tuple[object, ...]:
        return TensorMemo, (self._capacity,)  # copies of a model start with nothing remembered

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, source: Tensor, make: Callable[[Tensor], Value]) -> Value:
        """``make(source)``, or what it gave the last time if ``source`` is the same tensor and unchanged."""
        key = id(source)
        version = None if source.is_inference() else source._version
        entry = self._entries.get(key)
        if entry is not None and entry.source() is source and entry.version == version:
            self._entries.move_to_end(key)
            return entry.value
        self._entries.pop(key, None)
        while len(self._entries) >= self._capacity:
            self._entries.popitem(last=False)
        value = make(source)
        self._entries[key] = _Entry(weakref.ref(source, lambda gone: self._drop(key, gone)), version, value)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def _drop(self, key: int, gone: weakref.ref[Tensor]) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.source is gone:
            del self._entries[key]
