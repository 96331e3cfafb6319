"""What the GPU benches share: whether one can run here, the table that it fills, its parts within the minutes, and clocks."""

from __future__ import annotations

import gc
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
FRAMES = 81
"""Video frames of a chunk."""


class Table:
    """Rows as they come in, printed and written at once, so that a bench cut short leaves a table."""

    def __init__(self, path: Path, head: str) -> None:
        self._path = path
        self._lines = [head, "", "| what | value | note |", "|---|---|---|"]
        path.parent.mkdir(parents=True, exist_ok=True)
        print("\n".join(self._lines), flush=True)
        self._write()

    def row(self, what: str, value: str, note: str = "") -> None:
        """Add a row."""
        self._lines.append(f"| {what} | {value} | {note} |")
        print(self._lines[-1], flush=True)
        self._write()

    def _write(self) -> None:
        self._path.write_text("\n".join(self._lines) + "\n")


class Report:
    """A bench's table and the time that is left for it.

    Args:
        module: of the bench, ``model`` for ``bench.gpu.model``; the table's name begins with it.
        out: folder of the table.
        minutes: after which no part is begun.
        detail: what the table's name says besides the device and the date.
        only: parts that are run; all unless given.
    """

    def __init__(self, module: str, out: Path, minutes: float = 9.0, detail: str = "", only: Sequence[str] | None = None) -> None:
        import torch  # noqa: PLC0415 - absent on machines where benches are skipped

        device, now = torch.cuda.get_device_name(), datetime.now(UTC)
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        file = "-".join(filter(None, (module, name, detail, f"{now:%Y%m%d}")))
        self.table = Table(out / f"{file}.md", _head(module, device, now))
        self.deadline = time.monotonic() + minutes * 60
        self._minutes = minutes
        self._only = only

    def part(self, what: str, run: Callable[[], None]) -> None:
        """Run a part, if there is time; one that fails does not take the others' results with it."""
        import torch  # noqa: PLC0415

        if self._only is not None and what not in self._only:
            return
        if time.monotonic() > self.deadline:
            self.table.row(what, "not run", f"the {self._minutes:g} minutes were over")
            return
        try:
            run()
        except torch.OutOfMemoryError:
            self.table.row(what, "not run", "the GPU's memory is too small")
        except Exception as error:  # whatever it is, it stands in the table
            self.table.row(what, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            gc.collect()
            torch.cuda.empty_cache()


def obstacle() -> str | None:
    """Why no bench can run on this machine, or None."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "there is no NVIDIA GPU here"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    return None


def host_bytes(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0


def device_seconds(run: Callable[[], object], warm: int, runs: int) -> float:
    """Median seconds on the device."""
    import torch  # noqa: PLC0415

    for _ in range(warm):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(runs):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return statistics.median(times)


def _head(module: str, device: str, now: datetime) -> str:
    import torch  # noqa: PLC0415

    def version(package: str) -> str:
        from importlib.metadata import PackageNotFoundError  # noqa: PLC0415
        from importlib.metadata import version as installed  # noqa: PLC0415

        try:
            return installed(package)
        except PackageNotFoundError:
            return "absent"

    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    ).stdout.split("\n")[0]
    packages = ", ".join(f"{package} {version(package)}" for package in ("triton", "diffusers", "transformers"))
    return (
        f"# Bench {module}, {device}\n\n"
        f"{now:%Y-%m-%d %H:%M} UTC. Driver {driver or 'unknown'}, CUDA {torch.version.cuda}, torch {torch.__version__}, "
        f"{packages}, Python {sys.version.split()[0]}. One chunk of {FRAMES} frames, bf16, random weights and inputs. "
        f"By `python -m bench.gpu.{module}`."
    )
