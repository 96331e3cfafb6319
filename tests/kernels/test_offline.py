"""Every shipped launch setting compiles for its architecture within its means.

No spills, enough shared memory, the right units, and on Hopper matrix instructions that need not wait for one another.

Compiled at production shape exactly as a call would, without a GPU. A handful runs by default; the whole grid is ``slow``.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, no_type_check

import pytest

if importlib.util.find_spec("torch") is None or importlib.util.find_spec("triton") is None:
    pytest.skip("torch or triton is not installed (extra: gpu)", allow_module_level=True)

import torch

from kernels import settings
from kernels._triton import jit, launch, tl
from kernels.bench.case import SHAPES, Case
from kernels.bench.cases import CASES
from kernels.offline import recording
from kernels.settings import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from kernels.offline import Resources

# The tightest of each kind: most registers, most shared memory, each matrix unit.
_QUICK = {
    ("gate + residual + LN + modulate -> int8", "sm_80"),
    ("RMS norm + RoPE of q and k", "sm_90"),
    ("text + image attention", "sm_89"),
    ("text + image attention", "sm_90"),
    ("self-attention, Triton with log-sum-exp", "sm_80"),
    ("self-attention, Triton with log-sum-exp", "sm_90"),
    ("self-attention, int8 + bf16 values, with quantisation", "sm_80"),
    ("RMS norm + RoPE of q and k -> int8", "sm_90"),
    ("half the blocks, bf16", "sm_89"),
    ("half the blocks, int8 + fp8 values", "sm_90"),
    ("linear 5120 -> 13824, int8", "sm_80"),
}

# Per architecture: the instructions that a matrix kernel's operands must end up on.
_UNITS = {
    "sm_80": {"16bit": "mma_16bit", "int8": "mma_int8"},
    "sm_89": {"16bit": "mma_16bit", "int8": "mma_int8", "fp8": "mma_fp8"},
    "sm_90": {"16bit": "wgmma_16bit", "int8": "wgmma_int8", "fp8": "wgmma_fp8"},
}

# What each case's last launch multiplies; cases that are not here multiply nothing.
_PRODUCTS = {
    "audio attention, one person": ("16bit",),
    "audio attention, two people": ("16bit",),
    "text + image attention": ("16bit",),
    "two-person map": ("16bit",),
    "self-attention, dispatched": ("16bit",),
    "self-attention, Triton with log-sum-exp": ("16bit",),
    "self-attention, int8 + bf16 values, with quantisation": ("int8", "16bit"),
    "self-attention, int8 + fp8 values, with quantisation": ("int8", "fp8"),
    "self-attention, fp8 + fp8 values, with quantisation": ("fp8",),
    "half the blocks, bf16": ("16bit",),
    "half the blocks, int8 + bf16 values": ("int8", "16bit"),
    "half the blocks, int8 + fp8 values": ("int8", "fp8"),
    "linear 5120 -> 13824, int8": ("int8",),
    "linear 13824 -> 5120, int8": ("int8",),
}

# torch's own kernel serves it: nothing of ours to compile.
_NOT_OURS = {"linear 5120 -> 13824, fp8"}


def compiled(case: Case, architecture: Architecture) -> list[Resources]:
    built = case.build(SHAPES[0], "meta")
    with recording(architecture) as launches:
        built.ours()
    assert launches, "no kernel was launched: dispatch chose another implementation"
    return launches


def assert_within_means(case: Case, architecture: Architecture) -> None:
    launches = compiled(case, architecture)
    for one in launches:
        assert not one.faults, f"{one.kernel} {', '.join(one.faults)}: {one}"
    last = launches[-1]
    for product in _PRODUCTS.get(case.name, ()):
        assert last.kinds.get(_UNITS[architecture][product]), f"{last.kernel} multiplies {product} elsewhere: {last}"
    if last.kernel == "_flash_kernel" and architecture == "sm_90":
        assert last.kinds.get("tma_load"), f"tiles do not come through descriptors: {last}"
    if case.rate == "bytes":
        assert all(launch.kinds.get("wide_load") for launch in launches), f"loads are narrower than 16 bytes: {launches}"


GRID = [
    pytest.param(case, architecture, id=f"{case.name}-{architecture}", marks=[] if quick else [pytest.mark.slow])
    for case in CASES
    for architecture in ARCHITECTURES
    if case.name not in _NOT_OURS and architecture not in case.absent
    for quick in [(case.name, architecture) in _QUICK]
]


@pytest.mark.parametrize(("case", "architecture"), GRID)
def test_settings_stay_within_their_means(case: Case, architecture: Architecture) -> None:
    assert_within_means(case, architecture)


def test_a_setting_that_spills_is_seen() -> None:
    """The gate itself: four warps for a tile of 128 x 128 cannot hold it."""
    case = next(c for c in CASES if c.name == "self-attention, Triton with log-sum-exp")
    greedy = settings.Launch(num_warps=4, num_stages=2, block_m=128, block_n=64)
    with settings.replaced("flash_16bit", "sm_80", greedy), pytest.raises(AssertionError, match="spills registers"):
        assert_within_means(case, "sm_80")


@jit
@no_type_check
def step_behind_a_loop(a, b, out, count, SIDE: tl.constexpr):
    columns = tl.arange(0, SIDE)
    place = columns[:, None] * SIDE + columns[None, :]
    left = tl.load(a + place)
    total = tl.zeros([SIDE, SIDE], tl.float32)
    for index in range(0, count):
        scores = tl.dot(left, tl.load(b + index * SIDE * SIDE + place))
        total = tl.dot(scores.to(left.dtype), tl.load(b + index * SIDE * SIDE + place), total * 0.5)
    scores = tl.dot(left, tl.load(b + place))
    total = tl.dot(scores.to(left.dtype), tl.load(b + place), total * 0.5)
    tl.store(out + place, total.to(left.dtype))


def test_matrix_instructions_that_wait_for_one_another_are_seen() -> None:
    """The gate itself, on the shape of code that the attention kernels must not have."""
    x = torch.empty(128, 128, dtype=torch.bfloat16, device="meta")
    with recording("sm_90") as launches:
        launch(step_behind_a_loop, (1,), x, x, x, 7, SIDE=128, num_warps=8, num_stages=3)
    assert any("waits for" in fault for fault in launches[0].faults), launches


def test_quick_cases_exist() -> None:
    assert {(case.name, architecture) for case in CASES for architecture in ARCHITECTURES} >= _QUICK
    assert {case.name for case in CASES} >= set(_PRODUCTS) | _NOT_OURS


def test_every_setting_is_an_architecture_s_or_says_why_not() -> None:
    for kernel in settings.kernel_names():
        for architecture in ARCHITECTURES:
            entry = settings.launch_entry(kernel, architecture)
            if isinstance(entry, settings.Unavailable):
                assert entry.reason
                with pytest.raises(ValueError, match="not used on"):
                    settings.launch_settings(kernel, architecture)
            else:
                assert entry.num_warps in (1, 2, 4, 8, 16)
