"""Head, eyes, brows and body: natural in amount, speed and frequency, and all from the seed."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.engine import ArraySpeech
from model_store.portrait.chance import Chance
from model_store.portrait.motion import move
from model_store.portrait.prosody import Voice, speaking
from tests.model_store.portrait.voices import samples

_MARGIN = 2
_BLOCKS = 42
"""Two minutes."""


@cache
def voice() -> Voice:
    """Speech of three people with a pause of a second between them, over and over."""
    pause = np.zeros(16000, np.float32)
    turn = np.concatenate([part for name in ("timed_heart", "timed_rms", "timed_low") for part in (samples(name), pause)])
    return Voice(ArraySpeech(np.tile(turn, 3)))


@cache
def moved(seed: int, expressiveness: float = 1.0) -> dict[str, NDArray[np.float64]]:
    """Two minutes of movement."""
    curves = move(voice().blocks(0, _BLOCKS + 2 * _MARGIN - 1), 0, Chance(seed), expressiveness)
    return {name: curve[_MARGIN * 72 : -_MARGIN * 72] for name, curve in curves.items()}


SEEDS = (0, 1, 7, 4_294_967_295)


def head(curves: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.stack([curves["yaw"], curves["pitch"], curves["roll"]])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_head_moves_as_much_as_a_speaker_s_does(seed: int) -> None:
    pose = head(moved(seed))
    assert 1.5 < np.sqrt(pose.var(axis=1).sum()) < 4.0
    assert np.all(np.abs(pose).max(axis=1) <= [9.0, 7.0, 4.0])
    assert np.abs(np.diff(pose)).max() * 25 < 40.0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_second_is_frozen(seed: int) -> None:
    travelled = np.abs(np.diff(head(moved(seed)))).sum(axis=0)
    seconds = np.convolve(travelled, np.ones(25), "valid")
    assert seconds.min() > 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_blinks_are_as_frequent_and_as_long_as_people_s(seed: int) -> None:
    lids = moved(seed)["blink"]
    shut = (lids >= 0.75).astype(int)
    begins = np.flatnonzero(np.diff(shut) > 0)
    per_minute = len(begins) / (len(lids) / 25 / 60)
    assert 14 <= per_minute <= 22
    apart = np.diff(begins) / 25
    assert np.mean(apart < 0.4) < 0.15
    assert apart.min() > 0.25
    assert apart.std() > 0.5
    moving = np.sum(lids > 0) / len(begins) / 25
    assert 0.12 <= moving <= 0.28


def test_blinks_prefer_pauses() -> None:
    spoken = speaking(voice().blocks(0, _BLOCKS + 2 * _MARGIN - 1))[_MARGIN * 72 : -_MARGIN * 72]
    during = np.concatenate([~spoken[np.flatnonzero(np.diff((moved(seed)["blink"] > 0.75).astype(int)) > 0)] for seed in SEEDS])
    assert during.mean() > 2.0 * np.mean(~spoken)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_eyes_hold_what_they_look_at_mostly_the_viewer(seed: int) -> None:
    curves = moved(seed)
    # The slow part of gaze only makes up for the head; jumps are what is left.
    jumps = np.abs(np.diff(curves["gaze_x"] + 0.75 * curves["yaw"] / 28.0)) > 0.08
    per_second = np.sum(jumps[1:] & ~jumps[:-1]) / (len(jumps) / 25)
    assert 0.1 < per_second < 1.0
    assert np.mean(np.hypot(curves["gaze_x"], curves["gaze_y"]) < 0.22) > 0.5


def test_stress_lifts_brows_and_nods() -> None:
    curves = moved(1)
    assert curves["brow"].max() > 0.4
    assert np.mean(np.abs(curves["brow"]) < 0.3) > 0.6
    assert np.abs(np.diff(curves["brow"])).max() < 0.3


def test_everything_is_smooth_but_lids_and_eyes() -> None:
    for name, curve in moved(1).items():
        if name in ("blink", "gaze_x", "gaze_y"):
            continue
        reach = float(np.ptp(curve))
        assert np.abs(np.diff(curve, 2)).max() < 0.12 * reach, name


def test_seeds_differ_visibly() -> None:
    first, second = moved(0), moved(1)
    assert np.abs(first["yaw"] - second["yaw"]).mean() > 0.8
    assert np.abs(first["blink"] - second["blink"]).sum() > 20
    assert abs(np.corrcoef(first["yaw"], second["yaw"])[0, 1]) < 0.6


def test_expressiveness_0_stills_all_but_breath_and_blinks() -> None:
    for name, curve in moved(1, 0.0).items():
        if name in ("breath", "blink"):
            assert np.ptp(curve) > 0.5
        else:
            assert np.abs(curve).max() == 0.0, name


def test_expressiveness_2_is_larger_and_still_bounded() -> None:
    natural, theatrical = head(moved(1)), head(moved(1, 2.0))
    assert np.all(theatrical.std(axis=1) > 1.3 * natural.std(axis=1))
    assert np.all(np.abs(theatrical).max(axis=1) <= 1.4 * np.array([9.0, 7.0, 4.0]))


def test_breath_is_slow_and_drawn_in_pauses() -> None:
    breath = moved(1)["breath"]
    assert np.abs(np.diff(breath)).max() * 25 < 2.0
    rises = np.sum(breath[25:-25] == [breath[i - 25 : i + 26].max() for i in range(25, len(breath) - 25)])
    assert 8 <= rises / (len(breath) / 25 / 60) <= 26
