"""Trainers by name: whatever is installed with an entry point in the group `ablation.trainers`."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from ablation.problems import nearest
from ablation.protocol import Trainer

__all__ = ["GROUP", "TrainerError", "find_trainers", "load_trainer"]

GROUP = "ablation.trainers"


class TrainerError(LookupError):
    """A trainer that is not installed or does not load, in a sentence for people."""


def find_trainers() -> Mapping[str, EntryPoint]:
    """Entry points of the installed trainers by name; nothing of theirs is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_trainer(name: str) -> Trainer:
    """The trainer of this name.

    Raises TrainerError where none is installed under it, or where its import fails.
    """
    found = find_trainers()
    if name not in found:
        raise TrainerError(f"trainer must be installed, got {name!r}.{nearest(name, found)}")
    try:
        trainer: Trainer = found[name].load()
    except (ImportError, AttributeError) as error:
        sentence = f"trainer {name!r} must be importable: {error}. Install what it needs."
        raise TrainerError(sentence) from error
    return trainer
