"""Which key blocks the training-free selector keeps."""

import importlib.util

import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed (extra: gpu)", allow_module_level=True)

import torch
from torch import Tensor

from kernels import select_blocks
from kernels.reference import K_BLOCK, Q_BLOCK


def clustered(length: int, topics: Tensor, block: int) -> Tensor:
    """Tokens of one block share a direction: topic i for block i."""
    index = torch.arange(length) // block
    return topics[index % topics.shape[0]] + 0.05 * torch.randn(length, topics.shape[1])


def kept(counts: Tensor, listed: Tensor, row: int) -> list[int]:
    keys: list[int] = listed[0, row, : counts[0, row]].tolist()
    return keys


def test_blocks_that_match_are_kept() -> None:
    topics = torch.eye(32)[:4] * 6
    q, k = clustered(4 * Q_BLOCK, topics, Q_BLOCK), clustered(8 * K_BLOCK, topics, K_BLOCK)
    blocks = select_blocks(q, k, 1, 0.25)
    for row in range(4):
        assert kept(blocks.counts, blocks.listed, row) == [row, row + 4]
    assert blocks.density(8) == 0.25


def test_blocks_of_unlike_tokens_are_kept_whole() -> None:
    topics = torch.eye(32)[:4] * 6
    q, k = clustered(4 * Q_BLOCK, topics, Q_BLOCK), clustered(8 * K_BLOCK, topics, K_BLOCK)
    k[3 * K_BLOCK : 4 * K_BLOCK] = torch.randn(K_BLOCK, 32)
    q[:Q_BLOCK] = torch.randn(Q_BLOCK, 32)
    blocks = select_blocks(q, k, 1, 0.25)
    assert kept(blocks.counts, blocks.listed, 0) == list(range(8))
    for row in range(1, 4):
        assert 3 in kept(blocks.counts, blocks.listed, row)


def test_neighbours_in_space_and_time_are_kept() -> None:
    rows, columns, frames = 32, 16, 6
    x = torch.zeros(frames * rows * columns, 8) + 1  # nothing to choose by
    blocks = select_blocks(x, x, 1, 0.01, near=(columns, rows * columns))
    frame_blocks = rows * columns // K_BLOCK
    own = 9  # frame 2's second block of four
    # A row of 16 tokens before and after reaches into the blocks beside it; a frame before and after is four blocks away.
    assert kept(blocks.counts, blocks.listed, own) == [own - frame_blocks, own - 1, own, own + 1, own + frame_blocks]


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_lists_are_ascending_valid_and_never_empty(length: int) -> None:
    x = torch.randn(length, 32)
    blocks = select_blocks(x, x, 2, 0.01, least_similarity=-1)
    assert blocks.listed.dtype == blocks.counts.dtype == torch.int32
    assert (blocks.counts >= 1).all()
    assert (blocks.listed < -(-length // K_BLOCK)).all()
    for row in range(blocks.counts.shape[1]):
        keys = kept(blocks.counts, blocks.listed, row)
        assert keys == sorted(set(keys))


def test_keeping_all_keeps_all() -> None:
    x = torch.randn(300, 32)
    assert select_blocks(x, x, 2, 1.0).density(-(-300 // K_BLOCK)) == 1.0


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5])
def test_keeping_nothing_is_refused(keep: float) -> None:
    x = torch.randn(10, 32)
    with pytest.raises(ValueError, match="above 0"):
        select_blocks(x, x, 1, keep)
