"""Studies into cells: how many, in which order, and what they share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablation.plan import Plan, plan, sketch
from ablation.problems import StudyError
from ablation.protocol import Place
from ablation.study import AbsentError, Study, load_study, study_of
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
    found = plan(read(STUDY), ToyTrainer(), Place())
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
    before = digests(plan(read(STUDY), ToyTrainer(), Place()))
    changes = [
        ("seeds: [0, 1]", "seeds: [0, 1, 7]"),
        ("evaluate: [score]", "evaluate: [probe, score]"),
        ("  a: {rate: 0.1}", "  c: {rate: 0.3}\n  a: {rate: 0.1}"),
        ("name: toys", "name: other\nquestion: Why?"),
        ("references: [noise]", "references: []"),
    ]
    for old, new in changes:
        after = digests(plan(read(STUDY.replace(old, new)), ToyTrainer(), Place()))
        shared = before.keys() & after.keys()
        assert len(shared) >= 8
        assert {key: after[key] for key in shared} == {key: before[key] for key in shared}


def test_plan__labels_and_spelling_change_nothing(read: Reader) -> None:
    before = plan(read(STUDY), ToyTrainer(), Place())
    text = STUDY.replace("  a: {rate: 0.1}", "  zero: {rate: 1e-1, steps: 3}").replace(
        "{rate: 0.2, mask.ratio: 0.25}", "{mask: {ratio: 25e-2}, rate: 0.20}"
    )
    after = plan(read(text.replace("baseline: a", "baseline: zero")), ToyTrainer(), Place())
    assert list(after.stages) == list(before.stages)


def test_plan__new_results_are_new_stages(read: Reader) -> None:
    study = read(STUDY)
    old = plan(study, ToyTrainer(), Place()).stages
    assert (
        not old.keys() & plan(study, replace(ToyTrainer(), result_version=2), Place()).stages.keys()
    )
    probe = plan(read(STUDY.replace("[score]", "[{score: {steps: 3}}]")), ToyTrainer(), Place())
    assert len(old.keys() & probe.stages.keys()) == 6


def test_plan__two_studies_share_their_common_cells(read: Reader) -> None:
    one = plan(read(STUDY), ToyTrainer(), Place())
    text = STUDY.replace("rows:", "grid:\n  x:").replace("  a: {", "    a: {")
    text = text.replace("  b: {", "    b: {")
    other = plan(read(text), ToyTrainer(), Place())
    assert list(one.stages) == list(other.stages)


class Twins:
    """The toy trainer, but its reference takes the settings of the training, its data too."""

    name = "twins"
    result_version = 1

    def __init__(self) -> None:
        self.toy = ToyTrainer()
        self.asked: list[str] = []
        self.paired: list[tuple[Any, Any]] = []
        self.presets = self.toy.presets
        self.metrics = self.toy.metrics
        self.check = self.toy.check

    def stages(self) -> Mapping[str, Any]:
        stages: dict[str, Any] = dict(self.toy.stages())
        return {**stages, "noise": replace(stages["train"], kind="reference")}

    def reads(self, config: Any, /) -> Mapping[str, str]:
        two = {"mask.prefer": "dogs"} if isinstance(config, Toy) and config.batch == 2 else {}
        return {**two, **self.toy.reads(config)}

    def fingerprint(self, path: str, name: str, place: Place, /) -> str:
        self.asked.append(name)
        return self.toy.fingerprint(path, name, place)

    def fits(self, config: Any, parent: Any, place: Place, /) -> str | None:
        if parent is None:
            return "rate must be below 9, got 9." if getattr(config, "rate", 0) == 9 else None
        self.paired.append((config, parent))
        if config.steps > parent.steps:
            return f"steps must be at most {parent.steps}, got {config.steps}."
        return None


def test_plan__fingerprints_are_asked_for_once_and_enter_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(STUDY + "set: {data: cats, batch: 4}\n")
    Path("cats").write_text("meow")
    trainer = Twins()
    study = load_study(Path("x.yaml"), lookup=lambda name: trainer)
    place = Place(data={"cats": Path("cats")})
    before = plan(study, trainer, place)
    assert trainer.asked == ["cats"]
    assert before.cells[2].stages[0].config == Toy(steps=3, data="cats", batch=4)
    assert before.cells[2].stages[0].data == before.cells[0].stages[0].data is not None
    assert before.cells[0].stages[0].data == trainer.fingerprint("data", "cats", place)
    assert before.cells[0].stages[1].data is None
    Path("cats").write_text("purr")
    after = plan(study, trainer, place)
    assert not before.stages.keys() & after.stages.keys()


def test_plan__what_reads_more_than_one_thing_holds_each_in_the_order_of_their_paths(
    read: Reader,
) -> None:
    Path("cats").write_text("meow")
    Path("dogs").write_text("woof")
    place = Place(data={"cats": Path("cats"), "dogs": Path("dogs")})
    trainer = Twins()
    study = load_twins(STUDY + "set: {data: cats, batch: 2}\n", trainer)
    held = {cell.stages[0].data for cell in plan(study, trainer, place).cells}
    cats, dogs = (trainer.fingerprint("data", name, place) for name in ("cats", "dogs"))
    assert held == {f"{cats} {dogs}"}
    with pytest.raises(StudyError) as caught:
        plan(study, trainer, Place(data={"cats": Path("cats")}))
    assert str(caught.value) == "x.yaml:3: The place must say where 'dogs' lies, it does not."


UNFIT = STUDY.replace("[score]", "[{score: {steps: 4}}, probe]").replace("0.25", "0.25, steps: 5")


def load_twins(text: str, trainer: Twins, **options: Any) -> Study:
    Path("x.yaml").write_text(text)
    return load_study(Path("x.yaml"), lookup=lambda name: trainer, **options)


def test_load__an_evaluation_that_does_not_fit_is_told_once_with_its_rows(read: Reader) -> None:
    trainer = Twins()
    sentence = "x.yaml:5: score on a, noise (reference): steps must be at most 3, got 4."
    text = UNFIT.replace("  b:", "  c: {steps: 2}\n  b:")
    with pytest.raises(StudyError) as caught:
        load_twins(text, trainer, place=Place())
    assert str(caught.value).splitlines() == [
        sentence, "x.yaml:5: score on c: steps must be at most 2, got 4."
    ]  # fmt: skip
    assert len(trainer.paired) == 2 * 4
    with pytest.raises(StudyError) as caught:
        plan(load_twins(UNFIT, trainer), trainer, Place())
    assert str(caught.value) == sentence


def test_load__a_row_that_cannot_run_here_is_told_at_the_row(read: Reader) -> None:
    text = STUDY.replace("trainer: toy", "trainer: twins")
    with pytest.raises(StudyError) as caught:
        load_twins(text.replace("rate: 0.2", "rate: 9"), Twins(), place=Place())
    assert str(caught.value) == "x.yaml:11: b: rate must be below 9, got 9."


def test_load__whether_an_evaluation_fits_is_asked_of_what_is_sound_and_at_hand(
    read: Reader,
) -> None:
    trainer = Twins()
    with pytest.raises(StudyError) as caught:
        load_twins(UNFIT + "set: {data: cats}\n", trainer, place=Place())
    assert str(caught.value) == f"x.yaml:12: {NOWHERE}"
    with pytest.raises(StudyError) as caught:
        load_twins(UNFIT.replace("0.1}", "0.1, stepz: 1}"), trainer, place=Place())
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[2][:12] for line in lines] == ["5: score on ", "10: stepz is"]
    assert "score on noise (reference): " in lines[0]


def test_plan__data_that_is_not_there_is_told_at_its_name(read: Reader) -> None:
    sentence = "The place must say where 'cats' lies, it does not."
    for text, line in [
        (STUDY + "set: {data: cats}\n", 12),
        (STUDY.replace("0.1}", "0.1, data: cats}"), 10),
    ]:
        with pytest.raises(StudyError) as caught:
            plan(read(text), ToyTrainer(), Place())
        assert str(caught.value) == f"x.yaml:{line}: {sentence}"


def test_plan__workers_that_do_not_fit(read: Reader) -> None:
    study = read(STUDY + "  c: {batch: 7, rate: 0.3}\n")
    with pytest.raises(StudyError) as caught:
        plan(study, ToyTrainer(), Place(), workers=3)
    assert str(caught.value).splitlines() == [
        "x.yaml:3: batch must be divisible by 3 workers, got 8.",
        "x.yaml:12: c: batch must be divisible by 3 workers, got 7.",
    ]


FAULTY = STUDY.replace("0.25}", "0.25, steps: 0}") + "  c: {batch: 7, rate: 0.3}\n"


def refused(text: str, *, workers: int = 1) -> list[str]:
    Path("x.yaml").write_text(text)
    with pytest.raises(StudyError) as caught:
        load_study(Path("x.yaml"), lookup=lambda name: ToyTrainer(), place=Place(), workers=workers)
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
    trainer, place = Twins(), Place(data={"cats": Path("cats")})
    study = load_study(Path("x.yaml"), lookup=lambda name: trainer, place=place)
    found = plan(study, trainer, place)
    assert trainer.asked == ["cats"]
    assert len(trainer.paired) == 3
    again = load_study(Path("x.yaml"), lookup=lambda name: trainer)
    assert again.fingerprints is None
    assert list(plan(again, trainer, place).stages) == list(found.stages)


def test_load__several_studies_at_one_place_ask_once(read: Reader) -> None:
    Path("cats").write_text("meow")
    trainer, place = Twins(), Place(data={"cats": Path("cats")})
    document = read(STUDY + "set: {data: cats}\n").document
    cache: dict[tuple[str, str], str] = {}
    options: dict[str, Any] = {"lookup": lambda name: trainer, "place": place, "cache": cache}
    one, other = (study_of(document, **options) for _ in range(2))
    assert one.fingerprints == other.fingerprints == {"cats": cache["twins", "cats"]}
    assert trainer.asked == ["cats"]


def test_plan__data_that_cannot_be_read_are_a_problem(read: Reader) -> None:
    study = read(STUDY + "set: {data: cats}\n")
    with pytest.raises(StudyError) as caught:
        plan(study, ToyTrainer(), Place(data={"cats": Path("absent")}))
    assert str(caught.value) == (
        "x.yaml:12: data must be readable, got 'absent': No such file or directory."
    )


def test_load__keeps_the_text_that_it_read(read: Reader) -> None:
    study = read(STUDY)
    Path("x.yaml").write_text("name: other")
    assert study.document.text == STUDY


def test_plan__references_of_one_stage_are_rows_of_their_own(read: Reader) -> None:
    text = STUDY.replace("[noise]", "[noise, {noise: {scale: 2}}]")
    found = plan(read(text), ToyTrainer(), Place())
    assert [cell.label for cell in found.cells[2:4]] == [
        "noise (reference)", "noise (scale: 2) (reference)"
    ]  # fmt: skip
    assert found.cells[2].stages[0].digest != found.cells[3].stages[0].digest
    assert digests(plan(read(STUDY), ToyTrainer(), Place())).items() <= digests(found).items()


def test_load__data_that_are_not_at_hand_leave_a_sound_study(read: Reader) -> None:
    text = STUDY + "set: {data: cats}\n"
    Path("cats").write_text("meow")
    Path("x.yaml").write_text(text)
    with pytest.raises(AbsentError) as caught:
        load_study(Path("x.yaml"), lookup=lambda name: ToyTrainer(), place=Place())
    assert str(caught.value) == f"x.yaml:12: {NOWHERE}"
    (study,) = caught.value.studies
    sketched = sketch(study, ToyTrainer())
    found = plan(study, ToyTrainer(), Place(data={"cats": Path("cats")}))
    assert [cell.title for cell in sketched.cells] == [cell.title for cell in found.cells]
    assert (len(sketched.stages), sketched.num_stages) == (len(found.stages), found.num_stages)
    rows = [stage for cell in sketched.cells if not cell.reference for stage in cell]
    assert not found.stages.keys() & {stage.digest for stage in rows}
    for wrong in (text.replace("rate: 0.1", "rote: 0.1"), text.replace("quick", "quik")):
        Path("x.yaml").write_text(wrong)
        with pytest.raises(StudyError) as other:
            load_study(Path("x.yaml"), lookup=lambda name: ToyTrainer(), place=Place())
        assert not isinstance(other.value, AbsentError)
