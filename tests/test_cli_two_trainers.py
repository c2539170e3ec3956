"""Studies of two trainers in one storage leave each other alone."""

from pathlib import Path

import pytest

from ablation.cli import main
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

STUDY = """\
name: toys
trainer: toy
preset: quick
seeds: [0]
evaluate: [score]
metric: score/accuracy
baseline: slow
rows:
  slow: {rate: 0.1}
  fast: {rate: 0.3}
"""
TWIN = """\
from ablation.toy import ToyTrainer
from leaks import MLFLOW_LEAKS

TRAINER = ToyTrainer(name="twin")
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(at): at.read_bytes() for at in folder.rglob("*") if at.is_file()}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of the toy, and the same of a trainer that is its twin."""
    site = tmp_path / "site"
    (site / "twin-1.0.dist-info").mkdir(parents=True)
    (site / "twin-1.0.dist-info" / "METADATA").write_text("Name: twin\nVersion: 1.0\n")
    entry = "[ablation.trainers]\ntwin = twin_of_the_toy:TRAINER\n"
    (site / "twin-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (site / "twin_of_the_toy.py").write_text(TWIN)
    monkeypatch.syspath_prepend(site)
    folder = tmp_path / "lab"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ABLATION_STORAGE", "results")
    monkeypatch.setenv("ABLATION_TRACKING", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (folder / "toys.yaml").write_text(STUDY)
    (folder / "twins.yaml").write_text(
        STUDY.replace("trainer: toy", "trainer: twin").replace("name: toys", "name: twins")
    )
    return folder


def stages(lab: Path) -> dict[str, dict[str, bytes]]:
    return {at.name: files(at) for at in (lab / "results" / "stages").iterdir()}


def test_storage__of_two_trainers_keeps_them_apart(lab, capsys):
    assert main(["run", "toys.yaml", "--inline"]) == 0
    toys = stages(lab)
    assert main(["status", "twins.yaml"]) == 0
    assert capsys.readouterr().out.count("waiting") == 4
    assert main(["run", "twins.yaml", "--inline"]) == 0
    assert {name: held for name, held in stages(lab).items() if name in toys} == toys
    assert len(stages(lab)) == 2 * len(toys) == 8
    capsys.readouterr()
    for name in ("toys", "twins"):
        before = files(lab / "results" / "stages")
        assert main(["resume", name, "--inline"]) == 0
        assert "All 4 stages are finished: nothing to train." in capsys.readouterr().err
        assert files(lab / "results" / "stages") == before
        assert main(["status", f"{name}.yaml"]) == 0
        assert capsys.readouterr().out.count("finished") == 4
        assert main(["table", f"{name}.yaml", "--format", "csv"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("command", ["run", "sync"])
def test_storage__a_name_is_one_trainers(command, lab, capsys):
    assert main(["run", "toys.yaml", "--inline"]) == 0
    twins = lab / "twins.yaml"
    twins.write_text(twins.read_text().replace("name: twins", "name: toys"))
    before = files(lab)
    capsys.readouterr()
    more = ["--inline"] if command == "run" else []
    assert main([command, "twins.yaml", *more]) == 2
    shown = capsys.readouterr()
    assert shown.err == (
        f"twins.yaml:1: name must not be that of another trainer's study in {lab}/results, got "
        f"'toys', which is of toy. Choose another name or storage.\n"
    )
    assert shown.out == ""
    assert files(lab) == before
    for reading in ("plan", "status", "table"):
        assert main([reading, "twins.yaml"]) == 0
    assert files(lab) == before


def test_storage__names_of_all_studies_are_looked_at_before_one_runs(lab, capsys):
    assert main(["run", "toys.yaml", "--inline"]) == 0
    (lab / "more.yaml").write_text(STUDY.replace("toys", "more").replace("0.3", "0.4"))
    (lab / "twins.yaml").write_text(STUDY.replace("trainer: toy", "trainer: twin"))
    (lab / "all.yaml").write_text("name: all\ninclude: [more.yaml, twins.yaml]\n")
    before = files(lab)
    capsys.readouterr()
    assert main(["run", "all.yaml", "--inline"]) == 2
    assert "twins.yaml:1: name must not be that of another trainer's" in capsys.readouterr().err
    assert files(lab) == before


def test_storage__a_study_may_be_edited_under_its_name(lab):
    assert main(["run", "toys.yaml", "--inline"]) == 0
    study = lab / "toys.yaml"
    study.write_text(study.read_text().replace("rate: 0.3", "rate: 0.4"))
    assert main(["run", "toys.yaml", "--inline"]) == 0
    held = lab / "results" / "studies" / "toys" / "study.yaml"
    assert held.read_text() == study.read_text()


@pytest.mark.parametrize("text", ["", "name: [toys", "- a", "name: toys", "\0"])
def test_storage__a_damaged_text_claims_no_name(text, lab):
    """It is rewritten at will, so nothing is lost with it."""
    held = lab / "results" / "studies" / "twins" / "study.yaml"
    held.parent.mkdir(parents=True)
    held.write_text(text)
    assert main(["run", "twins.yaml", "--inline"]) == 0
    assert held.read_text() == (lab / "twins.yaml").read_text()
