"""The bench of several GPUs runs through every division: here with the tiny model on two processes of the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch

from model_store.infinitetalk import tiny_random

ROOT = Path(__file__).parents[3]


def tiny(_: int) -> tuple[object, torch.device]:
    torch.set_num_threads(1)
    return tiny_random.transformer(), torch.device("cpu")


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:]
from bench.gpu.several import measure
import test_several_bench
if __name__ == "__main__":
    measure(lambda *row: print("|".join(row)), 2, test_several_bench.tiny, (16, 3, 8, 8), 1)
"""


def test_every_division_is_timed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(ROOT), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [
        "1 branches: 1 groups of 1", "1 branches: 1 groups of 2",
        "2 branches: 1 groups of 1", "2 branches: 2 groups of 1", "2 branches: 1 groups of 2",
        "3 branches: 1 groups of 1", "3 branches: 2 groups of 1", "3 branches: 1 groups of 2",
    ]  # fmt: skip
    assert [row[0] for row in rows if "chosen" in row[2]] == [
        "1 branches: 1 groups of 2", "2 branches: 2 groups of 1", "3 branches: 1 groups of 2",
    ]  # fmt: skip
