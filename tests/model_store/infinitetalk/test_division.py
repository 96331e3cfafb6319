"""How forwards are divided among processes: two branches go to two, three are shared, and nothing is split that cannot be."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'infinite-talk[gpu]'")

from model_store.infinitetalk.division import Division, divide

HEADS, TOKENS = 40, 28 * 56  # of the public model at 448 x 896


@pytest.mark.parametrize(
    ("processes", "branches", "wanted"),
    [
        (1, 3, Division(1, 1)),
        (2, 1, Division(1, 2)),
        (2, 2, Division(2, 1)),
        (2, 3, Division(1, 2)),
        (3, 3, Division(3, 1)),
        (3, 1, Division(1, 2)),
        (4, 2, Division(2, 2)),
        (4, 3, Division(1, 4)),
        (6, 3, Division(3, 2)),
        (8, 2, Division(2, 4)),
        (8, 1, Division(1, 8)),
    ],
)
def test_the_quickest_division(processes: int, branches: int, wanted: Division) -> None:
    assert divide(processes, branches, HEADS, TOKENS) == wanted


def test_every_division_can_be_computed() -> None:
    for processes in range(1, 17):
        for branches in (1, 2, 3):
            for tokens in (28 * 56, 15 * 27, 44 * 80, 7):
                division = divide(processes, branches, HEADS, tokens)
                assert division.processes <= processes
                assert HEADS % division.share == 0
                assert tokens % division.share == 0
                assert division.groups <= branches
                groups = [division.group_of(rank) for rank in range(processes)]
                assert [groups.count(group) for group in range(division.groups)] == [division.share] * division.groups
                assert groups.count(None) == processes - division.processes
