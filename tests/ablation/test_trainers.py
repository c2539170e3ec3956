"""Trainers by name, and what is said where there is none."""

from importlib.metadata import EntryPoint

import pytest

from ablation import trainers
from ablation.trainers import GROUP, TrainerError, find_trainers, load_trainer


def test_find_trainers__knows_what_is_installed() -> None:
    assert {"hpm", "toy"} <= find_trainers().keys()


def test_load_trainer__unknown() -> None:
    with pytest.raises(TrainerError) as caught:
        load_trainer("hpn")
    assert str(caught.value) == "trainer must be installed, got 'hpn'. Did you mean 'hpm'?"


@pytest.mark.parametrize("target", ["ablation.nowhere:TRAINER", "ablation.toy:NOWHERE"])
def test_load_trainer__broken(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    points = {"broken": EntryPoint("broken", target, GROUP)}
    monkeypatch.setattr(trainers, "find_trainers", lambda: points)
    with pytest.raises(TrainerError, match="trainer 'broken' must be importable: "):
        load_trainer("broken")


@pytest.mark.parametrize("name", ["hpm", "toy"])
def test_load_trainer__loads(name: str) -> None:
    assert load_trainer(name).name == name
