"""Speech with known times, and the order measures that judge a mouth by it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from model_store.engine import FPS, ArraySpeech
from model_store.portrait.channels import Channels
from model_store.portrait.performance import Performer

_DATA = Path(__file__).parent / "data"
VOICES = ("timed_heart", "timed_low", "timed_rms")
LAGS = range(-4, 5)
SHIFTS = (-1.3, -0.9, -0.5, 0.5, 0.9, 1.3)


@cache
def samples(name: str) -> NDArray[np.float32]:
    data, rate = sf.read(_DATA / f"{name}.ogg", dtype="float32")
    assert rate == 16000
    data.flags.writeable = False
    return data


def speech(name: str) -> ArraySpeech:
    return ArraySpeech(samples(name))


@cache
def performed(name: str) -> Channels:
    """The whole of a voice, at seed 1 and natural expressiveness."""
    whole = speech(name)
    return Performer(whole, seed=1, expressiveness=1.0).perform(0, -(-whole.samples // 640))


def opening(c: Channels) -> NDArray[np.float64]:
    """How far the lips are apart, roughly, as a renderer obeys the dials."""
    gap = np.clip(0.5 * c.jaw.astype(np.float64) + 0.16 * c.apart, 0.0, 1.0)
    return gap * (1.0 - c.press) * (1.0 - 0.7 * c.tuck)


@cache
def visemes(name: str, frames: int, shift: float = 0.0) -> NDArray[np.str_]:
    """The viseme in the middle of each frame, all times moved by ``shift`` seconds."""
    middle = (np.arange(frames) + 0.5) / FPS - shift
    names = np.full(frames, "sil", dtype="<U3")
    for entry in json.loads((_DATA / f"{name}.json").read_text())["visemes"]:
        names[(middle >= entry["start"]) & (middle < entry["end"])] = entry["viseme"]
    return names


def greater(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Probability that a value of ``first`` is greater than one of ``second``; 0.5 is chance, ties count half."""
    ordered = np.sort(second)
    below, upto = np.searchsorted(ordered, first, "left"), np.searchsorted(ordered, first, "right")
    return float(np.mean(below + upto) / (2 * len(ordered)))


def score_at(curve: NDArray[np.float64], names: NDArray[np.str_], viseme: str, lag: int) -> float:
    """Probability that ``curve``, ``lag`` frames late, is greater in a frame of ``viseme`` than in another spoken frame."""
    frames = np.arange(max(0, -lag), min(len(names), len(names) - lag))
    values, names = curve[frames + lag], names[frames]
    return greater(values[names == viseme], values[(names != viseme) & (names != "sil")])


def score(curve: NDArray[np.float64], voice: str, viseme: str) -> tuple[float, int, float]:
    """The best score over the lags, its lag in frames, and the mean score of the shifted times at that lag."""
    frames = len(curve)
    best, lag = max((score_at(curve, visemes(voice, frames), viseme, lag), lag) for lag in LAGS)
    return best, lag, float(np.mean([score_at(curve, visemes(voice, frames, shift), viseme, lag) for shift in SHIFTS]))
