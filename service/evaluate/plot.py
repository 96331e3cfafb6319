"""The evaluation as a picture: frames, opening against loudness with what is spoken, head pose and blinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model_store.engine import FPS
from model_store.errors import InfiniteTalkError
from service.evaluate.face_reader import MISSING_EXTRA
from service.evaluate.measure import Evaluation, Measures
from service.evaluate.timings import CLOSED, OPEN, TUCKED

_ROW_SECONDS = 15
_MOST_ROWS = 4
_INK, _MUTED, _GRID = "#22262b", "#7a828c", "#e6e8eb"
_OPENING, _LOUDNESS = "#c2410c", "#cfd6de"
_SHADES = {CLOSED: ("#1d4ed8", "P/B/M"), TUCKED: ("#15803d", "F/V"), OPEN: ("#f59e0b", "open vowel")}
_POSE = (("#1d4ed8", "yaw"), ("#c2410c", "pitch"), ("#15803d", "roll"))


def save_plot(evaluation: Evaluation, output: Path, title: str) -> None:
    """Draw ``output`` (PNG, SVG or PDF by its name).

    Speech is shown in rows of fifteen seconds, one minute at most; pose and blinks over the whole clip.

    Raises:
        InfiniteTalkError: ``quality_extra_missing``, ``output_not_writable``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - only who plots needs it
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise InfiniteTalkError("quality_extra_missing", MISSING_EXTRA) from error
    seconds = evaluation.measures.seconds
    speech_rows = min(_MOST_ROWS, max(1, -(-int(np.ceil(seconds)) // _ROW_SECONDS)))
    strip = evaluation.strip
    aspect = sum(picture.shape[1] / picture.shape[0] for _, picture in strip) or 1.0
    strip_height = min(4.0, 18.0 / aspect)
    heights = [strip_height, *[1.55] * speech_rows, 1.9]
    figure: Any = Figure(figsize=(16, sum(heights) + 0.5 * len(heights) + 0.7), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.05)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    figure.suptitle(title, x=0.008, ha="left", fontsize=15, fontweight="bold", color=_INK)
    figure.text(0.992, 0.985, _verdict(evaluation.measures), ha="right", va="top", fontsize=11, color=_INK)
    _draw_strip(figure.add_subplot(grid[0]), strip)
    rows = [figure.add_subplot(grid[1 + row]) for row in range(speech_rows)]
    for row, axes in enumerate(rows):
        _draw_speech(axes, evaluation, row * _ROW_SECONDS, first=row == 0)
    rows[-1].set_xlabel("seconds", color=_MUTED)
    _draw_pose(figure.add_subplot(grid[-1]), evaluation)
    try:
        figure.savefig(output, dpi=100)
    except (OSError, ValueError) as error:
        raise InfiniteTalkError(
            "output_not_writable",
            f"The plot {output.name!r} cannot be written ({error}): choose a .png in a folder that can be.",
            param="output",
        ) from error


def _verdict(m: Measures) -> str:
    judged = (("P/B/M", m.closures), ("F/V", m.tucks), ("open vowels", m.opens))
    words = [f"{name} {found.probability:.2f} (wrong times {found.shifted:.2f})" for name, found in judged if found]
    words += [f"identity {m.identity_mean:.2f} (worst {m.identity_worst:.2f})", f"{m.blinks_a_minute:.0f} blinks a minute"]
    return "     ".join(words)


def _draw_strip(axes: Any, strip: list[tuple[float, Any]]) -> None:
    left = 0.0
    for time, picture in strip:
        width = picture.shape[1] / picture.shape[0]
        axes.imshow(picture, extent=(left, left + width, 0, 1), interpolation="lanczos", aspect="equal")
        axes.text(left + width / 2, -0.05, f"{time:.1f} s", ha="center", va="top", fontsize=9, color=_MUTED)
        left += width + 0.03
    axes.set_xlim(0, max(left - 0.03, 0.1))
    axes.set_ylim(-0.16, 1)
    axes.axis("off")


def _draw_speech(axes: Any, evaluation: Evaluation, start: float, *, first: bool) -> None:
    stop = start + _ROW_SECONDS
    time = (np.arange(len(evaluation.opening)) + 0.5) / FPS
    shown = (time >= start) & (time <= stop)
    top = 1.12 * max(0.05, float(np.nanmax(evaluation.opening)))
    quiet, loud = np.percentile(evaluation.loudness, [5, 99])
    level = np.clip((evaluation.loudness - quiet) / max(1.0, loud - quiet), 0, 1) * top * 0.9
    axes.fill_between(time[shown], level[shown], color=_LOUDNESS, linewidth=0, label="loudness (dB, scaled)")
    named: set[str] = set()
    for viseme, begin, end in evaluation.timings.spans if evaluation.timings else ():
        if viseme in _SHADES and end > start and begin < stop:
            colour, name = _SHADES[viseme]
            alpha = 0.12 if viseme == OPEN else 0.3
            axes.axvspan(begin, end, color=colour, alpha=alpha, linewidth=0, label=None if name in named else name)
            named.add(name)
    axes.plot(time[shown], evaluation.opening[shown], color=_OPENING, linewidth=1.6, label="mouth opening")
    _style(axes)
    axes.set_xlim(start, stop)
    axes.set_ylim(min(0.0, float(np.nanmin(evaluation.opening))), top)
    axes.set_ylabel("gap / eye distance", color=_MUTED, fontsize=9)
    if first:
        part = "" if evaluation.measures.seconds <= _ROW_SECONDS * _MOST_ROWS else ", first minute"
        axes.set_title(f"Mouth and sound{part}", loc="left", fontsize=11, color=_INK)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=5, frameon=False, fontsize=9, borderaxespad=0.2)


def _draw_pose(axes: Any, evaluation: Evaluation) -> None:
    time = (np.arange(len(evaluation.pose)) + 0.5) / FPS
    centred = evaluation.pose - np.nanmedian(evaluation.pose, axis=0)
    for curve, (colour, name) in zip(centred.T, _POSE, strict=True):
        axes.plot(time, curve, color=colour, linewidth=1.2, label=name)
    for number, blink in enumerate(evaluation.blinks):
        axes.axvline((blink.deepest + 0.5) / FPS, ymin=0.93, color=_INK, linewidth=1.6, label="blink" if number == 0 else None)
    _style(axes)
    axes.set_xlim(0, evaluation.measures.seconds)
    axes.set_ylabel("degrees", color=_MUTED, fontsize=9)
    axes.set_xlabel("seconds", color=_MUTED)
    axes.set_title("Head pose about its median, and blinks", loc="left", fontsize=11, color=_INK)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.0), ncols=4, frameon=False, fontsize=9, borderaxespad=0.2)


def _style(axes: Any) -> None:
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_MUTED, labelsize=9, length=0)
