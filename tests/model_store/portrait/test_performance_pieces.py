"""A performance can be made in any pieces, in any order, by anyone: every frame is the same, bit for bit."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.engine import ArraySpeech
from model_store.portrait.channels import Channels
from model_store.portrait.performance import Performer
from tests.model_store.portrait.voices import performed, samples, speech

_NAMES = [field.name for field in fields(Channels)]
_ONE_SIDED = {"jaw", "apart", "press", "tuck", "tongue", "smile", "blink", "squint", "breath"}
_TWO_SIDED = {"wide", "gaze_x", "gaze_y", "brow"}


def assert_same(piece: Channels, whole: Channels, start: int) -> None:
    for name in _NAMES:
        values = getattr(piece, name)
        assert values.tobytes() == getattr(whole, name)[start : start + len(piece)].tobytes(), name


def test_any_pieces_in_any_order_are_the_same_bits() -> None:
    performer = Performer(speech("timed_rms"), seed=1, expressiveness=1.0)
    for start, stop in ((300, 331), (0, 1), (71, 73), (140, 150), (330, 340), (0, 72)):
        assert_same(performer.perform(start, stop), performed("timed_rms"), start)


def test_another_process_makes_the_same_bits() -> None:
    script = (
        "import sys\nfrom dataclasses import fields\nfrom model_store.portrait.performance import Performer\n"
        "from tests.model_store.portrait.voices import speech\n"
        "c = Performer(speech('timed_rms'), seed=1, expressiveness=1.0).perform(72, 144)\n"
        "sys.stdout.buffer.write(b''.join(getattr(c, f.name).tobytes() for f in fields(c)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=120)
    values: NDArray[np.float32] = np.frombuffer(done.stdout, np.float32).reshape(len(_NAMES), 72)
    assert_same(Channels(**dict(zip(_NAMES, values, strict=True))), performed("timed_rms"), 72)


def test_lips_do_not_depend_on_seed_or_expressiveness() -> None:
    other = Performer(speech("timed_rms"), seed=2, expressiveness=2.0).perform(0, 72)
    for name in ("jaw", "apart", "press", "tuck", "wide", "tongue"):
        assert getattr(other, name).tobytes() == getattr(performed("timed_rms"), name)[:72].tobytes()
    assert np.abs(other.yaw - performed("timed_rms").yaw[:72]).max() > 0.5


def test_dials_are_float32_finite_and_within_their_bounds() -> None:
    whole = performed("timed_heart")
    for name in _NAMES:
        values = getattr(whole, name)
        assert values.dtype == np.float32
        assert values.shape == (len(whole),)
        assert np.all(np.isfinite(values))
        if name in _ONE_SIDED:
            assert values.min() >= 0.0, name
        if name in _ONE_SIDED | _TWO_SIDED:
            assert np.abs(values).max() <= 1.0, name


def test_blocks_join_without_a_jump() -> None:
    """The step over a block's border is no greater than steps elsewhere are."""
    whole = performed("timed_heart")
    for name in set(_NAMES) - {"blink", "gaze_x", "gaze_y", "press", "tuck"}:
        steps = np.abs(np.diff(getattr(whole, name)))
        joints = steps[71::72]
        assert joints.max() <= np.percentile(steps, 99.5) * 1.2, name


@pytest.mark.parametrize("count", [1, 1600])
def test_the_shortest_speech_can_be_performed(count: int) -> None:
    short = ArraySpeech(samples("timed_rms")[8000 : 8000 + count])
    performance = Performer(short, seed=0, expressiveness=1.0).perform(0, -(-count // 640))
    assert len(performance) == -(-count // 640)
    assert np.all(np.isfinite(performance.jaw))


def test_nothing_is_no_frames() -> None:
    assert len(Performer(speech("timed_rms"), seed=0, expressiveness=1.0).perform(5, 5)) == 0


class _Endless:
    """An hour of one voice over and over, made when it is read."""

    samples = 3600 * 16000

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        voice = samples("timed_rms")
        return np.where(np.arange(start, stop) >= 0, voice[np.arange(start, stop) % len(voice)], np.float32(0.0))


def test_memory_stays_flat_over_an_hour() -> None:
    performer = Performer(_Endless(), seed=0, expressiveness=1.0)
    held = []
    tracemalloc.start()
    try:
        for minute in (0, 20, 40, 59):
            performer.perform(minute * 1500, minute * 1500 + 2)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # An hour is 230 MB of samples and 5 MB of dials.
    assert held[-1] - held[0] < 200_000
