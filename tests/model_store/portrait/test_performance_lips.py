"""The mouth against speech with known times, on the curve that drives it."""

from __future__ import annotations

import numpy as np
import pytest

from model_store.engine import ArraySpeech
from model_store.portrait.performance import Performer
from tests.model_store.portrait.voices import VOICES, opening, performed, samples, score, visemes


@pytest.mark.parametrize("voice", VOICES)
def test_lips_are_closed_for_p_b_m(voice: str) -> None:
    found, lag, shifted = score(-opening(performed(voice)), voice, "PP")
    assert found >= 0.94
    assert abs(lag) <= 2
    assert abs(shifted - 0.5) < 0.1


@pytest.mark.parametrize(("voice", "bar"), [("timed_heart", 0.86), ("timed_low", 0.89), ("timed_rms", 0.89)])
def test_lips_are_nearly_closed_for_f_v(voice: str, bar: float) -> None:
    found, lag, shifted = score(-opening(performed(voice)), voice, "FF")
    assert found >= bar
    assert abs(lag) <= 2
    assert abs(shifted - 0.5) < 0.1


@pytest.mark.parametrize("voice", VOICES)
def test_open_vowels_open_the_mouth(voice: str) -> None:
    found, lag, shifted = score(opening(performed(voice)), voice, "aa")
    assert found >= 0.80
    assert abs(lag) <= 2
    assert abs(shifted - 0.5) < 0.1


def test_closures_are_complete_and_no_others_are_made() -> None:
    """Lips meet (press at 1) in nine of ten P/B/M, about as often as P/B/M are spoken, and little longer than they last."""
    press = performed("timed_rms").press
    spoken = visemes("timed_rms", len(press)) == "PP"
    begins = np.flatnonzero(spoken & ~np.roll(spoken, 1))
    met = [press[first - 1 : first + 4].max() > 0.97 for first in begins]
    assert np.mean(met) >= 0.9
    closed = press > 0.5
    assert np.sum(np.diff(closed.astype(int)) > 0) <= 1.25 * len(begins)
    assert np.sum(closed) - np.sum(spoken) < 2 * len(begins)


def test_a_closure_comes_and_goes_in_about_two_frames() -> None:
    press = performed("timed_rms").press
    ramps = np.abs(np.diff(press))
    # A ramp of 50 ms is never a single step of one frame, apart from where two closures share a frame.
    assert np.percentile(ramps[ramps > 0.05], 50) < 0.85


def test_consonants_keep_the_mouth_open_and_open_vowels_open_it_wide() -> None:
    gap = opening(performed("timed_rms"))
    names = visemes("timed_rms", len(gap))
    consonants = gap[np.isin(names, ["DD", "kk", "SS", "TH", "RR"])]
    assert 0.1 < np.median(consonants) < 0.25
    assert np.percentile(gap[names == "aa"], 75) > 0.35
    assert 0.2 < performed("timed_rms").jaw[names != "sil"].mean() < 0.45


def test_the_mouth_does_not_jitter() -> None:
    """Speech moves the jaw at syllable rate: little of its movement is faster than 8 Hz."""
    jaw = performed("timed_heart").jaw
    power = np.abs(np.fft.rfft(jaw - jaw.mean())) ** 2
    hertz = np.fft.rfftfreq(len(jaw), 1 / 25)
    assert power[hertz > 8].sum() / power.sum() < 0.06


def test_the_mouth_rests_in_pauses() -> None:
    """From 0.6 s into a pause until 0.3 s before it ends the mouth is shut."""
    spoken = samples("timed_heart")[: 2 * 16000]
    pause = np.zeros(2 * 16000, np.float32)
    gap = opening(Performer(ArraySpeech(np.concatenate([spoken, pause, spoken])), seed=1, expressiveness=1.0).perform(0, 144))
    assert gap[round(2.6 * 25) : round(3.9 * 25)].max() < 0.02
    assert gap[:50].max() > 0.3
    assert gap[100:].max() > 0.3


_TIME = np.arange(3 * 16000) / 16000
_NOISE = np.random.default_rng(0).standard_normal(len(_TIME))


@pytest.mark.parametrize(
    "sound",
    [
        pytest.param(np.zeros(len(_TIME)), id="silence"),
        pytest.param(1e-3 * _NOISE, id="noise floor"),
        pytest.param(0.1 * _NOISE, id="loud noise"),
        pytest.param(0.1 * sum(np.sin(2 * np.pi * 50 * k * _TIME) / k for k in range(1, 6)), id="mains hum"),
        pytest.param(0.02 * np.sin(2 * np.pi * 60 * _TIME) + 3e-3 * _NOISE, id="hum and noise"),
    ],
)
def test_what_is_not_speech_does_not_open_the_mouth(sound: np.ndarray) -> None:
    gap = opening(Performer(ArraySpeech(sound.astype(np.float32)), seed=1, expressiveness=1.0).perform(0, 72))
    assert gap.max() < 0.06
    assert gap.mean() < 0.005


def test_quiet_speech_moves_the_lips_as_loud_speech_does() -> None:
    quiet = Performer(ArraySpeech(samples("timed_rms") * np.float32(0.1)), seed=1, expressiveness=1.0).perform(0, 72)
    for dial in ("jaw", "apart", "press", "tuck", "wide"):
        np.testing.assert_allclose(getattr(quiet, dial), getattr(performed("timed_rms"), dial)[:72], atol=0.02)


def test_a_noisy_room_changes_little() -> None:
    clean = samples("timed_rms")
    noise = np.random.default_rng(1).standard_normal(len(clean)).astype(np.float32)
    noise *= np.float32(np.sqrt(np.mean(clean**2)) * 10 ** (-20 / 20))
    noisy = opening(Performer(ArraySpeech(clean + noise), seed=1, expressiveness=1.0).perform(0, 144))
    assert np.corrcoef(noisy, opening(performed("timed_rms"))[:144])[0, 1] > 0.9
