import os
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ablation.retries import run_of
from ablation.supervise import AGAIN, BEGUN, FAILED, LOST, RUN, run_name, supervise

SOON = 20.0
PYTHON = (sys.executable, "-S", "-E", "-c")


def driver(*lives: str) -> list[str]:
    """A driver whose first life, second life, ... is such a line of Python."""
    code = [
        "import os, signal, sys, time",
        "number = len(os.listdir('lives'))",
        "open(f'lives/{number}', 'w').write(str(time.monotonic()))",
        f"exec({list(lives)!r}[number])",
    ]
    return [*PYTHON, "\n".join(code)]


@pytest.fixture(autouse=True)
def lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with a file for each life of the driver."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lives").mkdir()
    return tmp_path / "lives"


def began(lives: Path) -> list[float]:
    return [float(life.read_text()) for life in sorted(lives.iterdir())]


@pytest.mark.parametrize(("code", "own"), [(0, 0), (2, 2), (130, 130), (FAILED, 1)])
def test_supervise__ends_with_what_the_driver_ends_with(code, own, lives):
    said = list[str]()
    assert supervise(driver(f"sys.exit({code})"), said.append) == own
    assert said == []
    assert len(began(lives)) == 1


def test_supervise__a_cluster_that_is_not_back_is_no_wrong_input(lives):
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    command = driver(kill, "sys.exit(2)", "sys.exit(2)", "sys.exit(0)")
    assert supervise(command, lambda text: None, pauses_s=(0.01, 0.01)) == 0
    assert len(began(lives)) == 4


def test_supervise__after_another_that_was_lost_a_cluster_is_waited_for(lives, monkeypatch):
    monkeypatch.setenv(LOST, "1")
    command = driver("sys.exit(2)", "sys.exit(2)", "sys.exit(0)")
    assert supervise(command, lambda text: None, pauses_s=(0.01, 0.01)) == 0
    assert len(began(lives)) == 3


def test_supervise__begins_again_after_longer_and_longer_pauses(lives):
    said = list[str]()
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    command = driver(kill, "os._exit(1)", "raise SystemError", kill, "sys.exit(0)")
    sys.stderr.flush()
    assert supervise(command, said.append, pauses_s=(0.3, 1.0)) == 0
    assert [text.partition("(")[2].partition(")")[0] for text in said] == [
        "SIGKILL",
        "exit code 1",
        "exit code 1",
        "SIGKILL",
    ]
    pauses = [after - before for before, after in pairwise(began(lives))]
    assert all(got >= want for got, want in zip(pauses, [0.3, 0.6, 1.0, 1.0], strict=True))


def test_supervise__tells_a_driver_that_no_person_has_begun_it():
    """Else it would take up what was stopped under the one before."""
    said = f"sys.exit(75 if '{AGAIN}' not in os.environ else 1)"
    assert supervise(driver(said, said.replace("1)", "0)")), str, pauses_s=(0.01, 0.01)) == 0
    assert AGAIN not in os.environ


def test_supervise__a_long_life_makes_the_pause_short_again():
    said, times = list[str](), iter([0, 1, 10, 11, 20, 400, 500, 501, 600])
    command = driver(*["os._exit(9)"] * 4, "sys.exit(0)")
    assert supervise(command, said.append, pauses_s=(0.6, 60), clock=lambda: next(times)) == 0
    assert [text.partition(" in ")[2] for text in said] == ["1 s.", "1 s.", "1 s.", "1 s."]
    assert next(times, None) is None


def test_supervise__what_stays_lost_is_given_up(lives):
    """But not where a driver came far, or died, in between."""
    said, lost = list[str](), ["sys.exit(75)"]
    command = driver(*lost * 9, "os._exit(9)", *lost * 10, "sys.exit(0)")
    assert supervise(command, said.append, pauses_s=(0.01, 0.01)) == 75
    assert len(began(lives)) == 20
    assert said[0] == "The driver gave up what was lost. It begins again in 0 s."
    assert said[-1] == "The driver gave up what was lost, 10 times in a row. It is left at that."


def test_supervise__a_driver_that_crashes_again_and_again_is_given_up(lives):
    """With another code than that of a failed cell; one that is killed is not its own doing."""
    crash, kill = "os._exit(1)", "os.kill(os.getpid(), signal.SIGKILL)"
    command = driver(*[kill] * 12, *[crash] * 9, kill, *[crash] * 10, "sys.exit(0)")
    assert supervise(command, str, pauses_s=(0.01, 0.01)) == 75
    assert len(began(lives)) == 32


def test_supervise__waits_long_for_a_cluster_but_not_for_ever(lives, monkeypatch):
    monkeypatch.setattr("ablation.supervise._MOST_REFUSED", 12)
    said = list[str]()
    command = driver("os._exit(9)", *["sys.exit(2)"] * 12, "sys.exit(0)")
    assert supervise(command, said.append, pauses_s=(0.01, 0.01)) == 2
    assert said[1] == "The driver was refused. It begins again in 0 s."
    assert len(began(lives)) == 13


