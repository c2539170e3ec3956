from collections.abc import Sequence
from typing import Any

import pytest

from ablation.attempts import Attempt
from ablation.retries import MAX_LOSSES, MAX_LOSSES_IN_PLACE, cause_of, enough, pause_s


def tries(*parts: dict[str, Any]) -> Sequence[Attempt]:
    return [
        Attempt(**{"number": n, "begun_ms": 0, "from_step": 0, "run": "now", **part})
        for n, part in enumerate(parts, 1)
    ]


def lost(from_step: int = 0, step: int | None = None, **parts: Any) -> dict[str, Any]:
    return {"ended": "lost", "from_step": from_step, "step": step, **parts}


def failed(error: str, step: int = 3, **parts: Any) -> dict[str, Any]:
    return {"ended": "failed", "error": error, "step": step, "cause": "exception", **parts}


class FinalError(Exception):
    retry = False


class AwayError(FinalError):
    retry, away = True, True


class OutOfMemoryError(RuntimeError):
    """As torch and Ray call theirs."""


class CudaError(OutOfMemoryError): ...


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("x"), "exception"),
        (KeyboardInterrupt(), "exception"),
        (FinalError("x"), "final"),
        (AwayError("x"), "away"),
        (MemoryError(), "memory"),
        (OutOfMemoryError(), "memory"),
        (CudaError(), "memory"),
        (RuntimeError("out of memory"), "exception"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), "memory"),
        (RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you"), "memory"),
    ],
)
def test_cause__is_known_by_the_class(error, cause):
    assert cause_of(error) == cause


@pytest.mark.parametrize("ended", ["finished", "interrupted", "preempted", None])
@pytest.mark.parametrize("max_failures", [0, 3])
def test_enough__is_never_what_somebody_else_did(ended, max_failures):
    attempts = tries(*[{"ended": ended}] * 20)
    assert enough(attempts, max_failures=max_failures) is None


def test_enough__five_losses_in_a_row_in_place():
    for count in range(1, MAX_LOSSES_IN_PLACE):
        assert enough(tries(*[lost(4, 4)] * count), max_failures=0) is None
    reason = enough(tries(*[lost(4, 4)] * MAX_LOSSES_IN_PLACE), max_failures=9)
    assert reason == "its process was lost 5 times in a row at step 4"


def test_enough__a_loss_counts_where_its_machine_outlived_it():
    """Which is seen when another try comes to it; the last may be one of its kind."""

    def on(*hosts: str) -> Sequence[Attempt]:
        return tries(*[lost(4, 4, provenance={"machine": host}) for host in hosts])

    assert enough(on(*"abcdefghij"), max_failures=0) is None
    assert enough(on(*"abababab"), max_failures=0) is not None
    assert enough(on(*"aaaab"), max_failures=0) is None
    assert enough(on(*"aaaaa"), max_failures=0) is not None
    assert enough(on(*"xaaayaa"), max_failures=0) is not None


def test_enough__a_loss_with_the_node_of_a_peer_is_not_its_doing():
    peers = [lost(4, 4, cause="node")] * 10
    assert enough(tries(*peers), max_failures=0) is None
    assert enough(tries(*[lost(4, 4)] * 2, *peers, *[lost(4, 4)] * 2), max_failures=0) is None
    assert enough(tries(*[lost(4, 4)] * 2, *peers, *[lost(4, 4)] * 3), max_failures=0) is not None


@pytest.mark.parametrize("cause", [None, "node"])
def test_enough__twenty_losses_in_place_wherever_they_were(cause):
    """A stage that takes its machines down would do so for ever."""
    attempts = tries(
        *[lost(4, 4, cause=cause, provenance={"machine": str(n)}) for n in range(MAX_LOSSES)]
    )
    assert enough(attempts[:-1], max_failures=0) is None
    assert enough(attempts, max_failures=0) == "its process was lost 20 times in a row at step 4"


def test_enough__a_process_that_left_no_word_got_nowhere():
    """It died before its first beat, on whatever machine."""
    assert enough(tries(*[lost(4, None)] * 5), max_failures=0) is not None
    assert enough(tries(*[lost(4, None)] * 4), max_failures=0) is None


def test_enough__progress_begins_the_row_anew():
    """Whether it was committed or, by the last beat, only done."""
    assert enough(tries(*[lost(4)] * 4, lost(6)), max_failures=0) is None
    assert enough(tries(*[lost(4)] * 4, lost(6), *[lost(6)] * 4), max_failures=0) is not None
    assert enough(tries(*[lost(4)] * 4, lost(4, 6), *[lost(4)] * 4), max_failures=0) is None
    assert enough(tries(*[lost(step, step + 9) for step in range(50)]), max_failures=0) is None


