"""Runs that are killed for real: what resumes to the same bits, and what only almost does."""

import json
import os
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ablation.cells import Cell, Failed, Finished
from ablation.certificate import Certificate
from ablation.evidence import Evidence, difference
from ablation.executors.inline import run_inline
from ablation.journal import Record
from ablation.ledger import Ledger
from ablation.problems import StudyError
from ablation.profile import Profile
from ablation.protocol import Place, Stage, Trainer
from ablation.storage import Stored
from ablation.terms import Terms
from ablation.testing import Toy, ToyScore, ToyTrainer, ignore, new_ledger, paced, toy_cell
from ablation.toy import ToyProgress, ToyResult
from ablation.verify import Execute, Finding, Verification
from ablation.witness import Kill, Trace, Witness

STEPS = 12


def survived(cell: Cell, witness: Witness, ledger: Ledger, terms: Terms) -> bool:
    """Run a cell in a process of its own; whether that was not killed."""
    if not (child := os.fork()):
        try:
            run_inline(
                [cell],
                trainer=witness,
                ledger=ledger,
                place=Place(),
                observe=ignore,
                terms=terms,
            )
        finally:
            os._exit(0)
    return not os.WIFSIGNALED(os.waitpid(child, 0)[1])


def killable(cell: Cell, witness: Witness, ledger: Ledger, terms: Terms) -> str:
    """An executor that begins again what was killed."""
    while not survived(cell, witness, ledger, terms):
        pass
    return ""


def easily_discouraged(cell: Cell, witness: Witness, ledger: Ledger, terms: Terms) -> str:
    """An executor that takes a kill for the stage's own doing."""
    if not survived(cell, witness, ledger, terms):
        standings = ledger.standings(stage.digest for stage in cell)
        at = next(digest for digest, end in standings.items() if not isinstance(end, Finished))
        ledger.writer(at).fail("Lost: too often.")
    return ""


def verify(
    folder: Path,
    *,
    cell: Cell | None = None,
    trainer: Trainer | None = None,
    kills: int = 3,
    seed: int = 0,
    steps: int | None = None,
    execute: Execute = killable,
    executor: AbstractContextManager[Execute] | None = None,
) -> Finding:
    return Verification(
        cell=cell or toy_cell("a", Toy(steps=STEPS)),
        trainer=trainer or ToyTrainer(),
        ledger=Ledger.open(folder),
        profile=Profile(patience_s=0.0),
        kills=kills,
        seed=seed,
        steps=steps,
    ).run(executor or nullcontext(execute))


def certificates(folder: Path, cell: Cell | None = None) -> list[Certificate]:
    head = (cell or toy_cell("a", Toy(steps=STEPS))).stages[0].digest
    return [*Ledger.open(folder).certificates([head]).values()]


@pytest.mark.parametrize("seed", [0, 1])
def test_verification__of_a_sound_trainer(tmp_path, seed):
    finding = verify(tmp_path, seed=seed)
    (certificate,) = certificates(tmp_path)
    assert certificate == finding.certificate
    assert (certificate.kills, certificate.steps, certificate.total) == (3, STEPS + 2, STEPS + 2)
    assert certificate.provenance["trainer"]["name"] == "toy"
    assert "are the same to the last bit (kills: 3, steps repeated: " in finding.text
    assert finding.text.endswith("certificate.json")
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == [
        "certificate.json",
        "ledger.json",
    ], "what was only for comparing is gone"


def test_verification__of_a_few_steps(tmp_path):
    """Every step is killed but the last: there is no going on after that one."""
    finding = verify(tmp_path, steps=5, kills=4)
    assert finding.certificate is not None, finding.text
    assert finding.certificate.kills == 4
    assert (finding.certificate.steps, finding.certificate.total) == (5, STEPS)
    assert "all 5 steps compared, of 12, are the same" in finding.text


def test_verification__is_not_given_up_where_every_step_is_killed(tmp_path):
    finding = verify(tmp_path, kills=STEPS + 2, execute=easily_discouraged)
    assert finding.certificate is not None, finding.text
    assert finding.certificate.kills == STEPS + 2


