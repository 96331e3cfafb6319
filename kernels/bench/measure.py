"""Time one case and its peers on the GPU at hand, and hold the result against its floor and the fp32 truth."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.cases import FP8, HEADS, Built, Call, Case, Rate, Shape, noise

_WARM_UP_SECONDS = 0.2
_MEASURE_SECONDS = 1.0
# Long calls are repeated at least, short ones at most, this often.
_FEWEST, _MOST = 5, 200


def milliseconds(call: Call) -> float:
    """Median over device events. Inputs of production shape are larger than any L2, so each round starts from memory."""
    first = _timed(call, 1)[0]
    _timed(call, max(1, min(_MOST, int(_WARM_UP_SECONDS * 1e3 / max(first, 1e-3)))))
    estimate = _timed(call, 1)[0]
    return statistics.median(_timed(call, max(_FEWEST, min(_MOST, int(_MEASURE_SECONDS * 1e3 / max(estimate, 1e-3))))))


def _timed(call: Call, rounds: int) -> list[float]:
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


def ceilings() -> dict[Rate, float]:
    """What this device reaches in large plain operations: bytes/s of a copy, operations/s of square products."""
    limits: dict[Rate, float] = {"bytes": _copy_rate()}
    side = 8192
    a, b = noise(side, side, device="cuda"), noise(side, side, device="cuda")
    operations = 2.0 * side**3
    limits["bf16"] = operations / milliseconds(lambda: a @ b) * 1e3
    eight_a, eight_b = a.mul(30).clamp(-127, 127).to(torch.int8), b.mul(30).clamp(-127, 127).to(torch.int8).t()
    limits["int8"] = operations / milliseconds(lambda: torch._int_mm(eight_a, eight_b)) * 1e3
    if torch.cuda.get_device_capability() >= (8, 9):
        one = torch.ones((), device="cuda")
        fp8_a, fp8_b = a.to(FP8), b.to(FP8).t()
        product = lambda: torch._scaled_mm(fp8_a, fp8_b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: E731
        limits["fp8"] = operations / milliseconds(product) * 1e3
    return limits


def _copy_rate() -> float:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3


def measure(case: Case, shape: Shape, limits: dict[Rate, float]) -> tuple[list[str], list[str]]:
    """Table rows of ours and every peer, and what failed. A peer that cannot run is a row that says so."""
    if case.rate not in limits:
        return [f"| {case.name} | {shape.name} | ours | not on this device: no fp8 | | | | | | |"], []
    torch.manual_seed(0)
    built = case.build(shape, "cuda")
    exact = built.exact() if built.exact is not None else None
    rows, failures = [], []
    for name, call in {"ours": built.ours, **built.peers}.items():
        try:
            cells = _cells(case, shape, built, call, exact, limits[case.rate], ours=name == "ours")
        except (RuntimeError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0][:120]
            rows.append(f"| {case.name} | {shape.name} | {name} | cannot run: {reason} | | | | | | |")
            if name == "ours":
                failures.append(f"{case.name} at {shape.name} failed: {reason}")
            continue
        rows.append(f"| {case.name} | {shape.name} | {name} | {' | '.join(cells)} |")
    del built
    torch.cuda.empty_cache()
    return rows, failures


def _cells(case: Case, shape: Shape, built: Built, call: Call, exact: Tensor | None, limit: float, *, ours: bool) -> list[str]:
    result = call()
    accuracy = ["", "", "", ""]
    if exact is not None and built.sample is not None and (ours or _same_kind(result, built)):
        accuracy = _accuracy(built.sample(result), exact)
    del result
    time = milliseconds(call)
    rate = case.work(shape) / time * 1e3
    unit = "GB/s" if case.rate == "bytes" else "TFLOP/s"
    return [f"{time:.3f}", f"{rate / (1e9 if unit == 'GB/s' else 1e12):.0f} {unit}", f"{rate / limit:.0%}", *accuracy]


def _same_kind(result: object, built: Built) -> bool:
    return type(result) is type(built.ours())


def _accuracy(got: Tensor, exact: Tensor) -> list[str]:
    got, exact = got.double(), exact.double()
    error = got - exact
    cosine = F.cosine_similarity(got.flatten(), exact.flatten(), dim=0)
    cells = [f"{cosine:.6f}", f"{error.abs().sum() / exact.abs().sum():.5f}", f"{error.square().mean().sqrt():.2e}"]
    if exact.shape[-1] % HEADS:
        return [*cells, ""]
    heads = [x.reshape(x.shape[0], HEADS, -1).transpose(0, 1).flatten(1) for x in (got, exact)]
    return [*cells, f"{F.cosine_similarity(heads[0], heads[1], dim=1).min():.6f}"]
