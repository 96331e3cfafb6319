"""The kernels on a real device: their arithmetic on fresh data, and production shapes run twice and held to their bars."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("torch or triton is not installed (extra: gpu)", allow_module_level=True)

import torch

from kernels.bench.case import SHAPES, Built, Case
from kernels.bench.cases import CASES
from kernels.bench.measure import Result, Row, accuracy, served
from kernels.bench.verdict import TORCH_IN_BF16, verdicts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]

ROOT = Path(__file__).parents[2]


def test_arithmetic_on_the_device() -> None:
    """Every test that the interpreter runs, in 16-bit types it cannot, with fresh inputs and poisoned outputs."""
    environment = {**os.environ, "KERNEL_TESTS_ON": "device"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/kernels/arithmetic")]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, f"{run.stdout[-8000:]}\n{run.stderr[-2000:]}"


def tensors(result: object) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)  # type: ignore[call-overload]


def assert_is_exact_enough(case: Case, built: Built, got: torch.Tensor, exact: torch.Tensor) -> None:
    """The bench's own verdicts on accuracy; speed is the bench's to judge, not a test's."""
    assert built.sample is not None
    torch_s = [
        Row(name, accuracy=accuracy(built.sample(peer()), exact)) for name, peer in built.peers.items() if name in TORCH_IN_BF16
    ]
    own = accuracy(exact.bfloat16(), exact).error
    unhurried = dataclasses.replace(case, bar=dataclasses.replace(case.bar, share=0.0, times=()))
    result = Result(unhurried, SHAPES[0], (Row("ours", accuracy=accuracy(got, exact)), *torch_s), own)
    missed = [verdict for verdict in verdicts(result) if not verdict.met]
    assert not missed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_production_shapes(case: Case) -> None:
    if not served(case):
        pytest.skip("this device has no fp8")
    seed = int.from_bytes(os.urandom(4), "big")

    def fresh() -> Built:
        torch.manual_seed(seed)
        return case.build(SHAPES[0], "cuda")

    first = tensors(fresh().ours())
    built = fresh()
    exact = None if built.exact is None else built.exact()
    result = built.ours()
    for one, other in zip(first, tensors(result), strict=True):
        assert torch.isfinite(one.float()).all()
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), "two runs differ: a race"
    if built.sample is not None and exact is not None:
        assert_is_exact_enough(case, built, built.sample(result), exact)
