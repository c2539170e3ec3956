import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hpm.data.errors import DataError
from hpm.evaluate.accuracy import top_percent
from hpm.evaluate.config import EvalData, Knn
from hpm.evaluate.knn import nearest, run, vote

CONFIG = Knn(k=(1, 5, 20), report_k=5)


def matrices(num_bank=200, num_queries=50, width=8, classes=7, seed=0):
    draws = torch.Generator().manual_seed(seed)
    bank = torch.randn(num_bank, width, generator=draws)
    queries = torch.randn(num_queries, width, generator=draws)
    labels = torch.randint(classes, (num_bank,), generator=draws)
    return bank, labels, queries


def guess(queries, bank, labels, k, *, temperature=0.07, classes=7):
    similarity, places = nearest(queries, bank, k)
    return vote(similarity, labels[places], classes=classes, temperature=temperature)


def slow_guess(query, bank, labels, k, temperature):
    """One image at a time: k largest cosines, exp(cosine / T) summed by class, best class first."""
    cosines = [
        float(np.dot(query, other) / (np.linalg.norm(query) * np.linalg.norm(other)))
        for other in bank
    ]
    order = sorted(range(len(bank)), key=lambda place: -cosines[place])[:k]
    votes = {}
    for place in order:
        votes[labels[place]] = votes.get(labels[place], 0.0) + math.exp(
            cosines[place] / temperature
        )
    return sorted(votes, key=lambda label: -votes[label])[:5]


@pytest.mark.parametrize("k", [1, 3, 20, 200])
def test_vote__equals_a_slow_reference(k):
    bank, labels, queries = matrices()
    guesses = guess(queries, bank, labels, k)
    for row, query in zip(guesses.tolist(), queries.double().numpy(), strict=True):
        expected = slow_guess(query, bank.double().numpy(), labels.tolist(), k, 0.07)
        assert [label for label in row if label >= 0] == expected


def test_vote__a_bank_finds_itself():
    bank, labels, _ = matrices()
    assert top_percent(guess(bank, bank, labels, 1, temperature=1e-4), labels, 1) == 100.0


def test_vote__the_order_of_the_bank_changes_nothing():
    bank, labels, queries = matrices()
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(1))
    assert torch.equal(
        guess(queries, bank, labels, 20), guess(queries, bank[order], labels[order], 20)
    )


def test_vote__scale_of_a_feature_changes_nothing():
    bank, labels, queries = matrices()
    assert torch.equal(guess(queries, bank, labels, 9), guess(8 * queries, bank / 4, labels, 9))


def test_vote__a_class_without_votes_is_no_guess():
    guesses = vote(
        torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[4, 2, 4]]), classes=7, temperature=0.07
    )
    assert guesses.tolist() == [[4, 2, -1, -1, -1]]


def test_vote__temperature_decides_between_one_near_and_two_far():
    near_and_far = torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[0, 1, 1]])
    sharp, flat = (vote(*near_and_far, classes=2, temperature=t)[0, 0] for t in (0.01, 10.0))
    assert (sharp, flat) == (0, 1)


def test_nearest__chunks_change_nothing(monkeypatch):
    bank, _, queries = matrices()
    whole = nearest(queries, bank, 7)
    monkeypatch.setattr("hpm.evaluate.knn._SIMILARITIES", 3 * len(bank))
    for part, expected in zip(nearest(queries, bank, 7), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=1e-6)


def test_nearest__is_sorted_by_cosine():
    bank, _, queries = matrices()
    similarity, places = nearest(queries, bank, 10)
    assert (similarity.diff(dim=1) <= 0).all()
    cosines = (normalize(queries)[:, None] * normalize(bank)[places]).sum(-1)
    torch.testing.assert_close(similarity, cosines)


def test_knn__reports_every_k_and_the_chosen_one(drain, stage, encoder):
    metrics = drain(stage(run, CONFIG, encoder)).result.metrics
    names = {f"top{n}_k{k}" for n, k in itertools.product((1, 5), CONFIG.k)} | {"top1", "top5"}
    assert set(metrics) == names
    assert metrics["top1"] == metrics["top1_k5"]
    assert metrics["top5"] == metrics["top5_k5"]
    for k in CONFIG.k:
        assert 0 <= metrics[f"top1_k{k}"] <= metrics[f"top5_k{k}"] <= 100


def test_knn__separable_pixels_are_told_apart(drain, stage, pixels):
    assert drain(stage(run, CONFIG, pixels)).result.metrics["top1_k20"] == 100.0


def test_knn__the_seed_changes_nothing(drain, stage, encoder):
    first, second = (drain(stage(run, CONFIG, encoder, seed=seed)).result for seed in (0, 1))
    assert first.metrics == second.metrics


def test_knn__predictions_agree_with_the_metrics(drain, stage, encoder, tmp_path):
    result = drain(stage(run, CONFIG, encoder)).result
    result.export(tmp_path)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as kept:
        guesses, labels = kept["guesses"], kept["labels"]
    assert len(labels) == 142
    assert 100 * np.mean(guesses[:, 0] == labels) == pytest.approx(result.metrics["top1"])
    hits = (guesses == labels[:, None]).any(axis=1)
    assert 100 * np.mean(hits) == pytest.approx(result.metrics["top5"])


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_knn__resumes_bit_identically(drain, stage, encoder, tmp_path, step):
    whole = drain(stage(run, CONFIG, encoder), save_at=step, folder=tmp_path)
    assert [progress.step for progress in whole.steps] == [1, 2, 3, 4, 5]
    rest = drain(stage(run, CONFIG, encoder, resume=tmp_path))
    assert [progress.step for progress in rest.steps] == list(range(step + 1, 6))
    assert {progress.total for progress in rest.steps} <= {5}
    assert rest.result.metrics == whole.result.metrics
    assert rest.traces == whole.traces[step:]
    assert len({trace["state"] for trace in whole.traces}) == 5


def test_knn__stops_when_told(drain, stage, encoder):
    answers = iter([False, False, True])
    done = drain(stage(run, CONFIG, encoder, should_stop=lambda: next(answers)))
    assert len(done.steps) == 2
    assert done.result is None


def test_knn__refuses_more_neighbours_than_images(stage, encoder):
    with pytest.raises(DataError, match=r"300 images of the training split, got k=301") as caught:
        next(stage(run, Knn(k=(5, 301), report_k=5), encoder))
    assert not caught.value.retry


def test_knn__brings_images_of_its_own_data_to_the_encoders_size(drain, stage, encoder, pixels):
    named = replace(CONFIG, data=EvalData(name="colours"))
    for export in (encoder, pixels):
        same, ours = (drain(stage(run, config, export)).result for config in (CONFIG, named))
        assert ours.metrics == same.metrics
