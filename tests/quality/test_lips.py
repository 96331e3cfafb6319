"""The judge of lips against words: opening, order, lag, wrong times."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.engine import FPS
from service.evaluate.landmarks import mouth_opening
from service.evaluate.ordering import MAX_LAG, ordering, precedence
from service.evaluate.sound import sound_lag
from service.evaluate.timings import CLOSED, OPEN, Timings
from tests.quality.faces import face, turned


@pytest.fixture
def words() -> Timings:
    """A minute of syllables at uneven times: a closure of 0.1 s, a vowel of 0.2 s, something else, now and then a pause."""
    rng = np.random.default_rng(5)
    spans: list[tuple[str, float, float]] = []
    time = 0.3
    while time < 58:
        for viseme, length in (("PP", 0.1), ("aa", 0.2), ("DD", rng.uniform(0.1, 0.5))):
            spans.append((viseme, time, time + length))
            time += length
        time += rng.choice([0.0, 0.0, 0.6])
    return Timings(tuple(spans))


def obedient_mouth(words: Timings, frames: int = 1500) -> NDArray[np.float64]:
    """Closed on P/B/M and in silence, wide on open vowels, between otherwise, never twice the same."""
    noise = np.random.default_rng(1).uniform(0, 0.02, frames)
    opening = np.where(words.spoken(frames), 0.1, 0.0)
    opening[words.frames(OPEN, frames)] = 0.2
    opening[words.frames(CLOSED, frames)] = 0.0
    return opening + noise


def test_opening_is_the_inner_gap_in_eye_distances_however_the_head_is_tilted() -> None:
    tracks = np.array([turned(face(gap=gap), tilt) for gap in (0.0, 0.1, 0.3) for tilt in (-30, 0, 30)])
    assert mouth_opening(tracks) == pytest.approx(np.repeat([0.0, 0.1, 0.3], 3), abs=1e-9)


def test_opening_does_not_depend_on_the_face_s_size() -> None:
    points = face(gap=0.2)
    assert mouth_opening(np.array([points, 0.4 * points])) == pytest.approx([0.2, 0.2])


def test_precedence_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    lower, higher = rng.integers(0, 6, 40).astype(float), rng.integers(2, 9, 30).astype(float)
    pairs = [(a < b) + 0.5 * (a == b) for a in lower for b in higher]
    assert precedence(lower, higher) == pytest.approx(np.mean(pairs))


def test_obedient_mouth_is_ordered_right_and_only_at_the_right_times(words: Timings) -> None:
    found = ordering(obedient_mouth(words), words, CLOSED)
    assert found is not None
    assert found.probability == pytest.approx(1.0)
    assert found.lag == 0
    assert found.shifted == pytest.approx(0.5, abs=0.1)


def test_open_vowels_are_judged_by_opening(words: Timings) -> None:
    found = ordering(obedient_mouth(words), words, OPEN, opens=True)
    assert found is not None
    assert found.probability == pytest.approx(1.0)


def test_mouth_without_regard_to_the_words_scores_chance(words: Timings) -> None:
    found = ordering(np.random.default_rng(2).uniform(0, 1, 1500), words, CLOSED)
    assert found is not None
    # The best of nine lags is picked, so a little more than chance is expected.
    assert 0.45 < found.probability < 0.6


@pytest.mark.parametrize("lag", [-3, 2])
def test_lag_is_found_and_positive_when_the_mouth_is_late(words: Timings, lag: int) -> None:
    found = ordering(np.roll(obedient_mouth(words), lag), words, CLOSED)
    assert found is not None
    assert found.lag == lag


def test_lag_beyond_the_search_is_not_forgiven(words: Timings) -> None:
    found = ordering(np.roll(obedient_mouth(words), MAX_LAG + 6), words, CLOSED)
    assert found is not None
    assert found.probability < 0.8


def test_silence_is_left_out(words: Timings) -> None:
    opening = obedient_mouth(words)
    gaping = np.where(words.spoken(len(opening)), opening, 1.0)
    assert ordering(gaping, words, CLOSED).probability == pytest.approx(1.0)  # type: ignore[union-attr]
    shut = np.where(words.spoken(len(opening)), opening, -1.0)
    assert ordering(shut, words, CLOSED).probability == pytest.approx(1.0)  # type: ignore[union-attr]


def test_frames_without_a_face_are_left_out(words: Timings) -> None:
    opening = obedient_mouth(words)
    opening[::3] = np.nan
    found = ordering(opening, words, CLOSED)
    assert found is not None
    assert found.probability == pytest.approx(1.0)


def test_rare_visemes_are_not_judged(words: Timings) -> None:
    assert ordering(obedient_mouth(words), words, "FF") is None


@pytest.mark.parametrize("lag", [-4, 0, 3])
def test_lag_of_opening_against_loudness(lag: int) -> None:
    rng = np.random.default_rng(3)
    level = np.convolve(rng.normal(size=800), np.hanning(9), "same")
    found, correlation = sound_lag(np.roll(level, lag) + rng.normal(size=800) * 0.2, level)
    assert found == lag
    assert correlation > 0.9


def test_still_mouth_has_no_lag() -> None:
    assert sound_lag(np.zeros(100), np.random.default_rng(0).normal(size=100)) == (0, 0.0)


def test_frame_shows_what_is_spoken_in_its_middle() -> None:
    timings = Timings((("PP", 0.0, 0.05), ("sil", 0.05, 0.1), ("aa", 0.1, 0.2)))
    assert timings.frames("PP", 6).tolist() == [True, False, False, False, False, False]
    assert timings.spoken(6).tolist() == [True, False, True, True, True, False]
    assert timings.frames("PP", 6, shift=2 / FPS).tolist() == [False, False, True, False, False, False]


def test_timings_of_a_part() -> None:
    timings = Timings((("PP", 0.0, 0.5), ("aa", 0.5, 1.0))).cut(0.6)
    assert timings.spans == (("aa", 0.0, pytest.approx(0.4)),)
