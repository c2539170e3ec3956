from typing import Any

import pytest

from ablation.attempts import Attempt
from ablation.cells import Begun, Failed, Finished, Standing, Waiting
from ablation.testing import Toy, toy_cell
from ablation.why import Lost, story, work_lost

NOON = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
CELL = toy_cell("slow", Toy(rate=0.1))
OTHERS = [toy_cell("fast", Toy(rate=0.2)), toy_cell("wild", Toy(rate=0.3))]
CELLS = [CELL, *OTHERS]
TRAIN, SCORE = (stage.digest for stage in CELL)


def tries(*parts: dict[str, Any]) -> tuple[Attempt, ...]:
    """Attempts of one run, a minute after each other."""
    known = {"from_step": 0, "run": "now", "provenance": {"host": "node-7"}}
    return tuple(
        Attempt(**{"number": n, "begun_ms": NOON + 60_000 * n, **known, **part})
        for n, part in enumerate(parts, 1)
    )


def ended(how: str, step: int | None, *, begun: int = 1, after_s: float = 10, **parts: Any) -> Any:
    at = NOON + 60_000 * begun + int(1000 * after_s)
    return {"ended": how, "step": step, "ended_ms": at, **parts}


def told(attempts: dict[str, tuple[Attempt, ...]], *stands: Standing) -> list[str]:
    standings = {stage.digest: Waiting() for cell in CELLS for stage in cell}
    standings |= dict(zip((TRAIN, SCORE), stands, strict=False))
    return list(story(CELL, CELLS, standings, attempts))


def test_story__of_a_cell_that_has_not_begun():
    assert told({}) == ["slow, seed 0", "  train: not begun", "  score: not begun"]


def test_story__says_where_when_and_how_each_attempt_went():
    attempts = tries(
        ended("preempted", 30, error="node-7 goes in 2 min"),
        ended("interrupted", 50, begun=2, after_s=65, from_step=20, workers=4),
        {"from_step": 50},
    )
    assert told({TRAIN: attempts}, Begun(50, 99)) == [
        "slow, seed 0",
        "  train: step 50 of 99 is committed, 3 attempts",
        "    1. 2023-11-14 22:14 UTC on node-7: from the beginning; "
        "preempted after step 30 or later (node-7 goes in 2 min)",
        "    2. 2023-11-14 22:15 UTC on node-7, 4 workers: went on after step 20, "
        "10 steps repeated (3.3 s); asked to stop after step 50 in 65 s",
        "    3. 2023-11-14 22:16 UTC on node-7: went on after step 50; at work, or lost since",
        "  score: not begun",
        "  1 interruption, at least 10 steps repeated (3.3 s).",
    ]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (ended("lost", None), "lost, without a word"),
        (ended("lost", 0), "lost, without a word"),
        (ended("lost", 7), "lost after step 7 or later, without a word"),
        (
            ended("lost", 7, cause="node"),
            "lost after step 7 or later, with another worker's machine",
        ),
        (ended("finished", 9), "finished after step 9 in 10 s"),
        (ended("finished", 9, after_s=0.2), "finished after step 9"),
        (ended("finished", 9, after_s=-50), "finished after step 9"),
        (ended("finished", 9, after_s=5399), "finished after step 9 in 90 min"),
        (ended("finished", 9, after_s=5400), "finished after step 9 in 1.5 h"),
        (ended("failed", 9, error="E: x", after_s=0), "failed after step 9: E: x"),
        (ended("failed", 0, error="E: x", after_s=0), "failed: E: x"),
        (
            ended("failed", 9, error="E: x", cause="memory"),
            "failed after step 9 in 10 s, for lack of memory: E: x",
        ),
        (ended("failed", 9, error="E", cause="final"), "failed after step 9 in 10 s, for good: E"),
        (
            ended("failed", 9, error="E", cause="away"),
            "failed after step 9 in 10 s, as what it needs was away: E",
        ),
    ],
)
def test_story__names_the_end(part, words):
    assert told({TRAIN: tries(part)}, Begun(9, 99))[2].endswith(f": from the beginning; {words}")


