"""The portrait engine keeps the contract, on a real photo and a real voice."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model_store.engine import SAMPLES_PER_FRAME, ArraySpeech, PerformanceRequest
from model_store.errors import InfiniteTalkError
from model_store.portrait.engine import PortraitEngine
from tests.model_store.contract import check_all

from .pictures import ASTRONAUT, LADY_AGNEW, read

VOICE = Path(ASTRONAUT).with_name("en_allison.wav")


def speech(frames: int) -> ArraySpeech:
    samples, _ = soundfile.read(VOICE, dtype="float32", frames=frames * SAMPLES_PER_FRAME)
    return ArraySpeech(samples)


def test_the_contract() -> None:
    # It calls its listener several times a second; a busy test machine may hold it up.
    request = PerformanceRequest(read(ASTRONAUT), speech(24 + 72 + 9), 160, 160, seed=3)
    check_all(PortraitEngine, request, progress_seconds=6.0)


def test_resuming_in_another_process_gives_the_same_bytes() -> None:
    """A worker that takes over starts from nothing but the request and the checkpoint."""
    program = f"""
import hashlib, sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from tests.model_store.portrait.test_engine import *
from model_store.engine import Checkpoint
request = PerformanceRequest(read(LADY_AGNEW), speech(24 + 72 * 2), 200, 240, seed=5)
start = Checkpoint("portrait", PortraitEngine.version, 2)
for chunk in PortraitEngine().stream(request, start): print(hashlib.sha256(chunk.frames.tobytes()).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    request = PerformanceRequest(read(LADY_AGNEW), speech(24 + 72 * 2), 200, 240, seed=5)
    last = list(PortraitEngine().stream(request))[2]
    assert other.stdout.split() == [hashlib.sha256(last.frames.tobytes()).hexdigest()]


def test_silence_keeps_the_mouth_still_and_the_person_alive() -> None:
    request = PerformanceRequest(read(ASTRONAUT), ArraySpeech(np.zeros(24 * SAMPLES_PER_FRAME, np.float32)), 256, 256)
    (chunk,) = PortraitEngine().stream(request)
    moving = np.abs(np.diff(chunk.frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    assert (moving > 0).all(), "a frozen frame"


@pytest.mark.parametrize(
    ("change", "code"), [({"options": {"steps": 4}}, "option_unknown"), ({"reference": "video"}, "video_not_supported")]
)
def test_what_it_cannot_do_is_refused(change: dict[str, object], code: str) -> None:
    class Video:
        seconds = 1.0

        def frame_at(self, seconds: float) -> np.ndarray:
            return read(ASTRONAUT)

    if change.get("reference") == "video":
        change = {"reference": Video()}
    request = PerformanceRequest(**{"reference": read(ASTRONAUT), "speech": speech(10), "width": 160, "height": 160, **change})
    with pytest.raises(InfiniteTalkError) as caught:
        next(PortraitEngine().stream(request))
    assert caught.value.code == code
