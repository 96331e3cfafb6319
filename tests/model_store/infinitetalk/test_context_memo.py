"""Keys and values are computed once for the same tensor, and anew for anything else."""

from __future__ import annotations

import copy
import gc

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

import tiny_transformer as tiny  # noqa: E402

from model_store.infinitetalk.memo import TensorMemo  # noqa: E402


@pytest.fixture
def memo() -> TensorMemo[int]:
    return TensorMemo(2)


def counter():  # type: ignore[no-untyped-def]
    calls: list[int] = []

    def make(_: torch.Tensor) -> int:
        calls.append(1)
        return len(calls)

    return make


def test_the_same_unchanged_tensor_is_not_computed_again(memo: TensorMemo[int]) -> None:
    make, source = counter(), torch.ones(2)
    assert [memo.get(source, make) for _ in range(3)] == [1, 1, 1]


def test_an_equal_tensor_is_another_one(memo: TensorMemo[int]) -> None:
    make, one, other = counter(), torch.ones(2), torch.ones(2)
    assert [memo.get(one, make), memo.get(other, make), memo.get(one, make)] == [1, 2, 1]


def test_a_change_in_place_is_seen(memo: TensorMemo[int]) -> None:
    make, source = counter(), torch.ones(2)
    memo.get(source, make)
    source[0] = 5
    assert memo.get(source, make) == 2


def test_a_value_goes_with_its_tensor(memo: TensorMemo[int]) -> None:
    make, source = counter(), torch.ones(2)
    memo.get(source, make)
    del source
    gc.collect()
    assert len(memo) == 0


def test_the_least_recently_used_goes_first(memo: TensorMemo[int]) -> None:
    make, sources = counter(), [torch.ones(2) for _ in range(3)]
    memo.get(sources[0], make)
    memo.get(sources[1], make)
    memo.get(sources[0], make)
    memo.get(sources[2], make)
    assert [memo.get(sources[0], make), memo.get(sources[1], make)] == [1, 4]


@pytest.mark.parametrize("changed", ["text", "clip", "audio"])
def test_a_forward_follows_every_change_of_its_context(changed: str) -> None:
    model, given = tiny.transformer(), tiny.inputs()
    before = model(timestep=500.0, **given)
    assert torch.equal(model(timestep=500.0, **given), before)
    given[changed].mul_(-1)
    after = model(timestep=500.0, **given)
    assert not torch.equal(after, before)
    assert torch.equal(after, tiny.transformer()(timestep=500.0, **given))


def test_context_is_computed_once_over_many_steps() -> None:
    model, given = tiny.transformer(), tiny.inputs()
    calls = []
    model.audio_proj.register_forward_hook(lambda *_: calls.append("audio"))
    model.text_embedding.register_forward_hook(lambda *_: calls.append("text"))
    model.img_emb.proj.register_forward_hook(lambda *_: calls.append("image"))
    for timestep in (900.0, 600.0, 300.0):
        model(timestep=timestep, **given)
    assert sorted(calls) == ["audio", "image", "text"]


def test_new_weights_make_new_keys() -> None:
    model, other, given = tiny.transformer(), tiny.transformer(seed=9), tiny.inputs()
    model(timestep=500.0, **given)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(timestep=500.0, **given), other(timestep=500.0, **given))
    assert torch.equal(model.double().float()(timestep=500.0, **given), other(timestep=500.0, **given))


def test_a_copy_of_the_model_remembers_nothing_of_the_original() -> None:
    model, given = tiny.transformer(), tiny.inputs()
    wanted = model(timestep=500.0, **given)
    assert torch.equal(copy.deepcopy(model)(timestep=500.0, **given), wanted)
