"""Each bar beside what was measured: met, missed, or not judged and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kernels.bench.measure import Result, Row

TORCH_IN_BF16 = ("sdpa flash", "sdpa", "2 x sdpa + add")
"""Peers whose error stands for torch's own in bf16; without one of them, it is that of one rounding."""

_BF16_ALLOWANCE = 2.0


class Verdict(NamedTuple):
    """One demand of a bar; ``met`` is None where it could not be judged."""

    demand: str
    found: str
    met: bool | None


def verdicts(result: Result) -> Iterator[Verdict]:
    """What a result's bar demands, and whether it is met."""
    bar, ours = result.case.bar, result.rows[0]
    if ours.obstacle is not None:
        yield Verdict("runs", ours.obstacle, None)
        return
    if bar.share:
        yield Verdict(f"at least {bar.share:.0%} of the floor's rate", f"{ours.share:.0%}", ours.share >= bar.share)
    for names, times in bar.times:
        yield _speed(result, names, times)
    if ours.accuracy is None:
        return
    if bar.cosine is not None and bar.relative_l1 is not None:
        yield Verdict(f"cosine at least {bar.cosine:g}", f"{ours.accuracy.cosine:.6f}", ours.accuracy.cosine >= bar.cosine)
        yield Verdict(
            f"relative L1 at most {bar.relative_l1:g}",
            f"{ours.accuracy.relative_l1:.4f}",
            ours.accuracy.relative_l1 <= bar.relative_l1,
        )
    else:
        own = next((row.accuracy.error for row in result.rows if row.by in TORCH_IN_BF16 and row.accuracy), result.rounding)
        assert own is not None
        found = ours.accuracy.error / own
        yield Verdict("error at most twice torch's in bf16", f"{found:.2f} times", found <= _BF16_ALLOWANCE)


def _speed(result: Result, names: tuple[str, ...], times: float) -> Verdict:
    demand = f"at least {times:g} times as fast as the fastest of {', '.join(names)}"
    ran: list[Row] = [row for row in result.rows[1:] if row.by in names and row.obstacle is None]
    if not ran:
        return Verdict(demand, "none of them ran", None)
    fastest = min(ran, key=lambda row: row.milliseconds)
    found = fastest.milliseconds / result.rows[0].milliseconds
    return Verdict(demand, f"{found:.2f} times {fastest.by}", found >= times)
