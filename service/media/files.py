"""Files as users name them: opened only when they are plain files, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from model_store.errors import InfiniteTalkError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file for reading; OSError for everything else (a pipe would make the reader wait for ever)."""
    # O_NONBLOCK so that opening a pipe without a writer returns; it changes nothing for plain files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a plain file")
    return os.fdopen(descriptor, "rb")


def require_writable(output: Path) -> None:
    """Refuse an output that could not be written, before any work is done.

    Raises:
        InfiniteTalkError: ``output_folder_missing`` or ``output_not_writable``, with ``param="output"``.
    """
    folder = output.parent
    if output.is_dir():
        raise _not_writable(output, "it is a folder; name a file in it")
    if not folder.is_dir():
        raise InfiniteTalkError(
            "output_folder_missing",
            f"There is no folder {str(folder)!r}: make it first, or choose another place.",
            param="output",
        )
    if output.exists() and not output.is_file():
        raise _not_writable(output, "it is not a plain file; choose another name")
    try:
        # Permissions, read-only disks and network shares are told apart only by trying.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise output_error(output, error) from error


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what would need ``needed`` bytes in ``folder``; ``no_space`` with ``param="output"``."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InfiniteTalkError(
            "no_space",
            f"About {_size(needed)} are needed in {str(folder)!r}, {_size(free)} are free: make room, or choose another place.",
            param="output",
        )


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A temporary name beside ``output`` to write to, renamed to ``output`` at the end, or removed when anything is raised.

    Raises:
        InfiniteTalkError: ``no_space`` or ``output_not_writable``, for an OSError from the body as well.
    """
    try:
        # The ending stays, since writers choose their format by it.
        descriptor, name = tempfile.mkstemp(prefix=f".{output.stem[:64]}.", suffix=f".part{output.suffix}", dir=output.parent)
        os.close(descriptor)
    except OSError as error:
        raise output_error(output, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(output)
    except OSError as error:
        raise output_error(output, error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def output_error(output: Path, error: OSError) -> InfiniteTalkError:
    """What an OSError while writing ``output`` means to the user."""
    if error.errno in _FULL:
        return InfiniteTalkError(
            "no_space", f"There is no space left to write {output.name!r}: make room, or choose another place.", param="output"
        )
    return _not_writable(output, f"{error.strerror or error}; choose another place, or change its permissions")


def _not_writable(output: Path, reason: str) -> InfiniteTalkError:
    return InfiniteTalkError("output_not_writable", f"{str(output)!r} cannot be written: {reason}.", param="output")


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
