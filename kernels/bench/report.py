"""What was measured, in Markdown, and the versions that it was measured with."""

from __future__ import annotations

import datetime
import platform
import subprocess
from collections.abc import Iterable

import torch

from kernels._triton import triton
from kernels.bench.measure import Result, Row
from kernels.bench.verdict import verdicts


def speed_table(results: Iterable[Result]) -> list[str]:
    """Every call's time, rate, share of the floor and accuracy, in Markdown."""
    table = [
        "| operation | shape | by | ms | rate | of floor | cosine | rel. L1 | RMSE | worst head |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for row in result.rows:
            cells = " | ".join(_cells(row, bytes_a_second=result.case.rate == "bytes"))
            table.append(f"| {result.case.name} | {result.shape.name} | {row.by} | {cells} |")
    return table


def _cells(row: Row, *, bytes_a_second: bool) -> list[str]:
    if row.obstacle is not None:
        return [f"cannot run: {row.obstacle}", *[""] * 6]
    rate = f"{row.rate / 1e9:.0f} GB/s" if bytes_a_second else f"{row.rate / 1e12:.0f} TFLOP/s"
    seen = row.accuracy
    if seen is None:
        accuracy = [""] * 4
    else:
        worst = "" if seen.worst_head is None else f"{seen.worst_head:.6f}"
        accuracy = [f"{seen.cosine:.6f}", f"{seen.relative_l1:.5f}", f"{seen.rmse:.2e}", worst]
    return [f"{row.milliseconds:.3f}", rate, f"{row.share:.0%}", *accuracy]


def bar_table(results: Iterable[Result]) -> list[str]:
    """Every demand, what was found, and whether it is met, in Markdown."""
    table = ["## Bars", "", "| operation | shape | must be | is | |", "|---|---|---|---|---|"]
    words = {True: "met", False: "**missed**", None: "not judged"}
    for result in results:
        for demand, found, met in verdicts(result):
            table.append(f"| {result.case.name} | {result.shape.name} | {demand} | {found} | {words[met]} |")
    return table


def versions() -> str:
    """Date, Python, torch, Triton, and on a GPU CUDA and driver, in a sentence."""
    parts = [f"{datetime.date.today().isoformat()}", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    parts.append(f"triton {triton.__version__}")
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, check=False, capture_output=True, text=True, timeout=30).stdout.strip()
        parts.append(f"CUDA {torch.version.cuda}, driver {driver.splitlines()[0] if driver else 'unknown'}")
    return ", ".join(parts) + "."
