"""The engine in the service's engine process: killed in mid-chunk, taken up from its checkpoint, joined to one MP4."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import staging

from model_store.engine import Checkpoint, PerformanceRequest
from model_store.infinitetalk.engine import InfiniteTalkEngine
from service.media.fragments import ChunkEncoder
from service.media.picture import load_picture
from service.media.speech import open_speech
from service.media.video import read_video_frames, write_video
from service.wire import Message, read_message

ROOT = Path(__file__).parents[3]
PHOTO, VOICE = ROOT / "examples" / "astronaut.png", ROOT / "examples" / "en_allison.wav"
SECONDS, SIDE = 6.0, 128
FRAMES = 150  # two chunks
PATIENCE = 90.0  # seconds after which a process that hangs is killed, and its test fails


class Child:
    """The engine process at the other end of two pipes."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.engine_child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._watch = threading.Timer(PATIENCE, self._process.kill)
        self._watch.start()

    def perform(self, workdir: Path, *checkpoint: bytes, **changes: Any) -> Iterator[Message]:
        order = {
            "engine": "infinitetalk",
            "reference": str(PHOTO),
            "reference_kind": "image",
            "audio": str(VOICE),
            "workdir": str(workdir),
            "max_seconds": 60,
            "seconds": SECONDS,
            "size": [SIDE, SIDE],
            "aspect_ratio": None,
            "resolution": None,
            "seed": 5,
            "prompt": "an astronaut",
            "expressiveness": 1.0,
            "options": staging.TINY,
        }
        assert self._process.stdout is not None
        self._send(Message("perform", order | changes, checkpoint))
        while message := read_message(self._process.stdout):
            if message.kind == "chunk":
                self._send(Message("more"))
            yield message
            if message.kind in {"done", "error"}:
                return

    def _send(self, message: Message) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(message.to_bytes())
        self._process.stdin.flush()

    def kill(self) -> None:
        self._watch.cancel()
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def child() -> Iterator[list[Child]]:
    children = [Child()]
    yield children
    for one in children:
        one.kill()


def uninterrupted() -> list[tuple[bytes, bytes]]:
    """Fragment and checkpoint of every chunk, made in this process in one go."""
    with open_speech(VOICE, max_seconds=60, seconds=SECONDS) as speech:
        request = PerformanceRequest(load_picture(PHOTO), speech, SIDE, SIDE, seed=5, prompt="an astronaut", options=staging.TINY)
        encoder = ChunkEncoder(SIDE, SIDE)
        return [
            (encoder.encode_chunk(chunk.frames, chunk.start, chunk.index), chunk.checkpoint.to_bytes())
            for chunk in InfiniteTalkEngine().stream(request)
        ]


def test_killed_in_a_chunk_and_taken_up_by_another_process(child: list[Child], tmp_path: Path) -> None:
    init = b""
    chunks: list[Message] = []
    for message in child[0].perform(tmp_path):
        assert message.kind != "error", message.fields
        if message.kind == "planned":
            assert message.fields["frames"] == FRAMES
            init = message.parts[0]
        if message.kind == "chunk":
            chunks.append(message)
            time.sleep(0.1)  # a part of the second chunk, which takes some tenths of a second
            break
    child[0].kill()

    child.append(Child())
    checkpoint = chunks[0].parts[2]
    assert Checkpoint.from_bytes(checkpoint).next_chunk == 1
    answers = list(child[1].perform(tmp_path, checkpoint))
    assert answers[-1].kind == "done", answers[-1].fields
    chunks += [message for message in answers if message.kind == "chunk"]

    assert [(message.parts[0], message.parts[2]) for message in chunks] == uninterrupted()
    output = tmp_path / "talking.mp4"
    assert write_video(init, [message.parts[0] for message in chunks], VOICE, output) == FRAMES
    assert sum(frame.shape == (SIDE, SIDE, 3) for frame in read_video_frames(output)) == FRAMES


def test_an_option_of_no_sense_is_answered_before_any_work(child: list[Child], tmp_path: Path) -> None:
    *_, last = child[0].perform(tmp_path, options={"variant": "tiny-random", "steps": 0})
    assert (last.kind, last.fields["code"], last.fields["param"]) == ("error", "option_invalid", "options")