@dataclass(frozen=True)
class Steps:
    """A training with momentum, of which a checkpoint may lack a part."""

    saved: tuple[str, ...]
    kind: str = "train"
    config_type: type[Any] = Toy

    def run(
        self, config: Toy, /, *, seed: int, resume: Path | None, **_: object
    ) -> Generator[ToyProgress, None, ToyResult]:
        state = {"step": 0, "weight": 1.0, "momentum": 0.0}
        if resume:
            state |= json.loads((resume / "state.json").read_text())
        while state["step"] < config.steps:
            state["step"] += 1
            state["momentum"] = 0.9 * state["momentum"] + config.rate * state["weight"]
            state["weight"] -= state["momentum"]
            traced = {name: str(value) for name, value in state.items()}
            yield ToyProgress(
                int(state["step"]), config.steps, {}, self.saver(state), lambda t=traced: t
            )
        return ToyResult({}, self.saver(state))

    def saver(self, state: Mapping[str, float]) -> Callable[[Path], None]:
        text = json.dumps({name: state[name] for name in self.saved})
        return lambda folder: (folder / "state.json").write_text(text) and None


class Sloppy(ToyTrainer):
    """It forgets its momentum, so it resumes almost right."""

    saved = ("step", "weight")

    def stages(self) -> Mapping[str, Stage]:
        return {**ToyTrainer().stages(), "train": Steps(self.saved)}


class Careful(Sloppy):
    saved = ("step", "weight", "momentum")


def only_training() -> Cell:
    cell = toy_cell("a", Toy(steps=STEPS))
    return replace(cell, stages=cell.stages[:1])


def test_verification__catches_a_trainer_that_resumes_almost_right(tmp_path):
    cell = only_training()
    assert verify(tmp_path, cell=cell, trainer=Careful()).certificate
    assert certificates(tmp_path)
    finding = verify(tmp_path, cell=cell, trainer=Sloppy())
    assert finding.certificate is None
    assert "a, seed 0 does not resume to the same bits: train, step " in finding.text
    assert "differs in weight, momentum." in finding.text
    assert not certificates(tmp_path), "the certificate of before is gone"
    assert {path.name for path in tmp_path.iterdir()} == {"stages", "ledger.json"}


def test_verification__of_a_cell_that_fails_by_itself(tmp_path):
    verify(tmp_path)
    finding = verify(tmp_path, cell=toy_cell("a", Toy(steps=STEPS), score=ToyScore(fail_at=2)))
    assert finding.certificate is None
    assert "does not finish by itself: score failed: RuntimeError: the toy was" in finding.text
    assert certificates(tmp_path), "nothing was found out about resuming"


def test_verification__of_a_cell_that_never_begins(tmp_path):
    finding = verify(tmp_path, execute=lambda *_: "there is no room")
    assert finding.text == "a, seed 0 does not finish by itself: there is no room"


def test_verification__of_a_cell_that_only_fails_after_a_kill(tmp_path):
    def execute(cell: Cell, witness: Witness, ledger: Ledger, terms: Terms) -> str:
        return "it was lost" if witness.kills else killable(cell, witness, ledger, terms)

    finding = verify(tmp_path, execute=execute)
    assert finding.text.endswith("only where it was killed it did not finish: it was lost")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_verification__leaves_nothing_behind_where_it_is_ended(tmp_path, error):
    def execute(*_: object) -> str:
        raise error

    with pytest.raises(error):
        verify(tmp_path, execute=execute)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ledger.json"]


def test_verification__touches_nothing_where_there_is_no_cluster(tmp_path):
    @contextmanager
    def absent():
        raise RuntimeError("no room")
        yield

    with pytest.raises(RuntimeError, match="no room"):
        verify(tmp_path / "none", executor=absent())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kills": 0}, "--kills: must be at least 1, got 0."),
        ({"steps": 1}, "--steps: must be at least 2, got 1."),
        ({"kills": 3, "steps": 2}, "--kills: must be fewer than the number of steps, 2, got 3."),
        ({"kills": 5, "steps": 5}, "--kills: must be fewer than the number of steps, 5, got 5."),
        (
            {"kills": 12, "steps": 99},
            "--kills: must be fewer than the number of steps, 12, got 12.",
        ),
        ({"kills": 15}, "--kills: must be at most the number of steps, 14, got 15."),
    ],
)
def test_verification__refuses_what_cannot_be(tmp_path, asked, words):
    with pytest.raises(StudyError) as caught:
        verify(tmp_path, **asked)
    assert str(caught.value) == words
    assert not certificates(tmp_path)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(trainer=ToyTrainer(), storage=Ledger.open(tmp_path / "traces").storage)


