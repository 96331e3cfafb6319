"""``python -m kernels.bench [--shape 480p] [--only TEXT] [--save]``: one table of every operation beside its peers.

With a GPU: median time of device events after warm-up, against the floor that this device's own measured ceilings give, and the
accuracy against fp32. Without one: what each kernel takes on each architecture, compiled offline; no speeds. ``--save`` also
writes the table under ``kernels/bench/results``, with device, driver, versions and date.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from pathlib import Path

import torch

from kernels._triton import HAVE_TRITON, triton
from kernels.bench.cases import CASES, SHAPES, Case, Shape

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Print the table; the exit code is 0 unless something could not be measured or compiled."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], action="append", help="default: all")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains TEXT")
    parser.add_argument("--save", action="store_true", help="write the table under kernels/bench/results")
    arguments = parser.parse_args()
    shapes = [shape for shape in SHAPES if not arguments.shape or shape.name in arguments.shape]
    cases = [case for case in CASES if arguments.only.lower() in case.name.lower()]
    if not HAVE_TRITON:
        print("Triton is not installed: nothing to measure or compile (pip install 'infinite-talk[gpu]')")
        return 1
    on_gpu = torch.cuda.is_available()
    title, rows, failures = _measured(cases, shapes) if on_gpu else _compiled(cases)
    text = "\n".join([*title, "", *rows, *failures]) + "\n"
    print(text, end="")
    if arguments.save:
        device = torch.cuda.get_device_name() if on_gpu else "offline"
        name = f"{device.replace(' ', '-').lower()}-{datetime.date.today().isoformat()}.md"
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / name).write_text(text)
    return 1 if failures else 0


def _measured(cases: list[Case], shapes: list[Shape]) -> tuple[list[str], list[str], list[str]]:
    from kernels.bench.measure import ceilings, measure  # noqa: PLC0415 - needs a GPU

    limits = ceilings()
    known = ", ".join(f"{name} {limit / 1e12:.2f} T/s" for name, limit in limits.items())
    title = [f"# Kernels on {torch.cuda.get_device_name()}", "", _versions(), "", f"Ceilings measured in this run: {known}."]
    rows = [
        "| operation | shape | by | ms | rate | of floor | cosine | rel. L1 | RMSE | worst head |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    failures = []
    for shape in shapes:
        for case in cases:
            lines, failed = measure(case, shape, limits)
            rows += lines
            failures += failed
    return title, rows, failures


def _compiled(cases: list[Case]) -> tuple[list[str], list[str], list[str]]:
    from kernels.offline import recording  # noqa: PLC0415 - needs Triton
    from kernels.settings import ARCHITECTURES  # noqa: PLC0415

    title = [
        "# Kernels compiled offline",
        "",
        _versions(),
        "",
        "No GPU here: these are the compiler's figures at the 480p shape. They are no speeds.",
    ]
    rows = [
        "| operation | architecture | kernel | warps | registers | stack | shared memory | instructions | kinds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    failures: list[str] = []
    for case in cases:
        built = case.build(SHAPES[0], "meta")
        for architecture in ARCHITECTURES:
            if architecture in case.absent:
                continue
            with recording(architecture) as launches:
                built.ours()
            for one in launches:
                kinds = ", ".join(f"{kind} {count}" for kind, count in one.kinds.items())
                rows.append(
                    f"| {case.name} | {architecture} | {one.kernel.strip('_')} | {one.num_warps} | {one.registers} "
                    f"| {one.stack_bytes} | {one.shared_bytes} | {one.instructions} | {kinds} |"
                )
                failures += [f"{case.name} on {architecture}: {one.kernel} {fault}" for fault in one.faults]
            print(f"compiled {case.name} for {architecture}", file=sys.stderr)
    return title, rows, failures


def _versions() -> str:
    parts = [f"{datetime.date.today().isoformat()}", f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    parts.append(f"triton {triton.__version__}")
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, check=False, capture_output=True, text=True, timeout=30).stdout.strip()
        parts.append(f"CUDA {torch.version.cuda}, driver {driver.splitlines()[0] if driver else 'unknown'}")
    return ", ".join(parts) + "."


if __name__ == "__main__":
    sys.exit(main())