def test_story__of_a_stage_that_is_over_says_nobody_is_at_work():
    lines = told({TRAIN: tries({}), SCORE: tries({})}, Finished({}), Failed("E"))
    assert [line.rpartition("; ")[2] for line in lines if "UTC" in line] == [
        "gone without a word"
    ] * 2


def test_story__names_the_rule_once_and_what_depends_on_the_stage():
    same = ended("failed", 3, error="E: x", cause="exception", after_s=0)
    other = ended("failed", 2, error="E: y", cause="exception", after_s=0)
    end = "E: x (not tried again: max_failures is 2)"
    lines = told({TRAIN: tries(other, same, same)}, Failed(end))
    assert lines[1] == "  train: failed, 3 attempts"
    assert lines[2].endswith("failed after step 2: E: y")
    assert all(line.endswith("failed after step 3") for line in lines[3:5])
    assert lines[5:] == [f"    {end}", "  score: not begun: train failed"]


def test_story__of_a_damaged_record_says_so():
    (damaged,) = tries({"begun_ms": 0, "provenance": {}})
    lines = told({TRAIN: (damaged,)})
    assert lines[1] == "  train: nothing is committed, 1 attempt"
    assert lines[2].startswith("    1. its record is damaged: ")


def queue(waited_s: float, *begun_s: float, shared: bool = False) -> str:
    """The place of an attempt that began so long after its run, as others did."""
    since = NOON + 60_000 - int(1000 * waited_s)
    attempts = {TRAIN: tries({"queued_ms": since})}
    stages = [stage.digest for other in OTHERS for stage in other]
    for digest, at in zip([TRAIN] if shared else stages, begun_s, strict=False):
        each = tries({"begun_ms": since + int(1000 * at)})
        attempts[digest] = (*attempts.get(digest, ()), *each)
    return told(attempts)[2].partition(" on node-7")[2].partition(": from")[0]


@pytest.mark.parametrize(
    ("queued", "words"),
    [
        (queue(0.9, 0.1), ""),
        (queue(-60), ""),
        (queue(4 * 3600), ", queued 4.0 h"),
        (queue(8, 0, 7), ", queued 8 s behind 1 cell"),
        (queue(8, 0, 1, 2), ", queued 8 s behind 2 cells"),
        (queue(8, -1, 8, 9), ", queued 8 s"),
        (queue(8, 1, shared=True), ", queued 8 s"),
    ],
    ids=["at once", "clocks", "alone", "both stages of one", "of two", "not meanwhile", "its own"],
)
def test_story__says_what_a_cell_was_queued_behind(queued, words):
    assert queued == words


def test_story__is_queued_once_in_each_run():
    since = {"queued_ms": NOON}
    train = tries(since | ended("lost", 3), since, since | {"run": "later"})
    lines = told({TRAIN: train, SCORE: tries(since | {"run": "later"})})
    assert ["queued" in line for line in lines if "UTC" in line] == [True, False, True, False]


def test_work_lost__is_what_was_done_since_the_commit():
    attempts = tries(
        ended("lost", 30),
        ended("preempted", 25, begun=2, from_step=20),
        ended("finished", 40, begun=3, from_step=20),
    )
    lost = work_lost({TRAIN: attempts, SCORE: tries(ended("lost", None), {})})
    assert lost == Lost(3, 10 + 5, 10 * 10 / 30 + 10)
    assert str(lost) == "3 interruptions, at least 15 steps repeated (13 s)"


@pytest.mark.parametrize("how", ["failed", "interrupted", "finished", None])
def test_work_lost__is_not_what_a_trainer_or_a_person_did(how):
    assert work_lost({TRAIN: tries(ended(how, 9), {})}) == Lost(0, 0, 0.0)


def test_work_lost__of_who_came_before_the_first_beat_is_less_than_that():
    assert str(work_lost({TRAIN: tries(ended("lost", None), {})})) == (
        "1 interruption, less than 5 s of work repeated"
    )
