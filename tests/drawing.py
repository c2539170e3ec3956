"""A toy trainer whose training exports figures, as a method's does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ablation.protocol import Stage
from ablation.toy import Steps, ToyResult, ToyStage, ToyTrainer

__all__ = ["FIGURES", "Drawing"]

FIGURES = {"figures/curve.txt": b"_/", "figures/by step/1.png": b"\x89PNG"}
"""What is drawn unless a test says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing(ToyTrainer):
    """The toy trainer: its numbers and digests, and pictures beside the weight."""

    drawn: Mapping[str, bytes] = field(default_factory=lambda: FIGURES)

    def stages(self) -> Mapping[str, Stage]:
        stages = ToyTrainer.stages(self)
        train = stages["train"]
        assert isinstance(train, ToyStage)
        return {**stages, "train": replace(train, steps=partial(_draw, train.steps, self.drawn))}


def _draw(
    steps: Callable[..., Steps], drawn: Mapping[str, bytes], config: Any, **rest: Any
) -> Steps:
    result = yield from steps(config, **rest)
    if result is None:
        return None

    def export(folder: Path) -> None:
        result.export(folder)
        for path, content in drawn.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)

    return ToyResult(result.metrics, export)