def run(witness: Witness, name: str = "train", config: Any = None) -> Iterator[Any]:
    exported = witness.storage.local / "exported"
    if name != "train":
        (exported / "state").mkdir(parents=True)
        (exported / "state" / "weight.json").write_text('{"step": 1, "weight": 1.0}')
    return witness.stages()[name].run(
        config or Toy(),
        seed=0,
        place=Place(),
        inputs=exported,
        resume=None,
        should_stop=lambda: False,
    )


def test_witness__is_taken_for_the_trainer(witness, tmp_path):
    trainer, place = witness.trainer, Place(data={"mine": tmp_path / "mine"})
    (tmp_path / "mine").write_text("1")
    for ask in (
        lambda t: (t.name, t.result_version, t.presets(), t.metrics(), list(t.stages())),
        lambda t: [(s.kind, s.config_type) for s in t.stages().values()],
        lambda t: (t.reads(Toy(data="mine")), t.fingerprint("data", "mine", place)),
        lambda t: (t.fits(ToyScore(), Toy(), place), t.check(Toy(), 3)),
    ):
        assert ask(witness) == ask(trainer)
    assert pickle.loads(pickle.dumps(witness)) == witness


def test_witness__changes_nothing_and_writes_down_every_step(witness, tmp_path):
    cell = toy_cell("a", Toy())
    watched, plain = new_ledger(tmp_path / "watched"), new_ledger(tmp_path / "plain")
    for trainer, ledger in ((witness, watched), (witness.trainer, plain)):
        run_inline(
            [cell], trainer=trainer, ledger=ledger, place=Place(), observe=ignore, terms=paced(0)
        )
    for stage in cell:
        assert isinstance(watched.outcome(stage.digest), Finished)
        assert watched.outcome(stage.digest) == plain.outcome(stage.digest)
    assert [trace.step for trace in witness.traces("train")] == [*range(1, 9)]
    assert [trace.step for trace in witness.traces("score")] == [1, 2]
    assert {*witness.traces("train")[0].digests} == {"step", "weight"}
    assert {trace.total for trace in witness.traces("train")} == {8}


def test_witness__a_failure_stays_one(witness, tmp_path):
    cell, ledger = toy_cell("a", Toy(fail_at=3)), new_ledger(tmp_path / "failing")
    run_inline(
        [cell], trainer=witness, ledger=ledger, place=Place(), observe=ignore, terms=paced(0)
    )
    outcome = ledger.outcome(cell.stages[0].digest)
    assert isinstance(outcome, Failed)
    assert "asked to fail at step 3" in outcome.error


def test_witness__a_stop_reaches_the_trainer(witness):
    stage = witness.stages()["train"]
    ask = iter([False, True])
    steps = stage.run(
        Toy(), seed=0, place=Place(), inputs=None, resume=None, should_stop=lambda: next(ask)
    )
    assert next(steps).step == 1
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert end.value.value is None


def test_witness__cuts_the_training_alone(witness, tmp_path):
    """The last step is written down and not handed on: no checkpoint lies behind it."""
    *_, third = islice(run(witness), 3)
    steps = run(replace(witness, steps=3))
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert {trace.step for trace in witness.traces("train")} == {1, 2, 3}
    assert end.value.value.metrics == third.metrics
    end.value.value.export(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name != "traces"]
    assert len([*run(replace(witness, steps=1), "score", ToyScore(steps=2))]) == 2


def test_witness__workers_write_beside_one_another(witness, monkeypatch):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert len([*run(witness)]) == 8
    assert [(t.step, t.rank) for t in witness.traces("train")][:4] == [
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]


