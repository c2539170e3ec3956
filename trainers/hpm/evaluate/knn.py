"""k-NN on frozen features: cosine similarity and DINO's weighted vote.

Each of an image's k nearest training images votes for its class with weight exp(similarity / T).
All images of both splits take part, as they are, in index order. Letters: N images, M images of
the bank, D width, K neighbours, C classes.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hpm.checkpoint import load_state, save_state
from hpm.data.source import open_source
from hpm.determinism import settle
from hpm.evaluate.accuracy import best_classes, top_percent, write_predictions
from hpm.evaluate.config import Knn
from hpm.evaluate.features import Features, load_frozen
from hpm.progress import Place, Progress, Result, StageRun
from hpm.tracing import digest

__all__ = ["nearest", "run", "vote"]

_SIMILARITIES = 1 << 26
"""Largest number of similarities that are held at once."""


def run(
    config: Knn,
    /,
    *,
    seed: int,
    place: Place,
    inputs: Path | None,
    resume: Path | None,
    should_stop: Callable[[], bool],
) -> StageRun:
    """Extract the features of both splits, one batch a step, then vote; `seed` changes nothing.

    The result holds `top1_kK` and `top5_kK` for every k, and `top1` and `top5` for `report_k`,
    in percent (0 to 100); its export keeps the guesses of `report_k`. A trace has `state`, the
    features so far.

    Raises:
        DataError: a split is absent or unreadable, or the bank has fewer images than some k.
    """
    assert inputs is not None, "k-NN needs an exported encoder"
    settle(place.threads)
    encoder = load_frozen(inputs, data=config.data, pool=config.pool, role=config.role)
    bank = Features(open_source(encoder.data.name, "train", place.data), encoder.width)
    queries = Features(open_source(encoder.data.name, "val", place.data), encoder.width)
    config.require(len(bank.source))
    if resume is not None:
        kept = load_state(resume, torch.device("cpu"))
        bank.restore(kept["bank"])
        queries.restore(kept["queries"])

    def state() -> dict[str, object]:
        return {"bank": bank.state(), "queries": queries.state()}

    for features in (bank, queries):
        filling = features.fill(encoder, loaders=place.loaders)
        while features.done < features.steps:
            if should_stop():
                return None
            next(filling)
            done, total = bank.done + queries.done, bank.steps + queries.steps
            yield Progress(
                done,
                total,
                {},
                save=lambda folder: save_state(folder, state()),
                trace=lambda: {"state": digest(state())},
            )
    return _result(config, bank, queries, encoder.device)


def nearest(queries_ND: Tensor, bank_MD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities [N, K] and places in the bank [N, K] of the k nearest, nearest first."""
    bank_DM = normalize(bank_MD, dim=1).T
    chunk = max(1, _SIMILARITIES // len(bank_MD))
    found = [
        (normalize(part, dim=1) @ bank_DM).topk(k, dim=1) for part in torch.split(queries_ND, chunk)
    ]
    similarity_NK, places_NK = (torch.cat(parts) for parts in zip(*found, strict=True))
    return similarity_NK, places_NK


def vote(similarity_NK: Tensor, labels_NK: Tensor, *, classes: int, temperature: float) -> Tensor:
    """Guesses [N, up to 5] from neighbours, nearest first; a class without a vote is no guess.

    Official, and DINO's: a neighbour's vote is exp(similarity / temperature).
    """
    # Relative to the nearest neighbour: the same order of classes, and exp cannot overflow.
    relative_NK = similarity_NK.double() - similarity_NK[:, :1].double()
    votes_NC = torch.zeros(len(labels_NK), classes, dtype=torch.float64)
    votes_NC.scatter_add_(1, labels_NK, (relative_NK / temperature).exp())
    guesses_NK = best_classes(votes_NC)
    return guesses_NK.masked_fill(votes_NC.gather(1, guesses_NK) == 0, -1)


def _result(config: Knn, bank: Features, queries: Features, device: torch.device) -> Result:
    similarity_NK, places_NK = nearest(
        queries.rows_ND.to(device), bank.rows_ND.to(device), max(config.k)
    )
    # The vote is cast on the CPU, where scatter_add_ always adds in the same order.
    similarity_NK, labels_NK = similarity_NK.cpu(), bank.labels_N[places_NK.cpu()]
    guesses = {
        k: vote(
            similarity_NK[:, :k],
            labels_NK[:, :k],
            classes=len(bank.source.classes),
            temperature=config.temperature,
        )
        for k in config.k
    }
    named = {f"_k{k}": guess for k, guess in guesses.items()} | {"": guesses[config.report_k]}
    metrics = {
        f"top{n}{name}": top_percent(guess, queries.labels_N, n)
        for name, guess in named.items()
        for n in (1, 5)
    }
    best = guesses[config.report_k]
    return Result(metrics, lambda folder: write_predictions(folder, best, queries.labels_N))
