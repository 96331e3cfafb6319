"""The numbers beside what is good: one table of bars, for people and for tests."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from service.evaluate.measure import Measures
from service.evaluate.ordering import Ordering, milliseconds

MARKS = {True: "[green]pass[/]", False: "[yellow]warn[/]", None: ""}

_BLINKS_NEED_SECONDS = 20


@dataclass(frozen=True)
class Row:
    """One line of the table: what, its value, what is good, and whether it is (None: not judged)."""

    name: str
    value: str
    good: str
    passed: bool | None


def rows(measures: Measures) -> list[Row]:
    """Judge every measure."""
    m = measures
    return [
        Row("face width", f"{m.face_width:.0f} px", "≥ 200 px for lips", m.face_width >= 200),
        Row("face seen", f"{m.face_seen:.1%}", "≥ 99%", m.face_seen >= 0.99),
        *_ordering("P/B/M closed", m.closures, 0.88),
        *_ordering("F/V closed", m.tucks, 0.80),
        *_ordering("open vowels open", m.opens, 0.76),
        Row(
            "mouth after loudness",
            f"{milliseconds(m.sound_lag):+.0f} ms (r {m.sound_correlation:.2f})",
            "within ±80 ms",
            abs(m.sound_lag) <= 2 if m.sound_correlation > 0 else None,
        ),
        Row("identity, mean", f"{m.identity_mean:.3f}", "≤ 0.35", m.identity_mean <= 0.35),
        Row("identity, worst", f"{m.identity_worst:.3f}", "≤ 0.45", m.identity_worst <= 0.45),
        Row(
            "blinks",
            f"{m.blinks} ({m.blinks_a_minute:.1f} a minute)",
            "8 to 30 a minute",
            8 <= m.blinks_a_minute <= 30 if m.seconds >= _BLINKS_NEED_SECONDS else None,
        ),
        # A face that speaks looks as if it nodded a little, to any landmark detector: pitch alone proves no life.
        Row(
            "head yaw/pitch/roll std",
            " / ".join(f"{angle:.1f}°" for angle in (m.yaw_std, m.pitch_std, m.roll_std)),
            "yaw or roll 1° to 5°",
            1 <= max(m.yaw_std, m.roll_std) <= 5,
        ),
        Row("motion in the mouth", f"{m.motion_inside:.2f}%", "face width a frame", None),
        Row("motion elsewhere", f"{m.motion_outside:.2f}%", "face width a frame", None),
        Row("least motion in 5 s", f"{m.motion_outside_least:.2f}%", "≥ 0.05%", m.motion_outside_least >= 0.05),
        Row("longest still stretch", f"{m.longest_still:.2f} s", "< 1 s", m.longest_still < 1),
        Row("jitter", f"{m.jitter:.2f}%", "≤ 1.2% of eye distance", m.jitter <= 1.2),
        Row("chunk joints, largest", f"{m.joint_largest:.2f} x", "≤ 1 x elsewhere", _at_most(m.joint_largest, 1.0)),
        Row("chunk joints, typical", f"{m.joint_median:.2f} x", "≤ 1.5 x elsewhere", _at_most(m.joint_median, 1.5)),
        Row("face colour drift", f"ΔE {m.face_drift:.2f}", "≤ 2", m.face_drift <= 2),
        Row("background drift", f"ΔE {m.background_drift:.2f}", "≤ 2", _at_most(m.background_drift, 2.0)),
    ]


def table(measures: Measures, title: str) -> Table:
    """The rows as a table for the terminal."""
    grid = Table("measure", "value", "good", "", title=escape(title), title_justify="left")
    for row in rows(measures):
        grid.add_row(row.name, row.value, row.good, MARKS[row.passed])
    return grid


def as_json(measures: Measures) -> dict[str, Any]:
    """Every number by name, null where nothing was measured, and ``warnings``: the names of the rows that miss their bar."""
    numbers: dict[str, Any] = _without_nan(dataclasses.asdict(measures))
    return numbers | {"warnings": [row.name for row in rows(measures) if row.passed is False]}


def _ordering(name: str, found: Ordering | None, bar: float) -> list[Row]:
    if found is None:
        return [Row(name, "no timings", f"≥ {bar:.2f} (0.5 is chance)", None)]
    lag = milliseconds(found.lag)
    return [
        Row(
            name,
            f"{found.probability:.3f} at {lag:+.0f} ms",
            f"≥ {bar:.2f}, within ±80 ms",
            found.probability >= bar and abs(lag) <= 80,
        ),
        Row("  at wrong times", f"{found.shifted:.3f}", "0.40 to 0.60", 0.4 <= found.shifted <= 0.6),
    ]


def _at_most(value: float, bar: float) -> bool | None:
    return None if math.isnan(value) else value <= bar


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
