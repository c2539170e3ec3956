"""Several studies in one command: each in turn, on one ledger, what they share trained once."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from ablation.cli import main
from ablation.include import include
from ablation.ledger import Ledger
from ablation.problems import StudyError
from leaks import MLFLOW_LEAKS

pytestmark = MLFLOW_LEAKS

ONE = """\
name: one
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
TWO = ONE.replace("name: one", "name: two").replace("[score]", "[score, probe]").replace(
    "fast: {rate: 0.3}", "faster: {rate: 0.5}"
)  # fmt: skip
ALL = "name: all\nquestion: Both?\ninclude: [studies/one.yaml, studies/two.yaml]\n"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ABLATION_STORAGE", "results")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "one.yaml").write_text(ONE)
    (tmp_path / "studies" / "two.yaml").write_text(TWO)
    (tmp_path / "all.yaml").write_text(ALL)
    return tmp_path


@pytest.fixture
def refused(lab: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def command(*arguments: str) -> list[str]:
        assert main(arguments or ["plan", "all.yaml"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert not (lab / "results").exists()
        return shown.err.splitlines()

    return command


def test_plan__shows_each_study_and_what_sharing_saves(lab, capsys):
    assert main(["plan", "all.yaml"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in ("one", "two", "all", "Both?")] == [
        "one", "two", "all", "Both?"
    ]  # fmt: skip
    assert "2 cells of train, score: 4 stages, 0 finished, 4 to run." in lines
    assert "2 cells of train, score, probe: 6 stages, 0 finished, 6 to run." in lines
    assert lines[-1] == (
        "2 studies: 4 cells, 3 of them different; 10 stages without sharing, 8 with it (2 saved), "
        "0 finished, 8 to run."
    )


def test_run__does_every_study_on_one_ledger_and_shared_stages_once(lab, capsys):
    assert main(["run", "all.yaml", "--inline"]) == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line in ("one:", "two:")] == ["one:", "two:"]
    assert "fast" in shown.out
    assert "faster" in shown.out
    ledger = Ledger.open("results")
    assert ledger.studies() == ["one", "two"]
    stages = [path.name for path in (lab / "results" / "stages").iterdir()]
    assert len(stages) == 8
    assert all(len(tries) == 1 for tries in ledger.tries(stages).values())

    assert main(["status", "all.yaml"]) == 0
    assert capsys.readouterr().out.count("finished") == 10
    assert main(["sync", "all.yaml"]) == 0
    assert capsys.readouterr().err.count("MLflow at ") == 2
    assert main(["plan", "all.yaml"]) == 0
    assert "8 finished, 0 to run." in capsys.readouterr().out.splitlines()[-1]


def test_run__goes_on_after_a_failure_and_tries_it_once(lab, capsys, monkeypatch):
    monkeypatch.setenv("ABLATION_TRACKING", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("ABLATION_MAX_FAILURES", "0")
    for file in ("one", "two"):
        path = lab / "studies" / f"{file}.yaml"
        path.write_text(path.read_text().replace("{rate: 0.1}", "{rate: 0.1, fail_at: 2}"))
    assert main(["run", "all.yaml", "--inline"]) == 1
    assert main(["status", "all.yaml"]) == main(["table", "all.yaml"]) == 1
    out = capsys.readouterr().out
    assert "slow, seed 0: train failed" in out
    ledger = Ledger.open("results")
    stages = [path.name for path in (lab / "results" / "stages").iterdir()]
    assert {len(tries) for tries in ledger.tries(stages).values()} == {1}
    assert main(["run", "studies/two.yaml", "--inline"]) == 1
    path = lab / "studies" / "one.yaml"
    path.write_text(path.read_text().replace(", fail_at: 2", ""))
    assert main(["run", "all.yaml", "--inline"]) == 1, "the worst of the two"


def test_table__of_several_is_one_csv(lab, capsys):
    two = (lab / "studies" / "two.yaml").read_text()
    grid = two.replace("rows:", "grid:\n x:").replace("  slow", "   slow")
    (lab / "studies" / "two.yaml").write_text(grid.replace("  faster", "   faster"))
    assert main(["table", "all.yaml", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["study"], row["row"], row["x"]) for row in rows[::2]] == [
        ("one", "slow", ""), ("two", "slow", "slow"), ("two", "faster", "faster"),
    ]  # fmt: skip
    assert all(None not in row and None not in row.values() for row in rows)
    assert main(["table", "all.yaml", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("## ")] == ["## one", "## two"]


@pytest.mark.parametrize("command", [["why", "all.yaml", "slow"], ["verify-resume", "all.yaml"]])
def test_commands_about_one_cell__ask_for_one_study(command, refused):
    assert refused(*command) == [
        "all.yaml: this is asked of one study. Name the file of one: studies/one.yaml, "
        "studies/two.yaml."
    ]


def test_why__of_a_file_that_includes_one_study(lab, capsys):
    (lab / "all.yaml").write_text("name: all\ninclude: [studies/one.yaml]\n")
    assert main(["why", "all.yaml", "slow"]) == 0
    assert "slow, seed 0" in capsys.readouterr().out


def test_problems__of_all_files_are_told_at_once(lab, refused):
    for file, (old, new) in {
        "one": ("rate: 0.1", "rote: 0.1"), "two": ("baseline: slow", "baseline: slew")
    }.items():  # fmt: skip
        path = lab / "studies" / f"{file}.yaml"
        path.write_text(path.read_text().replace(old, new))
    (lab / "all.yaml").write_text(ALL.replace("]", ", none.yaml]") + "rows: 3\n")
    for command in (["plan"], ["run", "--inline"], ["status"], ["table"], ["sync"]):
        assert refused(*command, "all.yaml") == [
            "all.yaml:3: include must name files that are there, relative to this one, got "
            "'none.yaml'.",
            "all.yaml:4: 'rows' is no key of a file that includes studies. "
            "Choose from: name, question, include.",
            "studies/one.yaml:9: rote is no setting. Did you mean 'rate'?",
            "studies/two.yaml:7: baseline must be a row, got 'slew'. Did you mean 'slow'?",
        ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("include: [studies/one.yaml]", "all.yaml:1: name must be given: 1 to 100 letters"),
        ("name: a/b\ninclude: [studies/one.yaml]", "all.yaml:1: name must be 1 to 100 letters"),
        ("name: all\ninclude: []", "all.yaml:2: include must be a list of at least one study's"),
        ("name: all\ninclude:", "all.yaml:2: include must be a list of at least one study's file, "
         "relative to this one, got nothing."),
        ("name: all\ninclude: [3]", "all.yaml:2: include must be a list of at least one study's"),
        ("name: all\ninclude: ['']", "all.yaml:2: include must be a list of at least one study's"),
        ("name: all\ninclude: [studies/one.yaml, studies/../studies/one.yaml]",
         "all.yaml:2: include must name a file once, got 'studies/../studies/one.yaml'."),
        ("name: all\ninclude: [all.yaml]",
         "all.yaml:2: include must not lead back to where it began, got 'all.yaml'."),
        ("name: all\ninclude: [studies]", "studies:1: must be a file, got a folder."),
        ('name: all\ninclude: ["a\\0b"]', "all.yaml:2: include must be a list of at least one"),
        (f"name: all\ninclude: [{'a' * 300}]",
         "all.yaml:2: include must name files that are there"),
        ("name: all\ninclude: [loop.yaml]", "all.yaml:2: include must name files that are there"),
    ],
)  # fmt: skip
def test_include__that_cannot_be(lab, refused, text, line):
    (lab / "loop.yaml").symlink_to("loop.yaml")
    (lab / "all.yaml").write_text(text + "\n")
    (told,) = refused()
    assert told.startswith(line)


def test_include__of_one_name_twice(lab, refused):
    (lab / "studies" / "two.yaml").write_text(TWO.replace("name: two", "name: one"))
    assert refused() == [
        "studies/two.yaml:1: name must differ from that of studies/one.yaml, got 'one'."
    ]


def test_include__nests_and_finds_cycles(lab, refused):
    (lab / "studies" / "both.yaml").write_text("name: both\ninclude: [one.yaml, two.yaml]\n")
    (lab / "all.yaml").write_text("name: all\ninclude: [studies/both.yaml]\n")
    files = [document.file for document in include(Path("all.yaml")).documents]
    assert files == ["studies/one.yaml", "studies/two.yaml"]
    (lab / "all.yaml").write_text("name: all\ninclude: [studies/two.yaml, studies/both.yaml]\n")
    files = [document.file for document in include(Path("all.yaml")).documents]
    assert files == ["studies/two.yaml", "studies/one.yaml"], "each once"
    (lab / "studies" / "both.yaml").write_text("name: both\ninclude: [../all.yaml]\n")
    assert refused() == [
        "studies/both.yaml:2: include must not lead back to where it began, got '../all.yaml'."
    ]


def test_include__of_a_study_is_that_study(lab):
    found = include(Path("studies/one.yaml"))
    assert (found.name, [document.text for document in found.documents]) == ("", [ONE])
    with pytest.raises(StudyError):
        include(Path("none.yaml"))


def test_plan__without_the_data_shows_every_study(lab, capsys):
    (lab / "studies" / "two.yaml").write_text(TWO.replace("rate: 0.5", "rate: 0.5, data: numbers"))
    assert main(["plan", "all.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.err == (
        "studies/two.yaml:10: The place must say where 'numbers' lies, it does not.\n"
    )
    unknown = "how many are finished cannot be known without the data."
    assert shown.out.splitlines()[-1] == (
        "2 studies: 4 cells, 3 of them different; 10 stages without sharing, 8 with it (2 saved), "
        f"{unknown}"
    )
    assert shown.out.count(unknown) == 3
    (lab / "studies" / "one.yaml").write_text(ONE.replace("rate: 0.1", "rote: 0.1"))
    assert main(["plan", "all.yaml"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 2
