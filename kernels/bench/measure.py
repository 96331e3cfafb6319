"""Time one case and its peers on the GPU at hand, and hold the result against its floor and the fp32 truth."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bench.case import FP8, HEADS, Built, Call, Case, Rate, Shape, noise
from kernels.dispatch import architecture

_WARM_UP_SECONDS = 0.2
_MEASURE_SECONDS = 1.0
# Long calls are repeated at least, short ones at most, this often.
_FEWEST, _MOST = 5, 200
# Cycles that the host is given to run ahead, some 100 microseconds a round and 50 milliseconds in all.
_HEAD_START, _LONGEST_HEAD_START = 200_000, 100_000_000


@dataclass(frozen=True)
class Accuracy:
    """The sample of an output beside the fp32 truth; ``error`` is the norm of the difference over that of the truth."""

    cosine: float
    relative_l1: float
    rmse: float
    worst_head: float | None
    error: float


@dataclass(frozen=True)
class Row:
    """What was measured of one call: milliseconds, rate and its share of the ceiling, accuracy; or why it could not run."""

    by: str
    milliseconds: float = 0.0
    rate: float = 0.0
    share: float = 0.0
    accuracy: Accuracy | None = None
    obstacle: str | None = None


@dataclass(frozen=True)
class Result:
    """Ours, then the peers; ``rounding`` is what one rounding of the truth to bf16 costs, in ``Accuracy.error``'s measure."""

    case: Case
    shape: Shape
    rows: tuple[Row, ...]
    rounding: float | None = None


def milliseconds(call: Call) -> float:
    """Median over device events. Inputs of production shape are larger than any L2, so each round starts from memory.

    What the host needs to launch is not counted: it works ahead while the device is kept waiting, as it does in a model.
    """
    first = _timed(call, 1)[0]
    _timed(call, max(1, min(_MOST, int(_WARM_UP_SECONDS * 1e3 / max(first, 1e-3)))))
    estimate = _timed(call, 1)[0]
    return statistics.median(_timed(call, max(_FEWEST, min(_MOST, int(_MEASURE_SECONDS * 1e3 / max(estimate, 1e-3))))))


def _timed(call: Call, rounds: int) -> list[float]:
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(rounds)]
    torch.cuda._sleep(min(rounds * _HEAD_START, _LONGEST_HEAD_START))
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
        product = lambda: torch._scaled_mm(fp8_a, fp8_b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: E731
        limits["fp8"] = operations / milliseconds(product) * 1e3
    return limits


def _copy_rate() -> float:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) * 1e3


def served(case: Case, device: str = "cuda") -> bool:
    """Whether the device has the types that the case computes in; another device than a GPU has the reference, which has all."""
    return architecture(torch.empty(0, device=device)) not in case.absent


def measure(case: Case, shape: Shape, limits: dict[Rate, float], device: str = "cuda") -> Result:
    """Our call and every peer on the same data; one that cannot run is a row that says why."""
    if not served(case, device):
        return Result(case, shape, (Row("ours", obstacle="not on this device: no fp8"),))
    torch.manual_seed(0)
    try:
        built = case.build(shape, device)
        exact = built.exact() if built.exact is not None else None
    except Exception as error:
        return Result(case, shape, (Row("ours", obstacle=first_line(error)),))
    rows = []
    for name, call in {"ours": built.ours, **built.peers}.items():
        try:
            rows.append(_measure_one(name, call, case, shape, built, exact, limits[case.rate]))
        except Exception as error:
            rows.append(Row(name, obstacle=first_line(error)))
    rounding = None if exact is None else accuracy(exact.bfloat16(), exact).error
    del built, exact
    torch.cuda.empty_cache()
    return Result(case, shape, tuple(rows), rounding)


def first_line(error: Exception) -> str:
    """What an error says, for a cell of a table."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


def _measure_one(name: str, call: Call, case: Case, shape: Shape, built: Built, exact: Tensor | None, limit: float) -> Row:
    result = call()
    seen = None
    if exact is not None and built.sample is not None and (name == "ours" or built.alike):
        seen = accuracy(built.sample(result), exact)
    del result
    time = milliseconds(call)
    rate = case.work(shape) / time * 1e3
    return Row(name, time, rate, rate / limit, seen)


def accuracy(got: Tensor, exact: Tensor) -> Accuracy:
    """How near a sample is to the truth."""
    got, exact = got.double(), exact.double()
    error = got - exact
    worst = None
    if exact.shape[-1] % HEADS == 0:
        heads = [x.reshape(x.shape[0], HEADS, -1).transpose(0, 1).flatten(1) for x in (got, exact)]
        worst = float(F.cosine_similarity(heads[0], heads[1], dim=1).min())
    return Accuracy(
        cosine=float(F.cosine_similarity(got.flatten(), exact.flatten(), dim=0)),
        relative_l1=float(error.abs().sum() / exact.abs().sum()),
        rmse=float(error.square().mean().sqrt()),
        worst_head=worst,
        error=float(error.norm() / exact.norm()),
    )
