"""``python -m kernels.bench [--shape 480p] [--only TEXT] [--save]``: every operation beside its peers, and every bar.

With a GPU: median time of device events after warm-up, against the floor that this device's own measured ceilings give, the
accuracy against fp32, and a second table of what each operation must reach and whether it does. Without one: what each kernel
takes on each architecture, compiled offline; no speeds. ``--save`` also writes the tables under ``kernels/bench/results``, with
device, driver, versions and date.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from kernels._triton import HAVE_TRITON
from kernels.bench.case import SHAPES, Case, Shape
from kernels.bench.cases import CASES
from kernels.bench.measure import Result, ceilings, measure, served
from kernels.bench.report import bar_table, speed_table, versions

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Print the tables; the exit code is 0 unless something of ours could not be measured or compiled."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], action="append", help="default: all")
    parser.add_argument("--only", default="", metavar="TEXT", help="operations whose name contains TEXT")
    parser.add_argument("--save", action="store_true", help="write the tables under kernels/bench/results")
    arguments = parser.parse_args()
    shapes = [shape for shape in SHAPES if not arguments.shape or shape.name in arguments.shape]
    cases = [case for case in CASES if arguments.only.lower() in case.name.lower()]
    if not HAVE_TRITON:
        print("Triton is not installed: nothing to measure or compile (pip install 'infinite-talk[gpu]')")
        return 1
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else "offline"
    path = RESULTS / f"{device.replace(' ', '-').lower()}-{datetime.date.today().isoformat()}.md"
    text, failures = "", list[str]()
    # The tables so far, case by case: a run that is cut short leaves what it found.
    for lines, failures in _measured(cases, shapes) if on_gpu else _compiled(cases):
        text = "\n".join([*lines, *failures]) + "\n"
        if arguments.save:
            RESULTS.mkdir(exist_ok=True)
            path.write_text(text)
    print(text, end="")
    return 1 if failures else 0


def _measured(cases: list[Case], shapes: list[Shape]) -> Iterator[tuple[list[str], list[str]]]:
    limits = ceilings()
    known = ", ".join(f"{name} {limit / 1e12:.2f} T/s" for name, limit in limits.items())
    title = [f"# Kernels on {torch.cuda.get_device_name()}", "", versions(), "", f"Ceilings measured in this run: {known}.", ""]
    results: list[Result] = []
    failures: list[str] = []
    for shape in shapes:
        for case in cases:
            result = measure(case, shape, limits)
            results.append(result)
            if result.rows[0].obstacle is not None and served(case):
                failures.append(f"{case.name} at {shape.name} failed: {result.rows[0].obstacle}")
            print(f"measured {case.name} at {shape.name}", file=sys.stderr)
            yield [*title, *speed_table(results), "", *bar_table(results)], failures


def _compiled(cases: list[Case]) -> Iterator[tuple[list[str], list[str]]]:
    from kernels.offline import recording  # noqa: PLC0415 - needs Triton
    from kernels.settings import ARCHITECTURES  # noqa: PLC0415

    lines = [
        "# Kernels compiled offline",
        "",
        versions(),
        "",
        "No GPU here: these are the compiler's figures at the 480p shape. They are no speeds.",
        "",
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
                lines.append(
                    f"| {case.name} | {architecture} | {one.kernel.strip('_')} | {one.num_warps} | {one.registers} "
                    f"| {one.stack_bytes} | {one.shared_bytes} | {one.instructions} | {kinds} |"
                )
                failures += [f"{case.name} on {architecture}: {one.kernel} {fault}" for fault in one.faults]
            print(f"compiled {case.name} for {architecture}", file=sys.stderr)
        yield lines, failures


if __name__ == "__main__":
    sys.exit(main())
