"""How long the store takes, by operation and outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from service.metrics import STORE_DURATION
from service.storage.store import ObjectMissing, Store, StoreUnavailable

OPERATIONS = ("get", "read", "stat", "put", "upload", "create", "copy", "delete")

P = ParamSpec("P")
T = TypeVar("T")


def measured(store: Store) -> Store:
    """The store, with every call of :data:`OPERATIONS` measured; of ``read``, the time until it begins."""
    for operation in OPERATIONS:
        setattr(store, operation, _timed(operation, getattr(store, operation)))
    return store


def _timed(operation: str, call: Callable[P, T]) -> Callable[P, T]:
    @wraps(call)
    def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        began, outcome = time.perf_counter(), "ok"
        try:
            return call(*args, **kwargs)
        except ObjectMissing:
            outcome = "missing"
            raise
        except StoreUnavailable:
            outcome = "unavailable"
            raise
        finally:
            STORE_DURATION.labels(operation, outcome).observe(time.perf_counter() - began)

    return timed
