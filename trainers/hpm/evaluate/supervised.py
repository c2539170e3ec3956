"""A stage that trains a network on an exported encoder, and then scores it on validation images.

Fine-tuning, segmentation and detection differ in their network, views and scores; what they share
is here. Validation is one pass at the end, of the last weights or of their average, never of the
best ones.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, final

import torch
from torch import Tensor

from hpm.checkpoint import load_state, save_state
from hpm.data.sampling import Key, Shares, load, training_keys
from hpm.distributed import this_worker
from hpm.evaluate.training import Training
from hpm.progress import Place, Progress, Result, StageRun
from hpm.tracing import digest

__all__ = ["Part", "Scores", "Supervised", "Views"]


class Part(Protocol):
    """What a network is given of one pass: a tuple of tensors."""

    @property
    def indices(self) -> Tensor:
        """[B] int64, positions in the source."""
        ...


AnyPart = TypeVar("AnyPart", bound=Part)
Made = TypeVar("Made", bound=Part, covariant=True)


class Views(Protocol[Made]):
    """Makes the part of a key; an image's view depends on (seed, epoch, index) alone."""

    @property
    def source(self) -> Sized:
        """The training images."""
        ...

    @property
    def seed(self) -> int:
        """The evaluation's own."""
        ...

    def __call__(self, key: Key) -> Made:
        """The part. Raises DataError where an image is unreadable."""
        ...


class Scores(Protocol):
    """What is known of the validation images, of whose `steps` batches `done` are there."""

    @property
    def steps(self) -> int: ...

    @property
    def done(self) -> int: ...

    def state(self) -> dict[str, Any]:
        """What is there, for `restore`."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Start from what an earlier `state` held."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised(Generic[AnyPart]):
    """A training on what `views` makes, and `scores`, which `fill` completes batch by batch."""

    training: Training[AnyPart]
    views: Views[AnyPart]
    scores: Scores
    fill: Callable[[], Iterator[None]]
    result: Callable[[], Result]

    def run(
        self, *, place: Place, resume: Path | None, should_stop: Callable[[], bool]
    ) -> StageRun:
        """Train, an update a step; then validate, a batch a step.

        About 200 updates have metrics, those of `Training.update`. A trace of an update has
        `weights`, `optimizer`, where there is one `average`, and of this worker `samples` and
        `views`, all that the network was given; one of validation has `state`, the scores so far.

        Raises:
            DataError: an image is unreadable.
            NonFiniteLossError: the loss of an update with metrics is not finite.
        """
        if resume is not None:
            self._restore(resume)
        training, scores = self.training, self.scores
        parts = self._parts(place.loaders)
        while training.done < training.total:
            if should_stop():
                return None
            given = list(islice(parts, training.recipe.accumulate))
            metrics = training.update(given)
            yield self._progress(metrics, partial(self._trace, given))
        training.evaluated.eval()
        filling = self.fill()
        while scores.done < scores.steps:
            if should_stop():
                return None
            next(filling)
            yield self._progress({}, lambda: {"state": digest(scores.state())})
        return self.result()

    def _parts(self, loaders: int) -> Iterator[AnyPart]:
        """This worker's parts of the updates still to be done, one after the other."""
        recipe, worker = self.training.recipe, this_worker()
        keys = training_keys(
            len(self.views.source),
            range(self.training.done, self.training.total),
            seed=self.views.seed,
            shares=Shares(recipe.batch_size, recipe.accumulate, worker.rank, worker.world),
        )
        return load(self.views, keys, loaders=loaders)

    def _progress(self, metrics: dict[str, float], trace: Callable[[], dict[str, str]]) -> Progress:
        done = self.training.done + self.scores.done
        total = self.training.total + self.scores.steps
        return Progress(done, total, metrics, self._save, trace)

    def _trace(self, given: Sequence[AnyPart]) -> dict[str, str]:
        samples = [part.indices for part in given]
        return {**self.training.trace(), "samples": digest(samples), "views": digest(given)}

    def _save(self, folder: Path) -> None:
        save_state(folder, {"training": self.training.state(), "scores": self.scores.state()})

    def _restore(self, folder: Path) -> None:
        state = load_state(folder, torch.device("cpu"))
        self.training.restore(state["training"])
        self.scores.restore(state["scores"])
