"""A bound on what a process may allocate, for the parts of its work that strangers' files decide about."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2

from model_store.errors import InfiniteTalkError

_STATUS = Path("/proc/self/status")


@contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Let the process take ``more`` bytes than it has now; ``memory_exceeded`` when the work in the block asks for more.

    The kernel refuses the allocation (RLIMIT_DATA, setrlimit(2)). Code that does not hear of it ends the process, which is a
    crash like any other. Where the kernel has no such account, nothing is bounded.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_held() + more, before[1]))
    try:
        yield
    except MemoryError:
        raise _exceeded(more) from None
    except cv2.error as error:
        if error.code != cv2.Error.STS_NO_MEM:
            raise
        raise _exceeded(more) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _held() -> int:
    found = re.search(r"VmData:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0


def _exceeded(more: int) -> InfiniteTalkError:
    return InfiniteTalkError(
        "memory_exceeded",
        f"The files need more than the {more >> 20} MiB of memory a video may use: use smaller ones.",
    )
