"""Two at one stage on an S3 server: who waits, who lags, whose listing is old."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ablation import lease
from ablation.claims import names_at
from ablation.executors.inline import run_inline
from ablation.lease import Claim, Lease, acquire
from ablation.ledger import Ledger
from ablation.protocol import Place
from ablation.provenance import now_ms
from ablation.storage import Storage, StorageError
from ablation.testing import (
    Toy,
    ToyScore,
    ToyTrainer,
    ignore,
    new_ledger,
    paced,
    toy_cell,
)
from chaos.proxy import Fault

AT = "stages/abc/lease"
CELLS = [toy_cell("a", Toy(steps=3), score=ToyScore(steps=1))]


def hold(storage: Storage, run: str) -> Lease | Claim:
    """With the times of a lease made twenty times shorter."""
    return acquire(
        storage,
        AT,
        run=run,
        now_ms=now_ms,
        sleep=lambda seconds: time.sleep(seconds / 20),
        beat_s=0.05,
        expiry_s=1.5,
    )


@pytest.mark.parametrize("kind", ["refuse", "lose"])
def test_s3_lease__one_of_two_at_once_gets_it(s3, hasty, kind):
    storages = [s3.storage().patient(60.0, print) for _ in "ab"]
    s3.proxy.faults = [Fault("delay", 0.3, seconds=0.03), Fault(kind, 0.05)]
    with ThreadPoolExecutor(2) as pool:
        for number in range(10):
            got = list(pool.map(hold, storages, [f"a{number}", f"b{number}"]))
            (held,) = (one for one in got if isinstance(one, Lease))
            (other,) = (one for one in got if isinstance(one, Claim))
            assert other.name == held.claim.name
            held.check()
            held.release()
    assert s3.proxy.counts[kind] > 0


@pytest.mark.parametrize("lag_s", [0.5, 3600.0])
def test_s3_lease__a_listing_that_lags_keeps_nobody_out(s3, hasty, lag_s):
    storage = s3.storage()
    storage.names(AT)
    s3.proxy.faults = [Fault("stale", seconds=lag_s)]
    held = hold(storage, "a")
    assert isinstance(held, Lease)
    held.check()
    held.release()
    s3.proxy.faults = []
    assert names_at(storage, AT) == []


def test_s3_lease__a_claim_that_was_taken_back_holds_nothing_where_listings_lag(s3, hasty):
    storage, past = s3.storage(), s3.storage(past=True)
    storage.names(AT)

    def removed(request: Any) -> bool:
        """Whether a listing is asked for; by then the claim is gone, once."""
        if request.method == "GET" and "list-type" in request.path:
            for name in names_at(past, AT)[:1] if not removals else ():
                past.remove(f"{AT}/{name}.json")
                removals.append(name)
        return True

    removals: list[str] = []
    s3.proxy.faults = [Fault("stale", seconds=3600), Fault("delay", when=removed)]
    held = hold(storage, "a")
    assert isinstance(held, Lease)
    assert removals
    assert held.claim.name not in removals
    held.release()


def test_begin_attempt__takes_no_number_that_a_listing_does_not_show_yet(s3, hasty):
    storage = s3.storage()
    stage = Ledger(storage).stage("ab" * 8)
    assert stage.attempts() == ()
    s3.proxy.faults = [Fault("stale", seconds=3600)]
    for run in "ab":
        stage.begin_attempt(time_ms=100, from_step=0, run=run, provenance={})
    s3.proxy.faults = []
    assert [attempt.run for attempt in stage.attempts()] == ["a", "b"]


def run(ledger: Ledger, name: str) -> None:
    run_inline(
        CELLS,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=ignore,
        terms=replace(paced(0.0, run=name), patience_s=60.0),
    )


def found(ledger: Ledger) -> list[tuple]:
    """Outcomes and journals, without their times."""
    stages = [stage for cell in CELLS for stage in cell]
    return [
        (
            ledger.outcome(stage.digest),
            [(record.step, record.metrics) for record in ledger.journal(stage.digest)],
        )
        for stage in stages
    ]


@pytest.mark.parametrize(
    "fault", [Fault("delay", chance=0.3, seconds=0.05), Fault("stale", seconds=1.0)]
)
def test_s3_lease__two_drivers_end_a_study_as_one_does(s3, hasty, monkeypatch, tmp_path, fault):
    """Nothing is done twice where listings are up to date; where they lag, the numbers agree."""
    monkeypatch.setattr(lease, "EXPIRY_S", 5.0)
    quiet, ledgers = new_ledger(tmp_path / "quiet"), [s3.ledger() for _ in "ab"]
    run(quiet, "quiet")
    s3.proxy.faults = [fault]
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(run, ledgers, "ab")] == [None, None]
    s3.proxy.faults = []
    assert found(ledgers[0]) == found(quiet)
    if fault.kind == "delay":
        tries = ledgers[0].tries(stage.digest for cell in CELLS for stage in cell).values()
        assert [len(attempts) for attempts in tries] == [1, 1]


def test_s3_lease__an_outage_of_a_holder_is_no_end(s3, hasty):
    """Beats outlive it: the holder goes on, and whoever waits finds it alive."""
    storage = s3.storage()
    held = hold(storage, "a")
    assert isinstance(held, Lease)
    s3.proxy.faults = [Fault("refuse")]
    time.sleep(0.3)
    with pytest.raises(StorageError):
        held.check()
    s3.proxy.faults = []
    held.check()
    found = hold(storage, "b")
    assert isinstance(found, Claim)
    assert found.name == held.claim.name
    held.release()
