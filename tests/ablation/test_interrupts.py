import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from ablation.interrupts import stoppable

SOON = 20.0
BOTH = pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def send(sent: signal.Signals) -> None:
    os.kill(os.getpid(), sent)


@BOTH
def test_stoppable__the_first_signal_only_asks(sent):
    said = list[str]()
    with stoppable(60, said.append) as stop_asked:
        assert not stop_asked()
        send(sent)
        assert stop_asked()
        until(lambda: said)
    assert said == ["Stopping after the next checkpoint, within 60 s. Once more ends it at once."]


@BOTH
def test_stoppable__a_later_one_interrupts(sent, monkeypatch):
    monkeypatch.setattr("ablation.interrupts._AT_ONCE_S", 0.0)
    with stoppable(60, ignore) as stop_asked:
        send(signal.SIGINT)
        assert stop_asked()
        with pytest.raises(KeyboardInterrupt):
            send(sent)


def test_stoppable__signals_of_one_moment_are_one():
    """As where a batch system signals a supervisor and its driver, and the supervisor does too."""
    with stoppable(60, ignore) as stop_asked:
        for sent in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(sent)
        assert stop_asked()


def stay(grace_s: float) -> None:
    with stoppable(grace_s, ignore):
        send(signal.SIGTERM)
        for _ in range(int(100 * SOON)):
            time.sleep(0.01)


@pytest.mark.parametrize("grace_s", [0.0, 0.3])
def test_stoppable__the_end_of_the_grace_interrupts(grace_s):
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stay(grace_s)
    assert grace_s <= time.monotonic() - begun < SOON / 2


def test_stoppable__nothing_comes_after_its_end():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stoppable(0.2, ignore):
        send(signal.SIGTERM)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    time.sleep(0.3)  # it would be interrupted
    until(lambda: all(thread.name != "grace" for thread in threading.enumerate()))


def test_stoppable__says_nothing_where_nothing_was_asked():
    said = list[str]()
    with stoppable(60, said.append):
        pass
    until(lambda: all(thread.name != "grace" for thread in threading.enumerate()))
    assert said == []


def test_stoppable__writes_nothing_while_a_writer_is_interrupted():
    """The console's lock may be held by what the signal interrupts."""
    lock, said = threading.Lock(), list[str]()

    def say(text: str) -> None:
        with lock:
            said.append(text)

    with stoppable(60, say) as stop_asked:
        with lock:
            send(signal.SIGINT)
            assert stop_asked()
        until(lambda: said)


def test_stoppable__is_never_asked_outside_the_main_thread():
    answers = list[bool]()

    def work() -> None:
        with stoppable(60, ignore) as stop_asked:
            answers.append(stop_asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


def ignore(text: str) -> None:
    pass
