"""The engine's promises, kept by the random weights on a CPU: the code is that of every variant."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import staging  # noqa: E402

from model_store.engine import ArraySpeech, Checkpoint, Chunk, Progress  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk.engine import InfiniteTalkEngine  # noqa: E402
from model_store.infinitetalk.options import read_options  # noqa: E402
from tests.model_store import contract  # noqa: E402


@pytest.fixture(autouse=True)
def random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITETALK_VARIANT", "tiny-random")


def test_the_contract_is_kept() -> None:
    request = staging.request(155, audio_guidance=2)
    contract.check_all(InfiniteTalkEngine, request, progress_seconds=5)  # two of its seconds are a busy machine's


class _Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole() -> tuple[list[str], list[Chunk], int]:
    request, calls = staging.request(154, steps=2), []
    chunks = list(InfiniteTalkEngine().stream(request, on_progress=calls.append))
    return [contract.digest(chunk) for chunk in chunks], chunks, len(calls)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_stopped_inside_a_chunk_and_resumed_warm_gives_the_same_bytes(
    whole: tuple[list[str], list[Chunk], int], share: float
) -> None:
    digests, _, calls = whole
    request, engine, left, got = staging.request(154, steps=2), InfiniteTalkEngine(), int(share * calls), []

    def stop(_: Progress) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise _Stop

    checkpoint = None

    def perform() -> None:
        nonlocal checkpoint
        for chunk in engine.stream(request, on_progress=stop):
            got.append(contract.digest(chunk))
            checkpoint = Checkpoint.from_bytes(chunk.checkpoint.to_bytes())

    with pytest.raises(_Stop):
        perform()
    assert len(got) == int(3 * share)
    got += [contract.digest(chunk) for chunk in engine.stream(request, checkpoint)]
    assert got == digests


def test_chunks_continue_one_another(whole: tuple[list[str], list[Chunk], int]) -> None:
    """The next chunk depends on where the one before ended: another end, another continuation."""
    _, chunks, _ = whole
    request = staging.request(154, steps=2)
    first = next(iter(InfiniteTalkEngine().stream(replace(request, seed=4))))
    resumed = next(iter(InfiniteTalkEngine().stream(request, first.checkpoint)))
    assert not np.array_equal(resumed.frames, chunks[1].frames)
    assert resumed.frames.shape == chunks[1].frames.shape


def test_progress_counts_steps_within_a_chunk() -> None:
    calls: list[Progress] = []
    stream = InfiniteTalkEngine().stream(staging.request(100, steps=3), on_progress=calls.append)
    next(iter(stream))
    seen = [progress for progress in calls if progress.stage == "perform"]
    assert {progress.total for progress in seen} == {4}  # three steps, and decoding
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert {progress.done for progress in seen} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("frames", [1, 3, 80])
def test_short_speech_is_performed_to_its_length(frames: int) -> None:
    (chunk,) = InfiniteTalkEngine().stream(staging.request(frames))
    assert chunk.frames.shape == (frames, 128, 128, 3)
    assert chunk.frames.std() > 0


def test_prompt_and_guidance_change_the_picture(whole: tuple[list[str], list[Chunk], int]) -> None:
    base = staging.request(10, steps=2, text_guidance=3, audio_guidance=2)

    def frames(request: object) -> np.ndarray:
        (chunk,) = InfiniteTalkEngine().stream(request)  # type: ignore[arg-type]
        return chunk.frames

    plain = frames(base)
    assert not np.array_equal(plain, frames(replace(base, prompt="a storm at sea")))
    assert not np.array_equal(plain, frames(replace(base, options={**base.options, "negative_prompt": "calm"})))
    assert not np.array_equal(plain, frames(replace(base, options={**base.options, "apg": True})))
    assert not np.array_equal(
        plain, frames(replace(base, expressiveness=2.0, options=dict(base.options) | {"audio_guidance": 3}))
    )


def test_expressiveness_steers_the_audio_guidance_unless_that_is_given() -> None:
    scales = [read_options({"variant": "base"}, expressiveness).audio_guidance for expressiveness in (0.0, 1.0, 2.0)]
    assert scales == [2.5, 4.0, 5.5]
    assert read_options({"variant": "base", "audio_guidance": 3}, 2.0).audio_guidance == 3


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"colour": 1}, "option_unknown"),
        ({"variant": "5-step"}, "variant_unknown"),
        ({"variant": 4}, "variant_unknown"),
        ({"steps": 0}, "option_invalid"),
        ({"steps": True}, "option_invalid"),
        ({"steps": 2.5}, "option_invalid"),
        ({"audio_guidance": float("nan")}, "option_invalid"),
        ({"text_guidance": "5"}, "option_invalid"),
        ({"negative_prompt": 3}, "option_invalid"),
        ({"apg": 1}, "option_invalid"),
        ({"teacache": -0.1}, "option_invalid"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(options: dict[str, object], code: str) -> None:
    request = replace(staging.request(100), options=options)  # type: ignore[arg-type]
    for act in (InfiniteTalkEngine().plan, lambda r: next(iter(InfiniteTalkEngine().stream(r)))):
        with pytest.raises(InfiniteTalkError) as raised:
            act(request)
        assert raised.value.code == code
        assert raised.value.param == "options"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_error_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(staging.request(100), options={"variant": "4-step"})
    monkeypatch.setenv("INFINITETALK_VARIANT", "base")
    for act in (
        lambda: next(iter(InfiniteTalkEngine().stream(request))),
        InfiniteTalkEngine().diagnose,
        InfiniteTalkEngine().load,
    ):
        with pytest.raises(InfiniteTalkError, match=r"NVIDIA GPU.*tiny-random.*portrait") as raised:
            act()
        assert raised.value.code == "gpu_missing"


def test_random_weights_say_that_they_make_noise(caplog: pytest.LogCaptureFixture) -> None:
    engine = InfiniteTalkEngine()
    assert "noise" in engine.diagnose()
    engine.load()
    assert "noise" in caplog.text


def test_speech_of_less_than_a_frame_is_refused() -> None:
    request = replace(staging.request(100), speech=ArraySpeech(np.zeros(600, np.float32)))
    with pytest.raises(InfiniteTalkError) as raised:
        next(iter(InfiniteTalkEngine().stream(request)))
    assert raised.value.code == "audio_too_short"


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (lambda state: state[:-7], "checkpoint_damaged"),
        (lambda state: b"", "checkpoint_damaged"),
        (lambda state: state.replace(b"tiny-random", b"tiny-xandom"), "checkpoint_mismatch"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(whole: tuple[list[str], list[Chunk], int], state: object, code: str) -> None:
    _, chunks, _ = whole
    changed = replace(chunks[0].checkpoint, state=state(chunks[0].checkpoint.state))  # type: ignore[operator]
    with pytest.raises(InfiniteTalkError) as raised:
        next(iter(InfiniteTalkEngine().stream(staging.request(154, steps=2), changed)))
    assert raised.value.code == code


def test_a_checkpoint_of_another_size_or_of_the_last_chunk_is_refused(whole: tuple[list[str], list[Chunk], int]) -> None:
    _, chunks, _ = whole
    wide = replace(staging.request(154, steps=2), width=192)
    longer = staging.request(400, steps=2)
    for request, checkpoint in ((wide, chunks[0].checkpoint), (longer, chunks[2].checkpoint)):
        with pytest.raises(InfiniteTalkError) as raised:
            next(iter(InfiniteTalkEngine().stream(request, checkpoint)))
        assert raised.value.code == "checkpoint_mismatch"