def test_enough__a_crash_at_one_step_before_any_checkpoint_ends():
    """Each time it gets to step 30, or as far on the way there as the last beat saw."""
    steps = [27, 30, 29, 30, 28, 30]
    attempts = tries(*[lost(0, step) for step in steps])
    assert enough(attempts[:-1], max_failures=0) is None
    reason = enough([*attempts, *tries(lost(0, 30))], max_failures=0)
    assert reason == "its process was lost 5 times in a row at step 30"


@pytest.mark.parametrize("ended", ["preempted", "interrupted", "failed"])
def test_enough__only_losses_in_a_row(ended):
    attempts = tries(*[lost()] * 4, {"ended": ended, "cause": "exception"}, *[lost()] * 4)
    assert enough(attempts, max_failures=9) is None


@pytest.mark.parametrize("max_failures", range(4))
def test_enough__as_many_exceptions_as_are_allowed(max_failures):
    attempts = tries(*[failed(f"error {n}") for n in range(max_failures + 1)])
    for count in range(1, max_failures + 1):
        assert enough(attempts[:count], max_failures=max_failures) is None
    assert str(max_failures) in str(enough(attempts, max_failures=max_failures))


def test_enough__exceptions_count_wherever_they_lie():
    between = [lost(), {"ended": "preempted"}]
    attempts = tries(failed("a"), *between, failed("b"), *between, failed("c"))
    assert enough(attempts, max_failures=2) is not None
    assert enough(attempts, max_failures=3) is None


def test_enough__the_same_exception_at_one_step():
    assert enough(tries(failed("a", 3), failed("a", 3)), max_failures=9) == (
        "the same exception came twice at step 3"
    )
    assert enough(tries(failed("a", 3), failed("b", 3)), max_failures=9) is None
    assert enough(tries(failed("a", 3), failed("a", 4)), max_failures=9) is None
    assert enough(tries(failed("a", 3), failed("b", 4), failed("a", 3)), max_failures=9) is not None
    assert enough(tries(lost(3, 3), failed("a", 3)), max_failures=9) is None


@pytest.mark.parametrize("cause", ["memory", "final"])
def test_enough__what_another_try_cannot_change(cause):
    assert enough(tries(failed("a", cause=cause)), max_failures=9) is not None
    assert enough(tries(failed("a", cause=cause), lost()), max_failures=9) is None


def test_enough__a_new_run_is_a_new_try():
    before = [
        *[lost(run="before")] * 9,
        *[failed("a", run="before")] * 9,
    ]
    assert enough(tries(*before, lost()), max_failures=0) is None
    assert enough(tries(*before, failed("a")), max_failures=1) is None
    assert enough(tries(*before, failed("a")), max_failures=0) is not None


def test_enough__under_another_driver_of_the_run_failures_count_and_losses_do_not():
    earlier = [failed("a", run="now.1"), *[lost(run="now.1")] * 9]
    assert enough(tries(*earlier, failed("b", run="now.2")), max_failures=1) is not None
    assert enough(tries(*earlier, failed("a", run="now.2")), max_failures=9) is not None
    assert enough(tries(*earlier, *[lost(run="now.2")] * 4), max_failures=0) is None
    assert enough(tries(*earlier, *[lost(run="now.2")] * 5), max_failures=0) is not None
    assert enough(tries(*earlier, failed("b", run="other.2")), max_failures=1) is None


def away(step: int = 3, **parts: Any) -> dict[str, Any]:
    return failed("gone", step, **{"cause": "away", **parts})


def test_pause__doubles_while_something_is_away():
    pauses = [pause_s(tries(*[away()] * count)) for count in range(9)]
    assert pauses == [0, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("other", [failed("a"), lost(), {"ended": "preempted"}, {}])
def test_pause__is_none_after_anything_else(other):
    assert pause_s(tries(away(), other)) == 0
    assert pause_s(tries(away(), other, away())) == 2


def test_pause__begins_anew_where_it_came_a_step_further():
    assert pause_s(tries(away(3), away(3), away(4))) == 2
    assert pause_s(tries(away(run="before"), away())) == 2
    assert pause_s(tries(away(run="now.1"), away(run="now.2"))) == 4


@pytest.mark.parametrize("max_failures", [0, 3])
def test_enough__what_is_away_is_waited_for(max_failures):
    """Pauses of 2, 4 and 8 seconds make 14."""
    for count in range(1, 5):
        attempts = tries(*[away()] * count)
        assert enough(attempts, max_failures=max_failures, patience_s=14.5) is None
    reason = enough(tries(*[away()] * 4), max_failures=max_failures, patience_s=14)
    assert reason == "it was away for 14 s"


def test_enough__what_is_away_costs_no_failure():
    attempts = tries(failed("a"), *[away()] * 9, failed("b"))
    assert enough(attempts, max_failures=2, patience_s=1e9) is None
    assert enough(attempts, max_failures=1, patience_s=1e9) is not None


def test_enough__nobody_who_is_impatient_waits():
    assert enough(tries(away()), max_failures=9, patience_s=0) is not None
