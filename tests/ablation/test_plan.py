"""Studies into cells: how many, in which order, and what they share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablation.plan import Plan, plan
from ablation.problems import StudyError
from ablation.study import Study, load_study
from ablation.toy import Toy, ToyMask, ToyTrainer

STUDY = """\
name: toys
trainer: toy
preset: quick
seeds: [0, 1]
evaluate: [score]
metric: score/accuracy
baseline: a
references: [noise]
rows:
  a: {rate: 0.1}
  b: {rate: 0.2, mask.ratio: 0.25}
"""

Reader = Callable[[str], Study]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.chdir(tmp_path)

    def load(text: str) -> Study:
        Path("x.yaml").write_text(text)
        return load_study(Path("x.yaml"), lookup=lambda name: ToyTrainer())

    return load


def digests(found: Plan) -> dict[tuple[str, int, str], str]:
    return {
        (cell.row, cell.seed, stage.name): stage.digest for cell in found.cells for stage in cell
    }


def test_plan__fills_the_table_evenly(read: Reader) -> None:
    found = plan(read(STUDY), ToyTrainer(), {})
    assert [cell.title for cell in found.cells] == [
        "a, seed 0", "b, seed 0", "noise (reference), seed 0",
        "a, seed 1", "b, seed 1", "noise (reference), seed 1",
    ]  # fmt: skip
    assert [cell.reference for cell in found.cells] == [False, False, True] * 2
    assert (len(found.stages), found.num_stages) == (12, 12)
    train, score = found.cells[1].stages
    assert train.config == Toy(steps=3, rate=0.2, mask=ToyMask(ratio=0.25))
    assert (train.kind, train.parent, train.seed) == ("train", None, 0)
    assert (score.kind, score.parent) == ("evaluate", train.digest)
    assert found.cells[2].stages[0].kind == "reference"


def test_plan__what_is_added_leaves_every_digest_alone(read: Reader) -> None:
    before = digests(plan(read(STUDY), ToyTrainer(), {}))
    changes = [
        ("seeds: [0, 1]", "seeds: [0, 1, 7]"),
        ("evaluate: [score]", "evaluate: [probe, score]"),
        ("  a: {rate: 0.1}", "  c: {rate: 0.3}\n  a: {rate: 0.1}"),
        ("name: toys", "name: other\nquestion: Why?"),
        ("references: [noise]", "references: []"),
    ]
    for old, new in changes:
        after = digests(plan(read(STUDY.replace(old, new)), ToyTrainer(), {}))
        shared = before.keys() & after.keys()
        assert len(shared) >= 8
        assert {key: after[key] for key in shared} == {key: before[key] for key in shared}


def test_plan__labels_and_spelling_change_nothing(read: Reader) -> None:
    before = plan(read(STUDY), ToyTrainer(), {})
    text = STUDY.replace("  a: {rate: 0.1}", "  zero: {rate: 1e-1, steps: 3}").replace(
        "{rate: 0.2, mask.ratio: 0.25}", "{mask: {ratio: 25e-2}, rate: 0.20}"
    )
    after = plan(read(text.replace("baseline: a", "baseline: zero")), ToyTrainer(), {})
    assert list(after.stages) == list(before.stages)


def test_plan__new_results_are_new_stages(read: Reader) -> None:
    study = read(STUDY)
    old = plan(study, ToyTrainer(), {}).stages
    assert not old.keys() & plan(study, replace(ToyTrainer(), result_version=2), {}).stages.keys()
    probe = plan(read(STUDY.replace("[score]", "[{score: {steps: 3}}]")), ToyTrainer(), {})
    assert len(old.keys() & probe.stages.keys()) == 6


def test_plan__two_studies_share_their_common_cells(read: Reader) -> None:
    one = plan(read(STUDY), ToyTrainer(), {})
    text = STUDY.replace("rows:", "grid:\n  x:").replace("  a: {", "    a: {")
    text = text.replace("  b: {", "    b: {")
    other = plan(read(text), ToyTrainer(), {})
    assert list(one.stages) == list(other.stages)


class Twins:
    """The toy trainer, but its reference takes the settings of the training, its data too."""

    name = "twins"
    result_version = 1

    def __init__(self) -> None:
        self.toy = ToyTrainer()
        self.asked: list[Any] = []
        self.presets = self.toy.presets
        self.metrics = self.toy.metrics
        self.check = self.toy.check

    def stages(self) -> Mapping[str, Any]:
        stages: dict[str, Any] = dict(self.toy.stages())
        return {**stages, "noise": replace(stages["train"], kind="reference")}

    def fingerprint(self, config: Any, data: Mapping[str, Path], /) -> str | None:
        self.asked.append(config)
        return self.toy.fingerprint(config, data)


def test_plan__fingerprints_are_asked_for_once_and_enter_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(STUDY + "set: {data: cats, batch: 4}\n")
    Path("cats").write_text("meow")
    trainer = Twins()
    study = load_study(Path("x.yaml"), lookup=lambda name: trainer)
    before = plan(study, trainer, {"cats": Path("cats")})
    # One for the rows and their reference, one for the evaluation, which has no field `data`.
    assert len(trainer.asked) == 2
    assert before.cells[2].stages[0].config == Toy(steps=3, data="cats", batch=4)
    assert before.cells[2].stages[0].data == before.cells[0].stages[0].data is not None
    assert before.cells[0].stages[1].data is None
    Path("cats").write_text("purr")
    after = plan(study, trainer, {"cats": Path("cats")})
    assert not before.stages.keys() & after.stages.keys()


def test_plan__data_that_is_not_there_is_told_at_its_name(read: Reader) -> None:
    sentence = "The place must say where 'cats' lies, it does not."
    for text, line in [
        (STUDY + "set: {data: cats}\n", 12),
        (STUDY.replace("0.1}", "0.1, data: cats}"), 10),
    ]:
        with pytest.raises(StudyError) as caught:
            plan(read(text), ToyTrainer(), {})
        assert str(caught.value) == f"x.yaml:{line}: {sentence}"


def test_plan__workers_that_do_not_fit(read: Reader) -> None:
    study = read(STUDY + "  c: {batch: 7, rate: 0.3}\n")
    with pytest.raises(StudyError) as caught:
        plan(study, ToyTrainer(), {}, workers=3)
    assert str(caught.value).splitlines() == [
        "x.yaml:3: batch must be divisible by 3 workers, got 8.",
        "x.yaml:12: c: batch must be divisible by 3 workers, got 7.",
    ]


FAULTY = STUDY.replace("0.25}", "0.25, steps: 0}") + "  c: {batch: 7, rate: 0.3}\n"


def refused(text: str, *, workers: int = 1) -> list[str]:
    Path("x.yaml").write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(Path("x.yaml"), lookup=lambda name: ToyTrainer(), data={}, workers=workers)
    return str(caught.value).splitlines()


NOWHERE = "The place must say where 'cats' lies, it does not."


def test_load__tells_what_is_wrong_in_the_file_and_at_the_place_in_one_answer(read: Reader) -> None:
    read(STUDY)
    assert refused(FAULTY + "set: {data: cats}\n", workers=3) == [
        "x.yaml:3: batch must be divisible by 3 workers, got 8.",
        "x.yaml:11: steps must be at least 1, got 0.",
        "x.yaml:12: c: batch must be divisible by 3 workers, got 7.",
        f"x.yaml:13: {NOWHERE}",
    ]


@pytest.mark.parametrize(
    "common",
    ["{data: cats, steps: 0}", "{data: cats, mask.rato: 0.5}", "{data: cats, rate: 'no'}"],
)
def test_load__data_are_asked_for_beside_any_other_fault(read: Reader, common: str) -> None:
    read(STUDY)
    text = STUDY.replace(", mask.ratio: 0.25", "") + f"set: {common}\n"
    found = refused(text)
    assert len(found) == 2
    assert f"x.yaml:12: {NOWHERE}" in found


def test_load__what_is_wrong_itself_is_not_asked_for(read: Reader) -> None:
    read(STUDY)
    assert refused(STUDY + "set: {data: 3}\n") == ["x.yaml:12: data must be text, got 3."]
    (line,) = refused(STUDY + "set: {batch: many}\n", workers=3)
    assert "batch must be a whole number" in line
    (line,) = refused(STUDY.replace("quick", "quik"), workers=3)
    assert "preset must be one of toy's" in line
    found = refused(STUDY.replace("quick", "quik") + "set: {data: cats}\n", workers=3)
    assert found[1:] == [f"x.yaml:12: {NOWHERE}"]


def test_load__fingerprints_that_it_found_are_not_asked_for_again(read: Reader) -> None:
    text = STUDY + "set: {data: cats}\n"
    Path("cats").write_text("meow")
    Path("x.yaml").write_text(text)
    trainer, data = Twins(), {"cats": Path("cats")}
    study = load_study(Path("x.yaml"), lookup=lambda name: trainer, data=data)
    found = plan(study, trainer, data)
    assert len(trainer.asked) == 2
    again = load_study(Path("x.yaml"), lookup=lambda name: trainer)
    assert again.fingerprints == {}
    assert list(plan(again, trainer, data).stages) == list(found.stages)


def test_plan__data_that_cannot_be_read_are_a_problem(read: Reader) -> None:
    study = read(STUDY + "set: {data: cats}\n")
    with pytest.raises(StudyError) as caught:
        plan(study, ToyTrainer(), {"cats": Path("absent")})
    assert str(caught.value) == (
        "x.yaml:12: data must be readable, got 'absent': No such file or directory."
    )


def test_load__keeps_the_text_that_it_read(read: Reader) -> None:
    study = read(STUDY)
    Path("x.yaml").write_text("name: other")
    assert study.document.text == STUDY
