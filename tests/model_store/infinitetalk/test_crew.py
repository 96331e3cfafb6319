"""The whole engine on several processes (of the CPU, with gloo): the frames of one, and an end for all when one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import staging  # noqa: E402
import torch.distributed as dist  # noqa: E402

from model_store.engine import Checkpoint, Chunk, Progress  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk import crew as crew_module  # noqa: E402
from model_store.infinitetalk.crew import Crew  # noqa: E402
from model_store.infinitetalk.engine import InfiniteTalkEngine  # noqa: E402
from tests.model_store import contract  # noqa: E402

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available() or sys.platform != "linux", reason="torch was built without gloo"
)
PATIENCE = 60.0
FRAMES = 82  # two chunks, the second of one frame
ROOT = Path(__file__).parents[3]


def followers(leader: psutil.Process | None = None) -> list[psutil.Process]:
    children = (leader or psutil.Process()).children()
    return [child for child in children if "model_store.infinitetalk.follower" in child.cmdline()]


def perform(engine: InfiniteTalkEngine, checkpoint: Checkpoint | None = None, **options: Any) -> list[Chunk]:
    return list(engine.stream(staging.request(FRAMES, **options), checkpoint))


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[InfiniteTalkEngine]:
    """An engine on as many processes as the test's parameter says; when it is closed nobody is left."""
    monkeypatch.setenv("INFINITETALK_GPUS", str(request.param))
    engine = InfiniteTalkEngine()
    try:
        yield engine
    finally:
        engine.close()
    assert not followers()


@pytest.mark.parametrize(
    ("crew", "options"),
    [(2, {"audio_guidance": 2, "apg": True}), (3, {"text_guidance": 3, "audio_guidance": 2})],
    indirect=["crew"],
)
def test_branches_on_processes_of_their_own_give_the_same_bytes(
    crew: InfiniteTalkEngine, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = [contract.digest(chunk) for chunk in perform(crew, **options)]
    assert len(followers()) == len(options.keys() - {"apg"})
    monkeypatch.delenv("INFINITETALK_GPUS")
    assert [contract.digest(chunk) for chunk in perform(InfiniteTalkEngine(), **options)] == together


@pytest.mark.parametrize(
    ("crew", "options"),
    [
        (2, {"steps": 7, "text_guidance": 3, "audio_guidance": 2, "teacache": 1.0}),  # three, some steps of which skip the blocks
        (4, {"audio_guidance": 2}),  # two branches, each on two
    ],
    indirect=["crew"],
)
def test_shared_tokens_give_the_same_frames(
    crew: InfiniteTalkEngine, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the last bits of sums in another order, which rarely move a pixel by a level or two."""
    together = perform(crew, **options)
    first = Checkpoint.from_bytes(together[0].checkpoint.to_bytes())
    (resumed,) = perform(crew, first, **options)
    assert contract.digest(resumed) == contract.digest(together[1])
    monkeypatch.delenv("INFINITETALK_GPUS")
    for mine, theirs in zip(perform(InfiniteTalkEngine(), **options), together, strict=True):
        difference = np.abs(mine.frames.astype(int) - theirs.frames)
        assert difference.max() <= 4
        assert (difference > 0).mean() < 0.01


class _Stop(Exception):
    pass


@pytest.mark.parametrize("crew", [2], indirect=True)
def test_stopped_inside_a_step_the_crew_goes_on_with_the_next_job(crew: InfiniteTalkEngine) -> None:
    options = {"steps": 2, "text_guidance": 3, "audio_guidance": 2}  # three branches, which two processes share
    whole = [contract.digest(chunk) for chunk in perform(crew, **options)]
    members = followers()
    for calls in (9, 14):
        left = calls

        def stop(_: Progress) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise _Stop

        with pytest.raises(_Stop):
            list(crew.stream(staging.request(FRAMES, **options), on_progress=stop))
        assert [contract.digest(chunk) for chunk in perform(crew, **options)] == whole
    assert followers() == members, "they stayed, with their weights"


def crew_of(engine: InfiniteTalkEngine) -> Crew:
    assert engine._parts is not None
    assert engine._parts.models.crew is not None
    return engine._parts.models.crew


@pytest.mark.parametrize("crew", [2], indirect=True)
def test_a_crew_parts_in_an_orderly_way(crew: InfiniteTalkEngine) -> None:
    perform(crew, audio_guidance=2)
    members = crew_of(crew)._followers
    crew.close()
    assert [member.returncode for member in members] == [0]
    assert not dist.is_initialized()
    perform(crew, audio_guidance=2)  # and another one can meet


@pytest.mark.parametrize("crew", [2], indirect=True)
def test_a_follower_that_is_stuck_is_ended(crew: InfiniteTalkEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "GRACE_SECONDS", 1.0)
    perform(crew, audio_guidance=2)
    (member,) = crew_of(crew)._followers
    member.send_signal(signal.SIGSTOP)
    crew.close()
    assert member.returncode == -signal.SIGKILL


LEADER = """
import sys
sys.path[:0] = sys.argv[1:]
import staging
from model_store.infinitetalk.engine import InfiniteTalkEngine
for chunk in InfiniteTalkEngine().stream(staging.request(100_000, steps=4, audio_guidance=2)):
    print(chunk.index, flush=True)
"""


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[str]]:
    """A process that performs hours of video with two followers, and has made its first chunk."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEADER, str(ROOT), str(Path(__file__).parent)],
        env={**os.environ, "INFINITETALK_GPUS": "3", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_when_a_follower_dies_all_end(leader: subprocess.Popen[str]) -> None:
    first, second = followers(psutil.Process(leader.pid))
    first.kill()
    leader.communicate(timeout=PATIENCE)
    assert leader.returncode != 0
    second.wait(PATIENCE)


def test_when_the_leader_dies_all_end(leader: subprocess.Popen[str]) -> None:
    members = followers(psutil.Process(leader.pid))
    assert len(members) == 2
    leader.send_signal(signal.SIGKILL)
    for member in members:
        member.wait(PATIENCE)


def test_what_cannot_be_counted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("INFINITETALK_GPUS", asked)
        with pytest.raises(InfiniteTalkError) as caught:
            perform(InfiniteTalkEngine())
        assert caught.value.code == "gpus_invalid"
        assert repr(asked) in caught.value.message
