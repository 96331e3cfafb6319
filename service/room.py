"""Room on disk: looked at before bytes are accepted, so that a full disk is a clear refusal and never a torn file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_store.errors import InfiniteTalkError
from service.metrics import DISK_FREE
from service.settings import Settings


class Room:
    """The free space below a process's folders, less what requests and jobs under way have been promised.

    Args:
        settings: which folders, and how much must stay free.
    """

    def __init__(self, settings: Settings) -> None:
        self._least = settings.min_free_bytes
        self._places = {"temporary": Path(tempfile.gettempdir())}
        if settings.s3_endpoint is None:
            self._places["data"] = settings.data_dir
        self._promised = 0

    def require(self, size: int = 0) -> None:
        """Room for ``size`` more bytes in every folder, or ``disk_full``."""
        for place, folder in self._places.items():
            free = _free(folder)
            DISK_FREE.labels(place).set(free)
            if free - self._promised - size < self._least:
                raise InfiniteTalkError(
                    "disk_full",
                    f"There is no room for {size} more bytes here: try again later; the operator must free space in the {place} "
                    "folder, or lower INFINITETALK_MIN_FREE_BYTES.",
                )

    @contextmanager
    def promised(self, size: int) -> Iterator[None]:
        """Keep ``size`` bytes for the caller until the block ends; ``disk_full`` if they are not there."""
        self.require(size)
        self._promised += size
        try:
            yield
        finally:
            self._promised -= size


def _free(folder: Path) -> int:
    while not folder.exists():  # what is made at the first use stands on its parent's disk
        folder = folder.parent
    return shutil.disk_usage(folder).free
