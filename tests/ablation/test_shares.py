import random

import pytest

from ablation.shares import Claimant, shares


def claimants(*parts: tuple[int, int, int]) -> list[Claimant]:
    """Of priority, wants and slots each."""
    return [
        Claimant(name=str(number), priority=priority, wants=wants, slots=slots)
        for number, (priority, wants, slots) in enumerate(parts)
    ]


def got(*parts: tuple[int, int, int]) -> list[int]:
    return list(shares(claimants(*parts)).values())


def test_shares__one_alone_has_what_it_wants():
    assert got((0, 3, 8)) == [3]
    assert got((0, 30, 8)) == [8]


def test_shares__equals_share_and_the_first_has_what_is_odd():
    assert got((0, 9, 8), (0, 9, 8)) == [4, 4]
    assert got((0, 9, 3), (0, 9, 3)) == [2, 1]
    assert got((0, 9, 1), (0, 9, 1)) == [1, 0]


def test_shares__what_one_does_not_want_the_others_have():
    assert got((0, 1, 8), (0, 9, 8), (0, 9, 8)) == [1, 4, 3]
    assert got((0, 0, 8), (0, 9, 8)) == [0, 8]


def test_shares__the_more_urgent_comes_first():
    assert got((0, 9, 4), (5, 3, 4)) == [1, 3]
    assert got((0, 9, 4), (5, 9, 4)) == [0, 4]
    assert got((-1, 9, 4), (0, 1, 4)) == [3, 1]


def test_shares__are_of_the_cluster_where_cells_differ_in_size():
    """Cells of two workers need twice the room of cells of one."""
    assert got((0, 9, 8), (0, 9, 4)) == [4, 2]


@pytest.mark.parametrize("seed", range(20))
def test_shares__fill_the_cluster_and_no_more(seed):
    draw = random.Random(seed)
    parts = [
        (draw.randrange(3), draw.randrange(10), draw.choice([1, 2, 3, 4, 8])) for _ in range(5)
    ]
    found = got(*parts)
    used = sum(count / slots for count, (_, _, slots) in zip(found, parts, strict=True))
    assert used <= 1 + 1e-6
    for count, (_, wants, slots) in zip(found, parts, strict=True):
        assert 0 <= count <= wants
        assert count == wants or used + 1 / slots > 1 - 1e-6
