"""Quicker ways for tokens to attend to one another: close to the exact one, and asked for by a request's options."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

import staging  # noqa: E402
import tiny_transformer as tiny  # noqa: E402

from kernels import attention  # noqa: E402
from model_store.engine import Checkpoint  # noqa: E402
from model_store.infinitetalk.attention import EXACT, Attention, attend  # noqa: E402
from model_store.infinitetalk.engine import InfiniteTalkEngine  # noqa: E402
from model_store.infinitetalk.options import read_options  # noqa: E402

EIGHT_BIT = Attention(eight_bit=True)


@pytest.mark.parametrize("people", [1, 2])
@pytest.mark.parametrize("how", [EIGHT_BIT, Attention(eight_bit=True, keep=0.9)])
def test_eight_bits_predict_nearly_the_same(people: int, how: Attention) -> None:
    model, given = tiny.transformer(), tiny.inputs(people=people)
    wanted = model(timestep=500.0, **given)
    got = model(timestep=500.0, **given, how=how)
    assert not torch.equal(got, wanted)
    assert tiny.relative_error(got, wanted) < 0.02


def clustered(tokens: int, topics: int) -> torch.Tensor:
    """Tokens that resemble their neighbours, and those of every ``topics``-th block of 128."""
    directions = torch.randn(topics, 64, generator=torch.Generator().manual_seed(1)) * 3
    return directions[torch.arange(tokens) // 128 % topics] + 0.1 * torch.randn(tokens, 64)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_blocks_that_matter_are_enough(eight_bit: bool) -> None:
    x, v = clustered(8 * 128, 4), torch.randn(8 * 128, 64)
    exact = attention(x, x, v, 2)
    near, far = (attend(x, x, v, 2, Attention(eight_bit, keep), (1,)) for keep in (0.5, 0.125))
    assert tiny.relative_error(near, exact) < 0.1
    assert tiny.relative_error(far, exact) > 2 * tiny.relative_error(near, exact)


def test_all_blocks_are_seen_in_the_first_quarter_of_the_steps() -> None:
    half = Attention(eight_bit=True, keep=0.5)
    assert [half.at(step, 4).keep for step in range(4)] == [1.0, 0.5, 0.5, 0.5]
    assert [half.at(step, 40).keep for step in (0, 9, 10)] == [1.0, 1.0, 0.5]
    assert half.at(0, 4).eight_bit
    assert half.at(0, 1).keep == 1.0
    assert EXACT.at(3, 4) == EXACT


def test_options_ask_for_it() -> None:
    plain, quick = read_options({}, 1.0), read_options({"eight_bit_attention": True, "attention_keep": 0.5}, 1.0)
    assert (plain.eight_bit_attention, plain.attention_keep) == (False, 1.0)
    assert (quick.eight_bit_attention, quick.attention_keep) == (True, 0.5)


def test_an_engine_that_is_asked_for_it_resumes_to_the_same_frames() -> None:
    request = staging.request(5 * 25, steps=2, eight_bit_attention=True, attention_keep=0.5)
    chunks = list(InfiniteTalkEngine().stream(request))
    exact = list(InfiniteTalkEngine().stream(staging.request(5 * 25, steps=2)))
    assert any((ours.frames != theirs.frames).any() for ours, theirs in zip(chunks, exact, strict=True))
    before: Checkpoint = chunks[0].checkpoint
    again = list(InfiniteTalkEngine().stream(request, before))
    assert all((one.frames == other.frames).all() for one, other in zip(chunks[1:], again, strict=True))
