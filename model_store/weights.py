"""Weights on this machine: fetched once into a cache, resumable, checked, and found again by component.

A cache holds ``<owner>/<repository>/<path>`` and ``checked.json``: for every file its size, its SHA-256 as computed while
it came in, and where it came from. A file whose checksum is publicly recorded (``catalogue``), or told by the source,
must have it; any other must have the one that its first pull recorded (trust on first use).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model_store.catalogue import Component, WeightFile
from model_store.errors import InfiniteTalkError
from model_store.infinitetalk.safetensors_header import read_header
from model_store.weight_sources import BLOCK, RECORD, Interrupted, Remote, Source

_ATTEMPTS = 6
_PAUSE = 1.0  # seconds after the first broken connection, doubled each time


@dataclass(frozen=True)
class Step:
    """Where a pull or a check stands: ``done`` of ``total`` bytes of ``file``, which is number ``index`` of ``count``."""

    file: str
    index: int
    count: int
    done: int
    total: int


OnStep = Callable[[Step], None]


def no_step(_: Step) -> None:
    """The listener of those who do not listen."""


def cache_folder() -> Path:
    """The cache: ``INFINITETALK_MODELS``, or ``infinitetalk/models`` in the user's cache folder."""
    chosen = os.environ.get("INFINITETALK_MODELS")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infinitetalk" / "models"