@pytest.mark.parametrize(("share", "victim"), [(0.0, 0), (0.49, 0), (0.5, 1), (0.99, 1)])
def test_witness__kills_one_worker_once(witness, monkeypatch, share, victim):
    armed = replace(witness, kills=(Kill(stage="train", step=2, worker=share, moment=0.9),))
    monkeypatch.setenv("WORLD_SIZE", "2")
    ends = []
    for rank in (1 - victim, victim, victim):
        monkeypatch.setenv("RANK", str(rank))
        if not (child := os.fork()):
            for _ in run(armed):
                pass
            os._exit(0)
        ends.append(os.waitpid(child, 0)[1])
        assert armed.killed() == (rank == victim or len(ends) > 1)
    assert ends == [0, 9, 0]
    mine = [trace.step for trace in armed.traces("train") if trace.rank == victim]
    assert mine == sorted([1, 2, *range(1, 9)]), "nothing is handed on after the kill is due"


def trace(step: int, weight: str = "w", *, rank: int = 0, **others: str) -> Trace:
    digests = {"weight": weight, **others}
    return Trace(step=step, total=3, rank=rank, took_s=0.1, digests=digests)


RUN = Evidence(
    traces=[trace(1), trace(1, "v", rank=1), trace(2, "x"), trace(2, "y", rank=1)],
    journal=[Record(1, 0, {"loss": 0.5}), Record(2, 0, {"loss": float("nan")})],
    metrics={"loss": 0.0, "other": float("nan")},
    artifacts={"weights": Stored(1, "a")},
)


def test_difference__none():
    again = replace(
        RUN,
        traces=[*RUN.traces[:3], trace(1), trace(2, "x")],  # a worker was killed before its trace
        journal=[Record(r.step, 99, dict(r.metrics)) for r in RUN.journal],
    )
    assert difference(RUN, again) == ""
    assert (RUN.steps, RUN.repeated, again.repeated) == ([1, 2], 0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"traces": [*RUN.traces, trace(1, "z")]}, "step 1 differs in weight."),
        ({"traces": [*RUN.traces, trace(2, "z", rank=1)]}, "step 2 of worker 1 differs in weight."),
        ({"traces": [*RUN.traces, trace(2, "x", masks="m")]}, "step 2 differs in masks."),
        ({"traces": RUN.traces[:2]}, "step 2 was done in one of the runs only."),
        ({"traces": [*RUN.traces, trace(3)]}, "step 3 was done in one of the runs only."),
        ({"journal": RUN.journal[:1]}, "the journal differs at step 2."),
        ({"journal": [Record(1, 0, {}), *RUN.journal[1:]]}, "the journal differs at step 1."),
        ({"metrics": {**RUN.metrics, "loss": -0.0}}, "the final metrics differ in loss."),
        ({"metrics": {"other": float("nan")}}, "the final metrics differ in loss."),
        ({"artifacts": {"weights": Stored(1, "b")}}, "the artifacts differ in weights."),
        ({"artifacts": {}}, "the artifacts differ in weights."),
    ],
)
def test_difference__the_first_in_words(changes, words):
    assert difference(RUN, replace(RUN, **changes)) == words


def test_difference__also_between_tries_of_one_run():
    assert difference(replace(RUN, traces=[*RUN.traces, trace(1, "z")]), RUN) == (
        "step 1 differs in weight."
    )


CERTIFICATE = Certificate(
    kills=3, steps=8, total=9, repeated=2, workers=2, provenance={"host": "h"}
)


def test_certificate__is_kept_and_removed(ledger):
    digest, other = "ab" * 8, "cd" * 8
    at = ledger.certify(digest, CERTIFICATE)
    assert Path(at).name == "certificate.json"
    assert ledger.certificates([other, digest, digest]) == {digest: CERTIFICATE}
    ledger.certify(digest, None)
    ledger.certify(digest, None)
    assert ledger.certificates([digest]) == {}


@pytest.mark.parametrize("damage", [lambda b: b.replace(b"3", b"9", 1), lambda b: b[:-9]])
def test_certificate__counts_for_nothing_where_it_is_altered(ledger, caplog, damage):
    path = Path(ledger.certify("ab" * 8, CERTIFICATE))
    path.write_bytes(damage(path.read_bytes()))
    assert ledger.certificates(["ab" * 8]) == {}
    assert "certificate.json counts for nothing" in caplog.text
