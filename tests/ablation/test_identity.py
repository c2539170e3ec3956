"""What is one value, and what an identity does not see."""

import random
from dataclasses import dataclass
from typing import Any

import pytest

from ablation.identity import canonical, digest


@dataclass(frozen=True)
class Point:
    x: float = 1.0
    y: tuple[int, ...] = (1, 2)


def base(**changes: Any) -> str:
    given: dict[str, Any] = {
        "trainer": "toy",
        "result_version": 1,
        "stage": "train",
        "config": Point(),
        "seed": 0,
        "data": "d",
        "parent": None,
    }
    return digest(**{**given, **changes})


def test_canonical__key_order_is_none() -> None:
    draw = random.Random(0)
    items = [(str(key), {"b": key, "a": [key]}) for key in range(20)]
    for _ in range(20):
        shuffled = draw.sample(items, len(items))
        assert canonical(dict(shuffled)) == canonical(dict(items))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (0.0, -0.0),
        ((1, 2.0), [1.0, 2]),
        (Point(), {"y": [1, 2], "x": 1}),
        (Point(x=1), Point()),
        (1e20, 10**20),
    ],
)
def test_canonical__one_value(one: Any, other: Any) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (0, False), (0, None), ("1", 1), ([1, 2], [2, 1]), (0.1, 0.1 + 1e-16), ([], {})],
)
def test_canonical__two_values(one: Any, other: Any) -> None:
    assert canonical(one) != canonical(other)


def test_canonical__floats_keep_every_digit() -> None:
    draw = random.Random(1)
    values = [draw.uniform(-1, 1) * 10 ** draw.randint(-30, 30) for _ in range(200)]
    assert len({canonical(value) for value in values}) == len(set(values))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_canonical__refuses_numbers_that_are_not_finite(value: Any) -> None:
    with pytest.raises(ValueError, match="must be of finite numbers"):
        canonical(value)


@pytest.mark.parametrize("value", [{1: 2}, {1}, object(), Point])
def test_canonical__refuses_what_json_cannot_say(value: Any) -> None:
    with pytest.raises(TypeError, match="an identity must"):
        canonical(value)


def test_digest__covers_everything_that_determines_a_result() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"trainer": "other"},
        {"result_version": 2},
        {"stage": "score"},
        {"config": Point(x=2)},
        {"seed": 1},
        {"data": "e"},
        {"data": None},
        {"parent": "p"},
    ]
    digests = [base(**change) for change in changes]
    assert len(set(digests)) == len(changes)
    assert all(len(found) == 20 and int(found, 16) >= 0 for found in digests)


def test_digest__is_stable_for_ever() -> None:
    assert base() == "3086ff7c64b19d6ba62b"
