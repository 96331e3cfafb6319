"""The kernels on a real device: their arithmetic on fresh data, and production shapes run twice and held to their bars."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("torch or triton is not installed (extra: gpu)", allow_module_level=True)

import torch
import torch.nn.functional as F

from kernels import dispatch
from kernels.bench.cases import CASES, SHAPES, Built, Case

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


def served(case: Case) -> bool:
    architecture = dispatch.architecture(torch.empty(0, device="cuda"))
    return architecture is not None and architecture not in case.absent


def assert_meets_its_bar(case: Case, built: Built, got: torch.Tensor, exact: torch.Tensor) -> None:
    got, exact = got.double(), exact.double()
    if case.rate in ("int8", "fp8") or "-> fp8" in case.name or "-> int8" in case.name:
        sixteen_bit_values = "int8 + bf16" in case.name
        cosine = F.cosine_similarity(got.flatten(), exact.flatten(), dim=0)
        assert cosine >= (0.999 if sixteen_bit_values else 0.998)
        assert (got - exact).abs().sum() / exact.abs().sum() <= (0.03 if sixteen_bit_values else 0.07)
        return
    torch_s = next((peer for name, peer in built.peers.items() if "sdpa" in name), None)
    own = exact.bfloat16().double() if torch_s is None or built.sample is None else built.sample(torch_s()).double()
    assert (got - exact).norm() <= 2 * (own - exact).norm() + 1e-6 * exact.norm()


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
        assert_meets_its_bar(case, built, built.sample(result), exact)
