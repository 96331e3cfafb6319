"""How fast the portrait engine is, everything running, beside a plain re-encode of the same frames as the machine's floor.

``make bench`` prints the table; ``python -m bench.speed --long 1200`` adds the memory of a twenty-minute clip. Every video is
made by `infinitetalk animate` in a process of its own, so that its peak memory and time to the first chunk are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import wave
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import numpy as np

from model_store.engine import FPS, Checkpoint, Chunk
from model_store.portrait.engine import CHUNK_FRAMES
from service.cli import perform as animate
from service.media.audio import decode_audio, probe_audio
from service.media.background import BackgroundEncoder
from service.media.fragments import ChunkEncoder
from service.media.video import read_video_frames

ROOT = Path(__file__).parent.parent
PHOTO = ROOT / "tests" / "quality" / "data" / "mona_lisa_face.jpg"
VOICE = ROOT / "tests" / "quality" / "data" / "timed_speech_en.ogg"

SIZES = ((512, 512), (720, 720), (1280, 720))
SECONDS = 60
DEADLINE = 3600.0
"""Seconds after which a run is given up; a 20-minute clip takes a fraction of it."""


def main() -> None:
    """Run the bench and print two tables in markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of the clips that are timed")
    parser.add_argument("--long", type=int, default=0, metavar="SECONDS", help="also make a clip this long, for its memory")
    parser.add_argument("--size", action="append", metavar="WxH", help="frame size; may be given again (default: all three)")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(*options.child)
        return
    sizes = options.size or [f"{width}x{height}" for width, height in SIZES]
    print(_machine(), flush=True)
    print()
    print("| frame | clip | animate | x real time | first chunk | re-encode of its frames | x real time | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peaks = {size: _row(size, options.seconds, folder) for size in sizes}
        if options.long:
            _memory(peaks[sizes[0]], sizes[0], options.seconds, options.long, folder)


def _row(size: str, seconds: int, folder: Path) -> float:
    """Time one size, print its line, and return its peak memory in MB."""
    output = folder / f"{size}.mp4"
    found = _animate(VOICE, size, seconds, output)
    floor = _re_encode(output)
    length, elapsed = found["frames"] / FPS, found["elapsed"]
    print(
        f"| {size} | {length:.0f} s | {elapsed:.1f} s | **{length / elapsed:.2f}** | {found['first_chunk']:.2f} s "
        f"| {floor:.1f} s | {length / floor:.2f} | {found['peak_mb']:.0f} MB |",
        flush=True,
    )
    output.unlink()
    return found["peak_mb"]


def _memory(short_peak: float, size: str, short: int, long: int, folder: Path) -> None:
    voice = folder / "long.wav"
    _repeat(VOICE, long, voice)
    found = _animate(voice, size, long, folder / "long.mp4")
    print()
    print(f"| memory at {size} | peak |")
    print("|---|---|")
    print(f"| {short} s clip | {short_peak:.0f} MB |")
    print(f"| {long} s clip | {found['peak_mb']:.0f} MB ({found['peak_mb'] / short_peak - 1:+.1%}) |", flush=True)


def _animate(voice: Path, size: str, seconds: int, output: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "bench.speed",
        "--child",
        str(voice),
        size,
        str(seconds),
        str(output),
        repr(time.monotonic()),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=DEADLINE, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _child(voice: str, size: str, seconds: str, output: str, launched: str) -> None:
    """`infinitetalk animate` in this process, with a watch on when the first chunk is encoded, since the process was launched."""
    began = float(launched)
    first: list[float] = []

    class Spool(animate.Spool):
        def add(self, fragment: bytes) -> None:
            super().add(fragment)
            if not first:
                first.append(time.monotonic() - began)

    animate.Spool = Spool  # type: ignore[misc]
    width, height = map(int, size.split("x"))
    animate.perform(
        animate.Wish(
            photo=PHOTO,
            voice=Path(voice),
            output=Path(output),
            engine="portrait",
            resolution="720p",
            size=(width, height),
            seed=0,
            expressiveness=1.0,
            start=0.0,
            seconds=float(seconds),
            max_seconds=float(seconds) + 1,
        ),
        as_json=True,
    )
    elapsed = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    megabytes = peak / 1024 if sys.platform == "linux" else peak / 1024**2
    frames = round(float(seconds) * FPS)
    print(json.dumps({"frames": frames, "elapsed": elapsed, "first_chunk": first[0], "peak_mb": megabytes}))


def _re_encode(video: Path) -> float:
    """Seconds that decoding the video and encoding its frames again, with the same settings, takes: what no engine can beat."""
    began = time.monotonic()
    frames = read_video_frames(video)
    first = next(frames)
    encoder = ChunkEncoder(first.shape[1], first.shape[0])
    checkpoint = Checkpoint("none", 0, 0)
    with BackgroundEncoder(encoder, lambda chunk, fragment: None) as background:
        rest, index = chain([first], frames), 0
        while batch := list(islice(rest, CHUNK_FRAMES)):
            background.put(Chunk(index, index * CHUNK_FRAMES, np.stack(batch), checkpoint))
            index += 1
    return time.monotonic() - began


def _repeat(voice: Path, seconds: int, output: Path) -> None:
    """Write the voice again and again, until it is long enough, as 16-bit WAV."""
    rate = probe_audio(voice).rate
    once = b"".join((np.clip(block[0], -1, 1) * 32767).astype("<i2").tobytes() for block in decode_audio(voice))
    with wave.open(str(output), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        left = 2 * rate * seconds
        while left > 0:
            file.writeframesraw(once[:left])
            left -= len(once)


def _machine() -> str:
    """What the figures hold for, the load of other work included."""
    model = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = ", ".join(f"{name} {version(name)}" for name in ("numpy", "opencv-python-headless", "av", "ai-edge-litert"))
    return (
        f"{model}, {cores} cores, {platform.system()}; load before the bench {os.getloadavg()[0]:.1f}. "
        f"Python {platform.python_version()}, {parts}. {datetime.now(UTC):%Y-%m-%d}."
    )


if __name__ == "__main__":
    main()
