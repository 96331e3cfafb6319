"""Exact times of what is spoken: which viseme is on the lips at every frame."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.engine import FPS
from model_store.errors import InfiniteTalkError

CLOSED = "PP"
"""Viseme of P, B and M (the names are those of the Oculus set)."""

TUCKED = "FF"
"""Viseme of F and V."""

OPEN = "aa"
"""Viseme of open vowels."""

SILENCE = "sil"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Timings:
    """Visemes of a recording: ``spans`` are (viseme, start, end) in seconds, in order."""

    spans: tuple[tuple[str, float, float], ...]

    def frames(self, viseme: str, count: int, shift: float = 0.0) -> Mask:
        """Which of ``count`` frames show ``viseme``, with all times moved by ``shift`` seconds: bool ``[count]``.

        A frame shows what is spoken in its middle.
        """
        return self._shown({viseme}, count, shift)

    def spoken(self, count: int) -> Mask:
        """Which of ``count`` frames show any viseme but silence: bool ``[count]``. Times without a viseme are silent too."""
        return self._shown({name for name, _, _ in self.spans} - {SILENCE}, count, 0.0)

    def cut(self, start: float) -> Timings:
        """The same, told from second ``start`` on."""
        spans = tuple((name, max(0.0, first - start), last - start) for name, first, last in self.spans if last > start)
        if not spans:
            raise _error(f"The timings end before second {start:g}: choose an earlier start")
        return Timings(spans)

    def _shown(self, visemes: set[str], count: int, shift: float) -> Mask:
        middle = (np.arange(count) + 0.5) / FPS - shift
        mask = np.zeros(count, np.bool_)
        for name, start, end in self.spans:
            if name in visemes:
                mask |= (middle >= start) & (middle < end)
        return mask


def read_timings(path: Path) -> Timings:
    """Read ``{"visemes": [{"viseme": "PP", "start": 0.8, "end": 0.85}, ...]}``; seconds, in order; "sil" is silence.

    Raises:
        InfiniteTalkError: ``timings_unreadable`` (``param="visemes"``).
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["visemes"]
        spans = tuple((str(entry["viseme"]), float(entry["start"]), float(entry["end"])) for entry in entries)
    except FileNotFoundError as error:
        raise _error(f"There is no file {path.name!r}: check its name") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        form = '{"visemes": [{"viseme": "PP", "start": 0.8, "end": 0.85}, ...]}'
        raise _error(f"{path.name!r} does not hold viseme times: write JSON of the form {form}") from error
    ordered = all(math.isfinite(end) and 0 <= start <= end for _, start, end in spans) and all(
        later[1] >= earlier[1] for earlier, later in pairwise(spans)
    )
    if not spans or not ordered:
        raise _error(f"The viseme times in {path.name!r} are empty or out of order: each needs start <= end, in order of start")
    return Timings(spans)


def _error(message: str) -> InfiniteTalkError:
    return InfiniteTalkError("timings_unreadable", f"{message}.", param="visemes")
