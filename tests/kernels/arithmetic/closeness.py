"""Inputs, and what counts as close: what the arithmetic tests share."""

import os

import pytest
import torch
from torch import Tensor

from kernels._triton import INTERPRETED
from kernels.dispatch import architecture_of

DEVICE = "cpu" if INTERPRETED else "cuda"
# Fixed under the interpreter, fresh on a device unless given.
SEED = int(os.environ.get("KERNEL_TESTS_SEED", "0" if INTERPRETED else str(int.from_bytes(os.urandom(3), "big"))))
# The interpreter multiplies the bits of bf16, so products run in fp16 there.
HALVES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)

HAS_FP8 = INTERPRETED or architecture_of(torch.cuda.get_device_capability()) != "sm_80"
needs_fp8 = pytest.mark.skipif(not HAS_FP8, reason="no fp8 on this device")
EIGHT_BITS = (torch.int8, pytest.param(torch.float8_e4m3fn, marks=needs_fp8))
VALUES_IN_FP8 = (False, pytest.param(True, marks=needs_fp8))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal data, the same for the same shape and seed within a run."""
    generator = torch.Generator("cpu").manual_seed(SEED * 1000 + seed)
    return torch.randn(*shape, generator=generator, device="cpu").to(DEVICE, dtype)


# Half a step of the type, which one rounding costs, and a little for fp32 arithmetic that lands on the other side of a tie.
_STEP = {torch.float32: 2e-6, torch.float16: 1.02 * 2**-11, torch.bfloat16: 1.02 * 2**-8}


def assert_rounds_to(got: Tensor, exact: Tensor, *, slack: float = 1e-5) -> None:
    """``got`` is the fp64 truth after one rounding to its dtype, give or take fp32 arithmetic in between."""
    assert got.shape == exact.shape
    assert torch.isfinite(got).all() == torch.isfinite(exact).all()
    error = (got.double() - exact).abs()
    allowed = exact.abs() * _STEP[got.dtype] + slack
    wrong = error > allowed
    assert not wrong.any(), f"{got[wrong][:3].tolist()} instead of {exact[wrong][:3].tolist()} in {got.dtype}"


def assert_quantises(values: Tensor, scales: Tensor, exact: Tensor) -> None:
    """values * scales is the fp64 truth to one step of the 8-bit type, and the scales use the whole range."""
    assert scales.shape == (exact.shape[0], 1)
    assert scales.dtype == torch.float32
    restored = values.double() * scales.double()
    if values.dtype == torch.int8:
        allowed = 0.51 * scales.double() + exact.abs() * 1e-5
        assert (values.int().abs().amax(-1) == 127)[exact.abs().amax(-1) > 1e-6].all()
    else:
        # e4m3 has 3 bits of mantissa, so half a step is 2^-4; its smallest step is 2^-9.
        allowed = 1.01 * torch.maximum(exact.abs() * 2**-4, scales.double() * 2**-10)
    assert ((restored - exact).abs() <= allowed).all()


def relative_l1(got: Tensor, exact: Tensor) -> float:
    """Sum of |error| over sum of |truth|."""
    return float((got.double() - exact).abs().sum() / exact.abs().sum())


def cosine(got: Tensor, exact: Tensor) -> float:
    """Cosine of the two tensors as vectors."""
    return float(torch.nn.functional.cosine_similarity(got.double().flatten(), exact.flatten(), dim=0))
