"""Person maps and places, checked by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

from kernels.reference import class_attention_map  # noqa: E402
from model_store.infinitetalk.people import key_positions, query_positions, token_masks  # noqa: E402


def test_masks_are_resized_by_nearest_neighbour_and_keep_overlaps() -> None:
    masks = torch.zeros(3, 4, 4)
    masks[0, :, :2] = 1
    masks[1, :, 2:] = 0.5
    masks[1, 0, 0] = 1  # overlaps person 1; even rows and columns are the ones that count
    masks[2, 1, 1] = 1
    assert token_masks(masks, 2, 2).tolist() == [[1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]


def test_the_map_divides_each_person_by_the_size_of_the_mask() -> None:
    # One head, scores log 1, log 2, log 3, log 2: softmax 1/8, 2/8, 3/8, 2/8.
    q = torch.tensor([[1.0, 0.0]])
    k = torch.stack([torch.tensor([1.0, 2.0, 3.0, 2.0]).log() * 2**0.5, torch.zeros(4)], dim=1)
    masks = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert class_attention_map(q, k, masks, 1)[:, 0].tolist() == pytest.approx([3 / 16, 3 / 8, 1 / 4])


def test_a_token_goes_to_the_class_it_attends_to_most() -> None:
    class_map = torch.tensor(
        [
            [0.8, 0.2, 0.1, 0.4, 0.0],  # person 1: from 0 to 0.8
            [0.1, 0.6, 0.2, 0.0, 0.4],  # person 2: from 0 to 0.6
            [0.1, 0.1, 0.7, 0.1, 0.1],  # background
        ]
    )
    assert query_positions(class_map).tolist() == pytest.approx([4.0, 24.0, 12.0, 2.0, 20 + 4 * 0.4 / 0.6], rel=1e-5)


def test_speech_stands_in_the_middle_of_its_speaker() -> None:
    assert key_positions(2, 3, torch.device("cpu")).tolist() == [2, 2, 2, 22, 22, 22]
    assert key_positions(3, 1, torch.device("cpu")).tolist() == [2, 22, 42]
