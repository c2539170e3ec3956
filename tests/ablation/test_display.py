import io

import pytest
from rich.console import Console
from rich.progress import Progress

from ablation.cells import Begun, Failed, Finished, Waiting
from ablation.display import Display, displaying
from ablation.events import Event
from ablation.figure import draw
from ablation.overview import overview, status
from ablation.table import tabulate
from ablation.why import Lost

DONE = ("a", "b", "c")


def _event(stage, kind, **fields):
    return Event(digest=stage.digest, name=stage.name, kind=kind, **fields)


def _show(renderable, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=100)


def test_displaying__plain_lines_count_and_name(toy_plan, console):
    plan = toy_plan()
    train, score = plan.cells[0]
    with displaying(plan, DONE, console) as display:
        display(_event(train, "begun"))
        display(_event(train, "progress", step=1, total=8, metrics={"loss": 0.5}))
        display(_event(train, "committed", step=1, total=8))
        display(_event(train, "finished", metrics={"loss": 0.25}))
        display(_event(score, "failed", message="[red]no[/red]"))
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "[3/12] slow, seed 0: train began",
        "[4/12] slow, seed 0: train finished (loss 0.25)",
        "[5/12] slow, seed 0: score FAILED: [red]no[/red]",
    ]


def test_displaying__counts_no_stage_twice(toy_plan, console):
    """Nor leaves one out that somebody else has finished, or a process that could not tell so."""
    plan = toy_plan()
    train, score = plan.cells[0]
    with displaying(plan, [train.digest], console) as display:
        display(_event(train, "found", message="finished before"))
        display(_event(score, "finished"))
        display(_event(score, "finished"))
        display(_event(plan.cells[1].stages[0], "found", message="finished before"))
    counts = [line.split()[0] for line in console.file.getvalue().splitlines()]
    assert counts == ["[1/12]", "[2/12]", "[3/12]"]


def test_displaying__says_once_that_others_are_at_a_stage(toy_plan, console):
    train = toy_plan().cells[0].stages[0]
    with displaying(toy_plan(), (), console) as display:
        for message in ("by 7", "by 7", "by 8", "by 8"):
            display(_event(train, "busy", message=message))
    assert len(console.file.getvalue().splitlines()) == 2


def test_displaying__progress_is_told_now_and_then(toy_plan, console, monkeypatch):
    monkeypatch.setattr("ablation.display.time.monotonic", lambda: next(times))
    times = iter([100.0] * 2 + [101.0] + [200.0] * 2)
    train = toy_plan().cells[0].stages[0]
    with displaying(toy_plan(), (), console) as display:
        for step in (1, 2, 3):
            display(_event(train, "progress", step=step, total=8))
    lines = console.file.getvalue().splitlines()
    assert [line.split(": ")[1] for line in lines] == ["train step 1 of 8", "train step 3 of 8"]


def test_display__bars_follow_the_stages(toy_plan, console):
    plan = toy_plan()
    train, score = plan.cells[0]
    bars = Progress(console=console, auto_refresh=False)
    display = Display(plan, (), console, bars)
    display(_event(train, "begun"))
    display(_event(train, "progress", step=4, total=8))
    assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
        ("all stages", 0, 12),
        ("slow, seed 0: train", 4, 8),
    ]
    display(_event(train, "finished", metrics={"loss": 0.25}))
    display(_event(score, "skipped", message="not run: train failed"))
    assert [(task.description, task.completed) for task in bars.tasks] == [("all stages", 1)]
    assert "not run: train failed" in console.file.getvalue()


def test_displaying__draws_bars_on_a_terminal(toy_plan):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with displaying(toy_plan(), DONE, console):
        pass
    assert "3/12" in console.file.getvalue()


def test_overview__says_what_rows_set_and_what_is_done(toy_plan):
    plan = toy_plan()
    first = plan.cells[0].stages[0].digest
    standings = dict.fromkeys(plan.stages, Waiting()) | {first: Finished({})}
    shown = _show(overview(plan, standings))
    assert "slow (baseline)" in shown
    assert "rate: 0.3" in shown
    assert "noise (reference)" in shown
    assert "Which rate is best?" in shown
    assert "6 cells of train, score: 12 stages, 1 finished, 11 to run." in shown


def test_status__names_every_state(toy_plan):
    plan = toy_plan()
    states = [Finished({}), Failed("no [bold] luck"), Begun(3, 8), Waiting()]
    stages = list(plan.stages)
    standings = {digest: states[index % 4] for index, digest in enumerate(stages)}
    shown = _show(status(plan, standings, Lost(0, 0, 0.0)))
    assert "interruption" not in shown
    for words in ("finished", "failed", "37 %", "waiting", "no [bold] luck", "fast | wild"):
        assert words in shown


def test_status__ends_with_the_work_lost(toy_plan):
    plan = toy_plan()
    standings = dict.fromkeys(plan.stages, Waiting())
    shown = _show(status(plan, standings, Lost(3, 41, 12.0)))
    assert shown.rstrip().endswith("3 interruptions, at least 41 steps repeated (12 s).")


def test_draw__shows_all_rows(toy_plan):
    plan = toy_plan()
    values = iter(range(100))
    standings = {digest: Finished({"accuracy": float(next(values))}) for digest in plan.stages}
    figure = draw(tabulate(plan, standings))
    (panel,) = figure.axes
    labels = [tick.get_text() for tick in panel.get_yticklabels()]
    assert labels == ["slow", "fast | wild", "noise"]
    assert panel.get_title() == "score/accuracy (higher is better)"


def test_draw__of_nothing_yet(toy_plan):
    plan = toy_plan()
    assert draw(tabulate(plan, {})).axes
