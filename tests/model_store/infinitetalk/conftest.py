"""One thread is quickest for models this small, most of all when the machine is busy.

What ``test_forward_interpreted.py`` runs in a process of its own is collected there alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

collect_ignore = [] if "KERNEL_TESTS_ON" in os.environ else ["interpreted"]


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