def test_supervise__what_was_lost_after_a_long_time_is_tried_for_ever():
    times = iter(range(0, 10**6, 301))
    command = driver(*["sys.exit(75)"] * 12, "sys.exit(0)")
    assert supervise(command, str, pauses_s=(0.01, 0.01), clock=lambda: next(times)) == 0


def test_supervise__names_one_run_to_all_its_drivers(lives, monkeypatch):
    note = f"open('runs', 'a').write(os.environ['{RUN}'] + '\\n')"
    for count in (1, 2):
        lives_of_it = [f"{note}; os._exit(9)", f"{note}; sys.exit(0)"]
        command = driver(*["pass"] * 2 * (count - 1), *lives_of_it)
        assert supervise(command, lambda text: None, pauses_s=(0.01, 0.01)) == 0
    first, again, other, after = Path("runs").read_text().split()
    assert first == again != other == after
    assert RUN not in os.environ


def test_run_name__has_a_drivers_own_part_where_stages_may_outlive_it(monkeypatch):
    names = [run_name(inline=inline) for inline in (False, True) for _ in range(2)]
    assert len({*map(run_of, names)}) == 4
    monkeypatch.setenv(RUN, "one")
    assert run_name(inline=True) == "one"
    names = [run_name(inline=False) for _ in range(2)]
    assert names[0] != names[1]
    assert [*map(run_of, names)] == ["one", "one"]


def test_supervise__gives_its_drivers_a_place_to_say_that_they_began(lives):
    mark = f"open(os.environ['{BEGUN}'], 'x').close()"
    seen = f"open('seen', 'w').write(os.environ['{BEGUN}'] * os.path.exists(os.environ['{BEGUN}']))"
    command = driver(f"{mark}; os._exit(9)", f"{seen}; sys.exit(0)")
    assert supervise(command, lambda text: None, pauses_s=(0.01, 0.01)) == 0
    told = Path("seen").read_text()
    assert told
    assert not Path(told).exists()
    assert BEGUN not in os.environ


def test_supervise__tells_its_drivers_that_others_began_before(lives, monkeypatch):
    (lives.parent / "begun").touch()
    monkeypatch.setenv(BEGUN, "begun")
    assert supervise(driver(f"sys.exit(not os.path.exists(os.environ['{BEGUN}']))"), print) == 0


def signalled(sent: signal.Signals, when: Path) -> None:
    """Signal this process, in a thread, when a file is there."""
    mark = Path.cwd() / "sent"  # the thread may outlive the test

    def wait() -> None:
        end = time.monotonic() + SOON
        while not when.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), sent)
        mark.touch()

    threading.Thread(target=wait, daemon=True).start()


def test_supervise__passes_sigterm_on_and_begins_nothing_again(lives):
    took = "signal.signal(signal.SIGTERM, lambda *_: (open('told', 'w'), sys.exit(130)))"
    ready = "open('ready', 'w').close(); time.sleep(120)"
    signalled(signal.SIGTERM, lives.parent / "ready")
    assert supervise(driver(f"{took}; {ready}"), pytest.fail) == 130
    assert (lives.parent / "told").exists()
    assert len(began(lives)) == 1


def test_supervise__a_driver_that_dies_of_a_stop_is_not_begun_again(lives):
    signalled(signal.SIGTERM, lives / "0")
    assert supervise(driver("time.sleep(120)"), pytest.fail) == 130
    assert len(began(lives)) == 1


def test_supervise__leaves_ctrl_c_to_the_terminal(lives):
    """Which tells the driver too; the supervisor waits for what that does of it."""
    wait = "any(os.path.exists('sent') or time.sleep(0.01) for _ in range(2000))"
    ready = f"open('ready', 'w').close(); {wait}; sys.exit(0)"
    signalled(signal.SIGINT, lives.parent / "ready")
    assert supervise(driver(ready), pytest.fail) == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_supervise__a_stop_ends_a_pause(sent, lives):
    begun = time.monotonic()

    def say(text: str) -> None:
        signalled(sent, lives / "0")

    assert supervise(driver("os._exit(9)"), say, pauses_s=(SOON, SOON)) == 130
    assert time.monotonic() - begun < SOON / 2
    assert len(began(lives)) == 1


def test_supervise__ctrl_c_ends_the_driver_as_it_would_alone():
    """Whatever the supervisor does with the signal, its driver's answer is Python's own."""
    code = (
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, file=open('h', 'w'))"
    )
    assert supervise(driver(f"{code}; sys.exit(0)"), pytest.fail) == 0
    assert Path("h").read_text() == "True\n"


def test_supervise__gives_the_signals_back():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(FileNotFoundError):
        supervise(["/nowhere/at/all"], pytest.fail)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
