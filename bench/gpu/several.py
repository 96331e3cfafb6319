"""Steps of the full-size model on all GPUs of this machine, with random weights, divided in every way that can be.

    python -m bench.gpu.several [--repeats 3] [--out FOLDER]

For each number of branches a row for each division: seconds a step, beside one GPU computing all branches in the same run, and
whether it is the one that the engine would choose. ``division.EXCHANGE`` is to be set by what this finds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gpu import report

Row = Callable[[str, str, str], None]

SHAPE = (16, 21, 56, 112)  # 448 x 896


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description="Bench of several GPUs.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where the table is written")
    arguments = parser.parse_args()
    reason = report.obstacle()
    if reason is None:
        import torch  # noqa: PLC0415 - absent on machines where this is skipped

        if torch.cuda.device_count() < 2:
            reason = "there is one GPU, and two are needed"
    if reason is not None:
        print(f"bench of several GPUs skipped: {reason}")
        return
    processes = torch.cuda.device_count()
    bench = report.Report("several", arguments.out, detail=f"{processes}x")
    bench.part("divisions", lambda: measure(bench.table.row, processes, full_size, SHAPE, arguments.repeats))


def full_size(rank: int) -> tuple[Any, Any]:
    """The transformer with random weights on a GPU of its own."""
    import torch  # noqa: PLC0415

    from bench.gpu.engine import random_transformer  # noqa: PLC0415

    torch.cuda.set_device(rank)
    return random_transformer("whole"), torch.device("cuda", rank)


def measure(
    row: Row,
    processes: int,
    build: Callable[[int], tuple[Any, Any]],
    shape: tuple[int, int, int, int],
    repeats: int,
) -> None:
    """Time every division.

    Args:
        row: takes what was measured, seconds, and a note.
        processes: how many compute.
        build: rank -> transformer and its device; importable, for every process calls it.
        shape: of the latent, ``[16, T, h, w]``.
        repeats: of every step, after one that is not counted.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            context.Process(target=_member, args=(rank, processes, meeting, build, shape, repeats, None), daemon=True)
            for rank in range(1, processes)
        ]
        for other in others:
            other.start()
        try:
            _member(0, processes, meeting, build, shape, repeats, row)
        finally:
            for other in others:
                other.join(60)
                other.kill()


def _member(
    rank: int,
    processes: int,
    meeting: Path,
    build: Callable[[int], tuple[Any, Any]],
    shape: tuple[int, ...],
    repeats: int,
    row: Row | None,
) -> None:
    """One process: all go through the same divisions in the same order, and the first tells each one's time."""
    import torch  # noqa: PLC0415

    from model_store.infinitetalk.attention import EXACT  # noqa: PLC0415
    from model_store.infinitetalk.crew import Member, RoundOrder, TakeOrder  # noqa: PLC0415
    from model_store.infinitetalk.division import divide, divisions  # noqa: PLC0415
    from model_store.infinitetalk.guidance import Guidance  # noqa: PLC0415
    from model_store.infinitetalk.transformer import PATCH  # noqa: PLC0415

    transformer, device = build(rank)
    config = transformer.config
    member = Member(transformer, device, rank, processes, meeting)
    frames = 4 * (shape[1] - 1) + 1
    windows = (1, frames, 5, config.audio_blocks, config.audio_channels)
    shapes = {
        "prompt": (100, config.text_dim), "negative": (100, config.text_dim), "speech": windows, "silence": windows,
        "clip": (257, config.image_dim), "condition": (20, *shape[1:]),
    }  # fmt: skip
    told = {name: torch.randn(one) for name, one in shapes.items()}
    member.begin(TakeOrder({name: (one, torch.float32) for name, one in shapes.items()}, False), told if rank == 0 else None)
    latent = torch.randn(shape) if rank == 0 else None
    tokens = shape[2] * shape[3] // PATCH**2
    for guidance in (Guidance(1, 1), Guidance(1, 2), Guidance(3, 2)):
        branches = guidance.branches
        chosen = divide(processes, len(branches), config.num_heads, tokens)
        alone = 0.0
        for division in divisions(processes, len(branches), config.num_heads, tokens):
            seconds = []
            for _ in range(repeats + 1):
                began = time.monotonic()
                for start in range(0, len(branches), division.groups):
                    member.compute(
                        RoundOrder(tuple(shape), 700.0, branches[start : start + division.groups], False, EXACT, division), latent
                    )
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.monotonic() - began)
            took = min(seconds[1:])
            alone = alone or took
            if row is not None:
                note = f"{alone / took:.2f} times one GPU{', chosen' if division == chosen else ''}"
                row(f"{len(branches)} branches: {division.groups} groups of {division.share}", f"{took:.3f} s", note)
    member.leave()


if __name__ == "__main__":
    main()
