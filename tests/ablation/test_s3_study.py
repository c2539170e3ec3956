"""A study on an S3 server behind a hostile network ends as it does on a disk, bit for bit."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from re import search

import pytest

from ablation.cells import Cell, Failed, Finished
from ablation.events import Observe
from ablation.execute import never
from ablation.execute_cell import execute_cell
from ablation.executors.inline import run_inline
from ablation.journal import to_lines
from ablation.ledger import Ledger
from ablation.pace import Pace
from ablation.protocol import Place
from ablation.provenance import now_ms
from ablation.storage import StorageError
from ablation.terms import Terms
from ablation.testing import (
    Toy,
    ToyNoise,
    ToyScore,
    ToyTrainer,
    ignore,
    new_ledger,
    paced,
    stop_after,
    toy_cell,
)
from chaos.proxy import Fault, Kind, Request

CELLS = [toy_cell("a", Toy(steps=4, rate=0.3), score=ToyScore(steps=1))]
STUDY = [
    *CELLS,
    toy_cell("b", Toy(steps=1), seed=1),
    toy_cell("noise", ToyNoise()),
    toy_cell("bad", Toy(fail_at=2)),
]
PAIRS: list[tuple[Kind, Kind]] = [
    ("refuse", "flip upload"),
    ("error", "flip download"),
    ("lose", "cut upload"),
    ("garbage", "cut download"),
    ("stale", "delay"),
]


def run(
    ledger: Ledger,
    cells: Iterable[Cell],
    patience_s: float = 60.0,
    observe: Observe = ignore,
    **options,
) -> None:
    run_inline(
        cells,
        trainer=ToyTrainer(),
        ledger=ledger,
        place=Place(),
        observe=observe,
        terms=Terms(pace=Pace(least_s=0.0, most_s=0.0), max_failures=0, patience_s=patience_s),
        **options,
    )


def run_in_parts(ledger: Ledger, cells: Sequence[Cell]) -> None:
    """Run until all is at its end, with a stop after every second step."""
    patient = ledger.patient(60.0, print)
    while not all(patient.outcome(stage.digest) for cell in cells for stage in cell):
        run(ledger, cells, should_stop=stop_after(3))


def evidence(ledger: Ledger, cells: Iterable[Cell], into: Path) -> dict[str, tuple]:
    """What must be equal: outcomes, journals without their times, artifacts."""
    found = {}
    for stage in (stage for cell in cells for stage in cell):
        outcome, files = ledger.outcome(stage.digest), {}
        if isinstance(outcome, Finished):
            folder = ledger.artifacts(stage.digest, into / stage.digest)
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
        elif isinstance(outcome, Failed):
            outcome = Failed(outcome.error)
        lines = to_lines(replace(record, time_ms=0) for record in ledger.journal(stage.digest))
        found[stage.digest] = (outcome, lines, files)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, tuple]:
    folder = tmp_path_factory.mktemp("undisturbed")
    ledger = new_ledger(folder / "ledger")
    run(ledger, STUDY)
    return evidence(ledger, STUDY, folder)


def test_s3_study__ends_as_on_a_disk(s3, undisturbed, tmp_path):
    ledger = s3.ledger()
    run(ledger, STUDY)
    assert evidence(ledger, STUDY, tmp_path) == undisturbed


def is_object(request: Request) -> bool:
    """Whether it is about a single file, not a question to the bucket.

    A flipped bit in an answer of XML can abort pyarrow 25 (`delete_dir`, on a key without a name).
    """
    return "?" not in request.path


def at_moments(kind: Kind, random: Random) -> Fault:
    """Something that befalls 8 of the first requests, and never one that asks again for it."""
    requests, moments = count(), random.sample(range(2, 60, 6), 8)

    def when(request: Request) -> bool:
        return (kind != "flip download" or is_object(request)) and next(requests) in moments

    return Fault(kind, when=when, seconds=0.05)


@pytest.mark.parametrize("kinds", PAIRS, ids=" and ".join)
def test_s3_study__faults_change_nothing(s3, undisturbed, tmp_path, hasty, kinds):
    ledger, random = s3.ledger(), Random(str(kinds))
    s3.proxy.faults = [at_moments(kind, random) for kind in kinds]
    run_in_parts(ledger, CELLS)
    assert all(s3.proxy.counts[kind] > 3 for kind in kinds), s3.proxy.counts
    s3.proxy.faults = []
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}


def attempts(ledger: Ledger, cell: Cell) -> list[int]:
    """From which step each try at the training began."""
    return [a.from_step for a in ledger.stage(cell.stages[0].digest).attempts()]


@pytest.mark.parametrize("at", [6, 20])
def test_s3_study__a_cut_upload_is_no_commit(s3, undisturbed, tmp_path, hasty, at):
    """The `at`th upload is cut, and from then on nothing gets through: the process dies."""
    ledger, uploads, train = s3.ledger(), count(1), CELLS[0].stages[0].digest
    s3.proxy.faults = [
        Fault("cut upload", times=1, when=lambda r: r.method == "PUT" and next(uploads) == at),
        Fault("refuse", when=lambda r: s3.proxy.counts["cut upload"] > 0),
    ]
    with pytest.raises(StorageError, match="Could not"):
        run(ledger, CELLS, patience_s=0.0)
    s3.proxy.faults = []
    restored = ledger.stage(train).restore(tmp_path / "restored")
    step = restored.step if restored else 4 if ledger.outcome(train) else 0
    assert [record.step for record in ledger.journal(train)] == [*range(1, step + 1)]
    run(ledger, CELLS)
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}


def checkpoint_of_step_3(request: Request) -> bool:
    return "/checkpoints/3-" in request.path and request.path.endswith("weight.json")


@pytest.mark.parametrize(("kind", "times"), [("flip upload", 1), ("flip download", 2)])
def test_s3_study__a_flipped_bit_of_a_checkpoint_is_found(s3, undisturbed, tmp_path, kind, times):
    """The one before serves, and that is said."""
    (cell,), ledger, seen = CELLS, s3.ledger(), []
    s3.proxy.faults = [Fault(kind, times=times, when=checkpoint_of_step_3)]
    run(ledger, CELLS, should_stop=stop_after(4))  # it is asked once before the cell
    run(ledger, CELLS, observe=seen.append)
    assert s3.proxy.counts[kind] == times
    assert attempts(ledger, cell) == [0, 2]
    (said,) = (event.message for event in seen if event.kind == "damaged")
    assert "/checkpoints/3-" in said
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}


def test_s3_study__artifacts_are_seen_to_be_whole(s3, undisturbed, tmp_path, hasty):
    """There is no earlier one to fall back on, so they are read back before a stage ends."""
    ledger = s3.ledger()
    s3.proxy.faults = [Fault("flip upload", times=2, when=lambda r: "/artifacts/" in r.path)]
    run(ledger, CELLS)
    assert s3.proxy.counts["flip upload"] == 2
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}


def test_s3_study__what_a_download_flips_is_asked_for_again(s3, undisturbed, tmp_path, caplog):
    """Nothing is lost by it, of any file, and nothing said."""
    (cell,), ledger, seen = CELLS, s3.ledger(), []
    run(ledger, CELLS, should_stop=stop_after(4))
    parts = [
        "ledger.json",
        r"checkpoints/3-\w+\.json",
        "weight.json",
        r"journal/.*",
        r"attempts/.*",
    ]
    s3.proxy.faults = [
        Fault("flip download", times=1, when=lambda r, p=part: bool(search(f"{p}$", r.path)))
        for part in [*parts, "outcome.json"]
    ]
    run(ledger, CELLS, observe=seen.append)
    assert s3.proxy.counts["flip download"] == 6
    assert attempts(ledger, cell) == [0, 3]
    assert "damaged" not in [event.kind for event in seen]
    assert caplog.text == ""
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}


def test_s3_study__an_outage_is_one_error_and_the_same_call_completes(
    s3, undisturbed, tmp_path, hasty
):
    ledger, seen = s3.ledger(), []

    def observe(event) -> None:
        seen.append(event)
        if event.step == 3:
            s3.proxy.faults = [Fault("refuse")]

    with pytest.raises(StorageError, match=r"Could not \w+ s3://bucket/.*\.$") as got:
        run(ledger, CELLS, patience_s=0.5, observe=observe)
    assert "secret" not in str(got.value)
    assert len([event for event in seen if event.kind == "paused"]) >= 1
    s3.proxy.faults = []
    run(ledger, CELLS)
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}


def test_s3_study__clocks_that_disagree_change_nothing(s3, undisturbed, tmp_path):
    (cell,), ledger = CELLS, s3.ledger()
    for run_name, ms in (("a", 600_000), ("b", -600_000)):
        execute_cell(
            cell,
            trainer=ToyTrainer(),
            ledger=ledger,
            place=Place(),
            observe=ignore,
            should_stop=stop_after(3) if run_name == "a" else never,
            terms=paced(0.0, run=run_name),
            now_ms=lambda ms=ms: now_ms() + ms,
        )
    assert attempts(ledger, cell) == [0, 3]
    ended = evidence(ledger, CELLS, tmp_path)
    assert ended == {digest: undisturbed[digest] for digest in ended}