class WeightCache:
    """The weights in one folder.

    Args:
        folder: made when something is pulled; :func:`cache_folder` unless given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()

    def path(self, component: Component, file: WeightFile) -> Path:
        """Where a file lies, whether it is there or not."""
        return self.folder / component.repository / file.path

    def missing(self, component: Component) -> list[WeightFile]:
        """The files that are not there yet, or not whole."""
        return [file for file in component.files if not self._present(component, file)]

    def files(self, component: Component) -> list[Path]:
        """Every file of a component, ready to be opened.

        Raises:
            InfiniteTalkError: ``weights_missing``.
        """
        missing = self.missing(component)
        if missing:
            raise InfiniteTalkError(
                "weights_missing",
                f"{component.name} is not complete: {missing[0].path} is missing. Fetch it with "
                f"`infinitetalk models pull {component.name}`.",
            )
        return [self.path(component, file) for file in component.files]

    def pull(self, components: Sequence[Component], source: Source, on_step: OnStep = no_step) -> None:
        """Fetch what is missing; what an earlier pull left half is continued.

        Raises:
            InfiniteTalkError: ``disk_full``, ``pull_running``, ``weights_mismatch``, ``weights_damaged``, or as the source does.
        """
        wanted = [(component, file) for component in components for file in self.missing(component)]
        if not wanted:
            return
        with self._locked():
            remotes = [self._patiently(partial(source.look, component, file)) for component, file in wanted]
            self._require_room(wanted, remotes)
            for index, ((component, file), remote) in enumerate(zip(wanted, remotes, strict=True)):

                def told(done: int, name: str = file.path, i: int = index, total: int = remote.size) -> None:
                    on_step(Step(name, i, len(wanted), done, total))

                self._fetch(component, file, remote, source, told)

    def verify(self, components: Sequence[Component], on_step: OnStep = no_step) -> list[InfiniteTalkError]:
        """Read every file again and hold it against its size, checksum and header; the problems found, none if all is well."""
        problems: list[InfiniteTalkError] = []
        everything = [(component, file) for component in components for file in component.files]
        for index, (component, file) in enumerate(everything):
            path = self.path(component, file)
            if not path.is_file():
                problems.append(
                    InfiniteTalkError(
                        "weights_missing",
                        f"{component.name}: {file.path} is missing. Fetch it with `infinitetalk models pull {component.name}`.",
                    )
                )
                continue
            total = path.stat().st_size
            try:
                self._check_header(component, file, path)
                digest = hashlib.sha256()
                done = 0
                with path.open("rb") as stream:
                    while block := stream.read(BLOCK):
                        digest.update(block)
                        done += len(block)
                        on_step(Step(file.path, index, len(everything), done, total))
                recorded = self._record().get(self._key(component, file), {})
                self._check(component, file, total, digest.hexdigest(), file.size, file.sha256 or recorded.get("sha256"))
            except InfiniteTalkError as problem:
                problems.append(problem)
        return problems

    def _present(self, component: Component, file: WeightFile) -> bool:
        path = self.path(component, file)
        if not path.is_file():
            return False
        size = file.size or self._record().get(self._key(component, file), {}).get("size")
        return size is None or path.stat().st_size == size

    def _fetch(self, component: Component, file: WeightFile, remote: Remote, source: Source, told: Callable[[int], None]) -> None:
        path = self.path(component, file)
        part = path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.size is not None and remote.size != file.size:
            raise self._mismatch(component, file, f"{source.name} has {remote.size} bytes of it, {file.size} were published")
        if part.exists() and part.stat().st_size > remote.size:
            part.unlink()
        digest = hashlib.sha256()
        with part.open("ab+") as stream:
            stream.seek(0)
            while block := stream.read(BLOCK):
                digest.update(block)

            def go_on() -> None:
                for block in source.read(component, file, stream.tell()):
                    stream.write(block)
                    digest.update(block)
                    told(stream.tell())
                if stream.tell() < remote.size:
                    raise Interrupted

            if stream.tell() < remote.size:
                self._patiently(go_on, stream.tell)
            stream.flush()
            os.fsync(stream.fileno())
        told(remote.size)
        expected = file.sha256 or remote.sha256 or self._record().get(self._key(component, file), {}).get("sha256")
        try:
            self._check(component, file, part.stat().st_size, digest.hexdigest(), remote.size, expected)
            self._check_header(component, file, part)
        except InfiniteTalkError:
            part.unlink()
            raise
        part.replace(path)
        record = self._record()
        record[self._key(component, file)] = {
            "size": remote.size,
            "sha256": digest.hexdigest(),
            "checked_against": "catalogue" if file.sha256 else "source" if remote.sha256 else "nothing: trusted on first use",
            "source": source.name,
            "version": remote.version,
        }
        self._write_record(record)

    def _patiently(self, act: Callable[[], Any], progress: Callable[[], int] = lambda: 0) -> Any:
        """Do it again when the connection breaks; attempts count only while nothing new comes in."""
        failures, reached = 0, progress()
        while True:
            try:
                return act()
            except Interrupted as error:
                failures = 1 if progress() > reached else failures + 1
                reached = progress()
                if failures >= _ATTEMPTS:
                    raise InfiniteTalkError(
                        "source_unreachable",
                        "The connection to the source keeps breaking: run the command again later, it goes on where it stopped.",
                    ) from error
                time.sleep(_PAUSE * 2 ** (failures - 1))

    def _check(
        self, component: Component, file: WeightFile, size: int, sha256: str, wanted_size: int | None, wanted_sha256: str | None
    ) -> None:
        if wanted_size is not None and size != wanted_size:
            raise self._mismatch(component, file, f"it has {size} bytes instead of {wanted_size}")
        if wanted_sha256 is not None and sha256 != wanted_sha256:
            raise self._mismatch(component, file, f"its SHA-256 is {sha256} instead of {wanted_sha256}")

    def _check_header(self, component: Component, file: WeightFile, path: Path) -> None:
        if file.path.endswith(".safetensors"):
            read_header(path, f"{component.repository}/{file.path}")

    def _mismatch(self, component: Component, file: WeightFile, why: str) -> InfiniteTalkError:
        return InfiniteTalkError(
            "weights_mismatch",
            f"{component.repository}/{file.path} is not what was expected: {why}. Delete it and run "
            f"`infinitetalk models pull {component.name}`; if it happens again, do not use that source.",
        )

    def _require_room(self, wanted: Sequence[tuple[Component, WeightFile]], remotes: Sequence[Remote]) -> None:
        there = sum(
            part.stat().st_size
            for component, file in wanted
            if (part := self.path(component, file).with_name(Path(file.path).name + ".part")).exists()
        )
        needed = sum(remote.size for remote in remotes) - there
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InfiniteTalkError(
                "disk_full",
                f"{needed / 1e9:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free: make room, or set "
                "INFINITETALK_MODELS to a folder on a larger disk.",
            )

    def _key(self, component: Component, file: WeightFile) -> str:
        return f"{component.repository}/{file.path}"

    def _record(self) -> dict[str, dict[str, Any]]:
        try:
            record = json.loads((self.folder / RECORD).read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise InfiniteTalkError(
                "record_damaged",
                f"{RECORD} in the model cache cannot be read: delete it; files are then checked by their size only.",
            ) from error
        return record if isinstance(record, dict) else {}

    def _write_record(self, record: dict[str, dict[str, Any]]) -> None:
        fresh = self.folder / f"{RECORD}.new"
        fresh.write_text(json.dumps(record, indent=1, sort_keys=True))
        fresh.replace(self.folder / RECORD)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One pull at a time in a folder; the lock goes with the process, however it ends."""
        import fcntl  # noqa: PLC0415 - not on Windows, where only pulling needs it

        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InfiniteTalkError(
                    "pull_running", "Another pull into this cache is running: wait for it, or choose another folder."
                ) from error
            yield
