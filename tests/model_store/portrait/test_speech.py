"""Listening: what the recogniser's labels mean, levels, pitch, pauses and chance."""

from __future__ import annotations

import numpy as np
from hama import ASRModel

from model_store.engine import ArraySpeech
from model_store.portrait.chance import Chance
from model_store.portrait.phonemes import GROUPS, VISEMES, group_matrix
from model_store.portrait.prosody import Voice, emphasis, speaking
from model_store.portrait.speech import BLOCK_HOPS, CONTEXT_HOPS, Listener, level_db
from model_store.portrait.visemes import see
from tests.model_store.portrait.voices import samples, speech


def test_every_label_belongs_to_one_group() -> None:
    labels = ASRModel().decoder_tokens
    matrix = group_matrix(labels)
    assert matrix.shape == (len(labels), len(GROUPS))
    assert np.all(matrix.sum(axis=1) == 1)

    def group(label: str) -> str:
        return GROUPS[int(matrix[labels.index(label)].argmax())]

    for name, members in {
        "stop_lips": ("b", "pʰ", "p͈"),
        "m": ("m",),
        "teeth": ("f", "v"),
        "lip_glide": ("w", "wa"),
        "open": ("aɪ", "ja"),
        "diphthong_ei": ("eɪ",),
        "affricate": ("t͡ʃ",),
        "word": ("<wb>",),
        "blank": ("<blank>",),
        "other": ("ː",),
    }.items():
        assert [group(member) for member in members] == [name] * len(members)


def test_a_window_is_heard_alike_at_any_level() -> None:
    loud = Listener(speech("timed_rms")).hear(0)
    quiet = Listener(ArraySpeech(samples("timed_rms") * np.float32(0.1))).hear(0)
    assert loud.posteriors.shape == (BLOCK_HOPS + 2 * CONTEXT_HOPS, len(GROUPS))
    np.testing.assert_allclose(quiet.posteriors, loud.posteriors, atol=0.02)
    heard = loud.mels > -40
    np.testing.assert_allclose(quiet.mels[heard], loud.mels[heard], atol=0.05)


def test_visemes_are_probabilities_every_10_ms() -> None:
    seen = see(Listener(speech("timed_rms")).hear(0))
    assert seen.shape == (2 * (BLOCK_HOPS + 2 * CONTEXT_HOPS), len(VISEMES))
    np.testing.assert_allclose(seen.sum(axis=1), 1.0, atol=1e-5)


def test_silence_needs_no_recogniser_and_is_silence() -> None:
    heard = Listener(ArraySpeech(np.zeros(16000, np.float32))).hear(0)
    assert np.all(heard.posteriors[:, 0] == 1.0)
    assert np.all(see(heard).argmax(axis=1) == 0)


def test_the_level_is_that_of_the_loud_parts() -> None:
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(32000) / 16000)
    with_pauses = np.concatenate([np.zeros(32000), tone]).astype(np.float32)
    assert abs(level_db(ArraySpeech(with_pauses), 0, len(with_pauses)) - 20 * np.log10(0.1 / np.sqrt(2))) < 0.5


def _tone(hertz: float, seconds: float = 6.0) -> ArraySpeech:
    t = np.arange(int(seconds * 16000)) / 16000
    buzz = sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, 12))
    return ArraySpeech((0.1 * buzz).astype(np.float32))


def test_pitch_is_found_from_low_men_to_high_children() -> None:
    for hertz in (75.0, 120.0, 210.0, 380.0):
        block = Voice(_tone(hertz)).blocks(0, 0)
        assert block.voiced[5:].all()
        assert np.abs(block.pitch[5:] - 12 * np.log2(hertz / 55.0)).max() < 0.5


def test_noise_has_no_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(96000).astype(np.float32) * np.float32(0.1)
    assert Voice(ArraySpeech(noise)).blocks(0, 0).voiced.mean() < 0.05


def test_pauses_are_found_and_closures_are_not() -> None:
    voice = samples("timed_rms")[: 6 * 16000]
    prosody = Voice(ArraySpeech(np.concatenate([voice, np.zeros(24000, np.float32), voice]))).blocks(0, 4)
    spoken = speaking(prosody)
    assert not spoken[round(6.3 * 25) : round(7.3 * 25)].any()
    assert spoken[20 : 6 * 25 - 25].mean() > 0.8


def test_stress_peaks_about_once_a_second() -> None:
    count = np.sum(emphasis(Voice(speech("timed_heart")).blocks(0, 11)) > 0)
    assert 0.4 < count / (12 * 72 / 25) < 2.0


def test_chance_is_a_function_of_seed_stream_and_place() -> None:
    places = np.arange(-5, 1000)
    first = Chance(3).uniform("a", places)
    assert np.array_equal(first[100:], Chance(3).uniform("a", places[100:]))
    assert abs(first.mean() - 0.5) < 0.05
    assert not np.any(first == Chance(4).uniform("a", places))
    assert not np.any(first == Chance(3).uniform("b", places))


def test_drift_is_smooth_and_of_unit_size() -> None:
    seconds = np.arange(100_000) / 25
    drift = Chance(0).drift("x", seconds, 2.0)
    assert abs(drift.mean()) < 0.1
    assert 0.85 < drift.std() < 1.15
    assert np.abs(np.diff(drift)).max() < 0.12
    assert np.array_equal(drift[500:600], Chance(0).drift("x", seconds[500:600], 2.0))
