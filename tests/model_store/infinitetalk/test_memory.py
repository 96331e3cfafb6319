"""Blocks that visit from host memory, the choice by free memory, and memory that does not grow with length."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")
pytest.importorskip("diffusers", reason="diffusers is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import staging  # noqa: E402
import tiny_transformer as tiny  # noqa: E402

from model_store.engine import Checkpoint  # noqa: E402
from model_store.errors import InfiniteTalkError  # noqa: E402
from model_store.infinitetalk import memory, parts  # noqa: E402
from model_store.infinitetalk.engine import InfiniteTalkEngine  # noqa: E402
from model_store.infinitetalk.loading import pack_blocks  # noqa: E402
from model_store.infinitetalk.offload import BlockOffload  # noqa: E402
from model_store.infinitetalk.transformer import InfiniteTalkTransformer  # noqa: E402

GB = 10**9
CPU = torch.device("cpu")


@pytest.mark.parametrize("resident", [0, 1, 2, 3])
def test_visiting_blocks_compute_the_same(resident: int) -> None:
    given = tiny.inputs()
    wanted = tiny.transformer()(timestep=700.0, **given)
    model = tiny.transformer()
    BlockOffload(model, CPU, resident)
    for _ in range(2):
        assert torch.equal(model(timestep=700.0, **given), wanted)
    model.forget_contexts()  # keys and values are computed with visiting weights too
    assert torch.equal(model(timestep=700.0, **given), wanted)


def test_visiting_blocks_may_be_in_eight_bits() -> None:
    def packed() -> InfiniteTalkTransformer:
        model = tiny.transformer()
        pack_blocks(model, "fp8")
        return model

    given, model = tiny.inputs(), packed()
    wanted = packed()(timestep=700.0, **given)
    BlockOffload(model, CPU, 1)
    assert torch.equal(model(timestep=700.0, **given), wanted)


def test_the_next_block_is_fetched_while_one_computes_and_only_two_are_there() -> None:
    model, order = tiny.transformer(), []
    offload = BlockOffload(model, CPU, 0)
    fetch = offload._fetch
    offload._fetch = lambda index, keep: (order.append((index, keep is not None)), fetch(index, keep))[1]  # type: ignore[method-assign]
    model(timestep=700.0, **tiny.inputs())
    last = order[-6:]
    assert last == [(0, False), (1, True), (1, False), (2, True), (2, False), (0, True)]
    assert len(offload._slots) == 2
    weights = {parameter.data_ptr() for parameter in model.blocks[1].ffn.parameters()}
    assert len(weights) == 4


@pytest.fixture(scope="module")
def need() -> memory.Needs:
    return memory.needs()


def test_the_public_models_needs(need: memory.Needs) -> None:
    assert need.weights / GB == pytest.approx(37.8, abs=0.2)
    assert need.block / GB == pytest.approx(0.91, abs=0.03)
    assert 8 < need.work / GB < 20


@pytest.mark.parametrize(
    ("free", "mode", "text_on_gpu"),
    [(139, "whole", True), (79, "whole", True), (65, "whole", False), (47, "fp8", False), (23.5, "offload", False)],
)
def test_the_mode_follows_from_the_free_memory(need: memory.Needs, free: float, mode: str, text_on_gpu: bool) -> None:
    choice = memory.choose(int(free * GB), need, 40)
    assert (choice.mode, choice.text_on_gpu) == (mode, text_on_gpu)
    assert f"{free:.1f} GB" in choice.reason


def test_more_free_memory_keeps_more_blocks(need: memory.Needs) -> None:
    few, many = (memory.choose(free * GB, need, 40, "offload").resident for free in (24, 40))
    assert 0 <= few < many <= 40


@pytest.mark.parametrize(("free", "largest_is_whole"), [(139, True), (84, True), (32, True), (23.5, False)])
def test_what_is_left_says_whether_a_picture_is_decoded_whole(need: memory.Needs, free: float, largest_is_whole: bool) -> None:
    choice = memory.choose(int(free * GB), need, 40)
    assert memory.picture_bytes(448, 896) < choice.room < free * GB
    assert (memory.picture_bytes(768, 1280) <= choice.room) is largest_is_whole


def test_blocks_outside_the_gpu_need_host_memory_as_it_is_pinned(need: memory.Needs) -> None:
    choice = memory.choose(24 * GB, need, 40)
    visiting = 40 - choice.resident
    one = memory.host_bytes(need, 40, choice, 1)
    assert (
        one > need.weights + visiting * (2**30 - need.block) + 11 * GB
    )  # torch pins powers of two; the text encoder is here, too
    assert memory.host_bytes(need, 40, choice, 2) - one == one - memory.TEXT_ENCODER_BYTES


def test_a_small_container_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(parts, "_CONTAINER_LIMIT", limit)
    for said in ("max\n", None):
        limit.unlink(missing_ok=True) if said is None else limit.write_text(said)
        parts._require_host_memory(1 << 20)
    limit.write_text("1000000\n")
    with pytest.raises(InfiniteTalkError, match="container") as raised:
        parts._require_host_memory(1 << 20)
    assert raised.value.code == "host_memory_short"


def test_too_little_memory_and_unknown_modes_name_the_cure(need: memory.Needs) -> None:
    with pytest.raises(InfiniteTalkError, match="larger") as raised:
        memory.choose(8 * GB, need, 40)
    assert raised.value.code == "gpu_memory_short"
    with pytest.raises(InfiniteTalkError, match="whole, fp8, offload, eight_bit") as raised:
        memory.choose(80 * GB, need, 40, "half")
    assert raised.value.code == "memory_mode_unknown"
    assert memory.choose(80 * GB, need, 40, "fp8").mode == "fp8"
    assert memory.choose(80 * GB, need, 40, "eight_bit").mode == "eight_bit"


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_an_hour_is_planned_and_performed_in_the_memory_of_a_minute() -> None:
    engine = InfiniteTalkEngine()
    minute, hour = staging.request(60 * 25), staging.request(3600 * 25)
    first = next(iter(engine.stream(minute)))
    before = resident_bytes()
    plan = engine.plan(hour)
    assert (plan.frames, plan.chunks) == (90_000, 1250)
    late = Checkpoint("infinitetalk", engine.version, plan.chunks - 2, first.checkpoint.state)
    frames = 0
    for chunk in engine.stream(hour, late):
        frames += len(chunk.frames)
    assert chunk.start + len(chunk.frames) == 90_000
    assert frames == 90_000 - plan.span(plan.chunks - 2)[0]
    # The hour itself is 230 MB of samples, its vectors 12 MB in this small model, its frames 4.4 GB.
    assert resident_bytes() - before < 60e6
    assert max(hour.speech.asked) <= 16_000 * 30  # type: ignore[attr-defined]
