"""Speech as engines read it: windows of any place, one loudness, the same memory whatever the length."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from recordings import burst, wav

from model_store.engine import SPEECH_RATE, Speech
from service.media.loudness import LoudnessMeter
from service.media.speech import TARGET_LOUDNESS, open_speech


def test_it_is_what_engines_ask_for(tmp_path: Path) -> None:
    path = wav(tmp_path / "voice.wav", burst(44_100), 44_100)
    with open_speech(path, max_seconds=10) as speech:
        assert isinstance(speech, Speech)
        whole = speech.read(0, speech.samples)
        assert (whole.dtype, len(whole)) == (np.float32, speech.samples)
        assert np.array_equal(speech.read(12_345, 23_456), whole[12_345:23_456])
        assert np.array_equal(speech.read(-100, 200), np.concatenate([np.zeros(100, np.float32), whole[:200]]))
        assert np.array_equal(speech.read(speech.samples - 5, speech.samples + 5)[:5], whole[-5:])
        for outside in ((-50, -10), (speech.samples, speech.samples + 40)):
            assert not speech.read(*outside).any()
            assert len(speech.read(*outside)) == 40


def test_threads_read_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = wav(tmp_path / "voice.wav", rng.normal(0, 0.1, (1, 64_000)), 16_000)
    with open_speech(path, max_seconds=10) as speech:
        whole = speech.read(0, 64_000)
        wrong: list[int] = []

        def read(seed: int) -> None:
            places = np.random.default_rng(seed)
            for _ in range(300):
                start = int(places.integers(0, 60_000))
                if not np.array_equal(speech.read(start, start + 640), whole[start : start + 640]):
                    wrong.append(start)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_part_is_that_part_of_the_whole(tmp_path: Path) -> None:
    time = np.arange(48_000 * 3) / 48_000
    sweep = 0.3 * np.sin(2 * np.pi * (200 * time + 300 * time**2))[None]
    path = wav(tmp_path / "voice.wav", sweep, 48_000)
    with open_speech(path, max_seconds=10) as whole, open_speech(path, max_seconds=10, start=0.5, seconds=1.5) as part:
        assert part.samples == 1.5 * SPEECH_RATE
        expected = whole.read(8_000, 32_000)[500:-500]
        found = part.read(0, 24_000)[500:-500]
        gain = np.sqrt(np.mean(np.square(found)) / np.mean(np.square(expected)))
        np.testing.assert_allclose(found, expected * gain, atol=0.002)


# EBU Tech 3341, cases 1 to 3, which decide on gating; and BS.1770's own reference: a sine of 997 Hz at full scale is -3.01 LUFS.
@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(0.0, 10.0)], -3.01),
        ([(-20.0, 20.0)], -23.01),
        ([(-33.0, 20.0)], -36.01),
        ([(-36.0, 10.0), (-23.0, 60.0), (-36.0, 10.0)], -26.01),
    ],
)
def test_loudness_is_that_of_the_standard(rate: int, parts: list[tuple[float, float]], expected: float) -> None:
    meter = LoudnessMeter(rate)
    for level, seconds in parts:
        time = np.arange(int(rate * seconds)) / rate
        tone = (10 ** (level / 20) * np.sin(2 * np.pi * 997 * time)).astype(np.float32)
        for place in range(0, len(tone), 7_777):
            meter.add(tone[place : place + 7_777])
    assert meter.loudness() == pytest.approx(expected, abs=0.1)


def test_loudness_of_nothing() -> None:
    meter = LoudnessMeter(16_000)
    assert meter.loudness() == -np.inf
    meter.add(np.zeros(160_000, np.float32))
    assert meter.loudness() == -np.inf


@pytest.mark.parametrize("level", [0.01, 0.1, 0.9])
def test_engines_hear_every_recording_at_one_loudness(level: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pauses = np.repeat(rng.random(20) > 0.4, 4_000)  # quarter seconds of speech and silence
    path = wav(tmp_path / "voice.wav", level * 0.2 * rng.normal(0, 1, (1, 80_000)) * pauses, 16_000, "<f4", 3)
    with open_speech(path, max_seconds=10) as speech:
        meter = LoudnessMeter(SPEECH_RATE)
        meter.add(speech.read(0, speech.samples))
        assert meter.loudness() == pytest.approx(TARGET_LOUDNESS, abs=0.3)


_PEAK = """
import sys
from pathlib import Path
from service.media.fragments import ChunkEncoder, at_decode_time
from service.media.speech import open_speech
from service.media.video import write_video
import numpy as np
path, folder = Path(sys.argv[1]), Path(sys.argv[2])
with open_speech(path, max_seconds=1e5, workdir=folder) as speech:
    for start in range(0, speech.samples, 16_000):
        speech.read(start, start + 16_000)
    frames = -(-speech.samples // 640)
encoder = ChunkEncoder(128, 128)
rng = np.random.default_rng(0)
chunk = encoder.encode_chunk(rng.integers(0, 256, (72, 128, 128, 3), np.uint8), 0, 0)
fragments = (at_decode_time(chunk, 72 * 512 * index) for index in range(frames // 72))
write_video(encoder.init_segment, fragments, path, folder / "clip.mp4")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    def peak(seconds: int) -> float:
        noise = np.tile(np.random.default_rng(0).normal(0, 0.1, (1, 16_000)), (1, seconds))
        path = wav(tmp_path / f"{seconds}.wav", noise, 16_000)
        run = subprocess.run(
            [sys.executable, "-c", _PEAK, str(path), str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
        )
        return int(run.stdout) / 1024

    short, long = peak(60), peak(600)
    # Ten minutes are 38 MB of float samples and, here, 70 MB of video.
    assert (tmp_path / "clip.mp4").stat().st_size > 60e6
    assert long < 1.1 * short
