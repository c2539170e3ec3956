"""Trainers by name, and what is said where there is none."""

from importlib.metadata import EntryPoint

import pytest

from ablation import trainers
from ablation.trainers import GROUP, TrainerError, find_trainers, load_trainer


def test_find_trainers__knows_what_is_installed() -> None:
    assert "hpm" in find_trainers()


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


def test_load_trainer__loads(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"toy": EntryPoint("toy", "ablation.toy:ToyTrainer", GROUP)}
    monkeypatch.setattr(trainers, "find_trainers", lambda: points)
    assert load_trainer("toy").name
