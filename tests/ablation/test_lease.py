"""One holder at a time: whoever is slow, paused, cut off, killed, or has a clock of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any

import pytest
from pyarrow import fs

from ablation import lease as leases
from ablation.claims import Claim, claims_at, names_at, put
from ablation.lease import BEAT_S, EXPIRY_S, Lease, LostLeaseError, acquire
from ablation.process import Process, this_process
from ablation.storage import Storage, StorageError

AT = "stages/abc/lease"
AWAY = Process(host="another", pid=1, born="1")


def now_ms() -> int:
    return time.time_ns() // 10**6


@pytest.fixture(params=["local", "elsewhere"])
def storage(request, tmp_path) -> Storage:
    folder = tmp_path / "store"
    if request.param == "local":
        return Storage.open(folder)
    folder.mkdir()
    files = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
    return Storage(files=files, root="", uri="far://away")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated(Storage):
    """Calls `before` with verb and path, and does as it was told only when that returns."""

    before: Callable[[str, str], None] = field(default=lambda verb, path: None, compare=False)

    def write(self, path: str, content: bytes, *, durable: bool = True) -> Any:
        self.before("write", path)
        return Storage.write(self, path, content, durable=durable)

    def names(self, path: str) -> list[str]:
        self.before("list", path)
        return Storage.names(self, path)

    def remove(self, path: str) -> None:
        self.before("remove", path)
        return Storage.remove(self, path)


def gated(storage: Storage, before: Callable[[str, str], None]) -> Gated:
    return Gated(
        files=storage.files, root=storage.root, uri=storage.uri, local=storage.local, before=before
    )


@dataclass
class Clock:
    """Time that passes only by sleeping; `meanwhile` happens in each sleep."""

    now: float = 0.0
    meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


def hold(storage: Storage, run: str = "run", **options: Any) -> Lease:
    """The lease, of one who gets it. Its beats come when they are asked for."""
    options = {"beat_s": 3600.0, "now_ms": now_ms, **options}
    held = acquire(storage, AT, run=run, **options)
    assert isinstance(held, Lease), held
    return held


def try_to_hold(storage: Storage, run: str, clock: Clock, **options: Any) -> Lease | Claim:
    options = {"beat_s": 3600.0, "now_ms": now_ms, **options}
    return acquire(storage, AT, run=run, clock=clock, sleep=clock.sleep, **options)


def claim(name: str, **parts: Any) -> Claim:
    return Claim(**{"name": name, "process": AWAY, "run": "other", **parts})


def beat(storage: Storage, of: Claim) -> Claim:
    """The next beat of a claim as its process would write it."""
    of = replace(of, beat=of.beat + 1)
    put(storage, AT, of)
    return of


def test_lease__is_released_at_once(storage):
    clock = Clock()
    for run in "abc":
        held = try_to_hold(storage, run, clock)
        assert isinstance(held, Lease)
        assert held.dead == ()
        held.check()
        held.release()
        held.release()
        assert names_at(storage, AT) == []
    assert clock.now == 0


def test_lease__another_run_finds_the_holder_alive(storage):
    held = hold(storage, "first")
    clock = Clock(meanwhile=lambda: held.warn(f"at {clock.now}"))
    found = try_to_hold(storage, "second", clock)
    assert isinstance(found, Claim)
    assert (found.run, found.process) == ("first", this_process())
    assert found.beat > 0
    assert clock.now < EXPIRY_S
    held.check()
    held.release()


def test_lease__its_own_thread_keeps_it(storage):
    """Real time and real beats: an observer with a shorter patience than beats would take over."""
    held = hold(storage, "first", beat_s=0.02)
    found = acquire(
        storage,
        AT,
        run="second",
        now_ms=now_ms,
        sleep=lambda s: time.sleep(0.01),
        expiry_s=60.0,
    )
    assert isinstance(found, Claim)
    held.release()


def test_lease__of_a_silent_process_elsewhere_expires(storage):
    silent = claim("000001-aa", attempt=3, step=7, beat=9)
    put(storage, AT, silent)
    clock = Clock()
    held = try_to_hold(storage, "mine", clock)
    assert isinstance(held, Lease)
    assert EXPIRY_S <= clock.now <= EXPIRY_S + 2
    assert held.dead == (silent,)
    assert held.claim.epoch == 2
    assert names_at(storage, AT) == [held.claim.name]
    held.release()


def test_lease__of_a_living_process_that_beats_no_more_expires(storage):
    """Such as one whose release was refused."""
    put(storage, AT, claim("000001-aa", process=this_process()))
    clock = Clock()
    held = try_to_hold(storage, "mine", clock)
    assert isinstance(held, Lease)
    assert clock.now >= EXPIRY_S
    held.release()


@pytest.mark.parametrize("ahead_ms", [-(10**7), 0, 10**7])
def test_lease__clocks_that_disagree_do_not_matter(storage, ahead_ms):
    clock = Clock(now=1e6)
    other = claim("000001-aa", now_ms=now_ms() + ahead_ms)
    put(storage, AT, other)
    begun = clock.now

    def live_for_a_while() -> None:
        nonlocal other
        if clock.now < begun + 4:
            return
        other = beat(storage, other)

    clock.meanwhile = live_for_a_while
    assert isinstance(try_to_hold(storage, "mine", clock), Claim)
    assert clock.now < begun + EXPIRY_S
    clock.meanwhile = lambda: None
    begun = clock.now
    held = try_to_hold(storage, "mine", clock, now_ms=lambda: 5)
    assert isinstance(held, Lease)
    assert clock.now >= begun + EXPIRY_S
    held.release()


def test_lease__a_slow_storage_makes_nobody_older(storage):
    """A look of whatever length counts as a beat: the holder's beats wait for the storage too."""
    clock, looks = Clock(), 0
    put(storage, AT, claim("000001-aa"))

    def slow(verb: str, path: str) -> None:
        nonlocal looks
        if verb == "list":
            looks += 1
            clock.now += 2 * EXPIRY_S

    held = try_to_hold(gated(storage, slow), "mine", clock)
    assert isinstance(held, Lease)
    assert looks == 7 + 2  # the last two after its own claim, and to remove the dead one's
    held.release()


@pytest.mark.parametrize("look", [1, 2])
def test_lease__an_outage_makes_nobody_older(storage, look):
    """The storage is asked again for a minute; the holder beats once more soon after."""
    clock, holder, looks = Clock(), claim("000001-aa"), 0
    put(storage, AT, holder)

    def refuse(verb: str, path: str) -> None:
        nonlocal looks
        looks += verb == "list"
        if verb == "list" and looks == look:
            clock.now += 2 * EXPIRY_S

    def meanwhile() -> None:
        if clock.now >= 2 * EXPIRY_S + BEAT_S:
            beat(storage, holder)

    clock.meanwhile = meanwhile
    found = try_to_hold(gated(storage, refuse), "mine", clock)
    assert isinstance(found, Claim)
    assert found.name == holder.name


def test_lease__of_a_predecessor_is_taken_over_at_once(storage):
    first = hold(storage, "run")
    first.say(attempt=2, step=11)
    first.warn("spot")
    clock = Clock()
    second = try_to_hold(storage, "run", clock)
    assert isinstance(second, Lease)
    assert clock.now == 0
    (dead,) = second.dead
    assert (dead.attempt, dead.step, dead.notice) == (2, 11, "spot")
    second.check()
    with pytest.raises(LostLeaseError, match=rf"{AT} was .* now by {second.claim.name}"):
        first.check()
    assert first.lost
    first.release()
    second.check()
    second.release()


def test_lease__a_successor_is_no_predecessor(storage):
    """One that lost to its successor while claiming does not take the stage back."""
    successor = claim("000001-bb", run="run")
    clock, came = Clock(), False

    def come(verb: str, path: str) -> None:
        nonlocal came
        if verb == "write" and not came:
            came = True
            put(storage, AT, successor)

    def live() -> None:
        nonlocal successor
        successor = beat(storage, successor)

    clock.meanwhile = live
    found = try_to_hold(gated(storage, come), "run", clock)
    assert isinstance(found, Claim)
    assert found.name == successor.name
    assert names_at(storage, AT) == [successor.name]


def test_lease__given_up_by_a_holder_that_took_over_is_free_at_once(storage):
    put(storage, AT, claim("000001-aa", run="run"))
    clock = Clock()
    for epoch in (2, 3, 4):
        held = try_to_hold(storage, "run" if epoch == 2 else f"run {epoch}", clock)
        assert isinstance(held, Lease)
        assert held.claim.epoch == epoch
        assert names_at(storage, AT) == [held.claim.name]
        held.release()
        (left,) = claims_at(storage, AT).values()
        assert left.over
        assert left.name == held.claim.name
    assert clock.now == 0


def test_lease__given_up_while_it_is_watched_is_free_at_once(storage):
    put(storage, AT, claim("000001-aa", over=True))
    held = hold(storage, "first")

    def end() -> None:
        held.warn("spot")
        held.release()

    clock = Clock(meanwhile=end)
    second = try_to_hold(storage, "second", clock)
    assert isinstance(second, Lease)
    assert clock.now <= 1
    assert second.dead[0].notice == "spot"
    second.release()


def test_lease__a_claim_that_is_gone_before_it_was_looked_at_is_put_again(storage):
    looks = 0

    def spoil(verb: str, path: str) -> None:
        nonlocal looks
        looks += verb == "list"
        if looks == 2:
            storage.remove(AT)

    held = hold(gated(storage, spoil), sleep=lambda s: None)
    held.check()
    assert names_at(storage, AT) == [held.claim.name]
    held.release()


HOLDER = """
import sys, time
from ablation.lease import LostLeaseError, acquire
from ablation.storage import Storage
lease = acquire(Storage.open(sys.argv[1]), sys.argv[2], run="other", now_ms=lambda: 1, beat_s=0.02)
print("held", flush=True)
while True:
    time.sleep(0.01)
    try:
        lease.check()
    except LostLeaseError:
        print("lost", flush=True)
        lease.release()
        break
"""


@contextmanager
def another_process(storage: Storage) -> Iterator["subprocess.Popen[str]"]:
    assert storage.local
    command = [sys.executable, "-c", HOLDER, str(storage.local), AT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_lease__of_a_process_that_was_killed_here_is_taken_over_at_once(tmp_path):
    storage = Storage.open(tmp_path)
    with another_process(storage) as process:
        (theirs,) = claims_at(storage, AT).values()
        assert theirs.process.gone(this_process()) is False
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        (theirs,) = claims_at(storage, AT).values()
        clock = Clock()
        held = try_to_hold(storage, "mine", clock)
        assert isinstance(held, Lease)
        assert clock.now == 0
        assert held.dead == (theirs,)
        held.release()


def test_lease__a_process_that_was_stopped_and_goes_on_finds_out(tmp_path):
    storage = Storage.open(tmp_path)
    with another_process(storage) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        clock = Clock()
        held = try_to_hold(storage, "mine", clock)
        assert isinstance(held, Lease)
        assert clock.now >= EXPIRY_S
        process.send_signal(signal.SIGCONT)
        assert process.stdout
        assert process.stdout.readline() == "lost\n"
        assert process.wait(60) == 0
        held.check()
        assert names_at(storage, AT) == [held.claim.name]
        held.release()


def test_lease__a_paused_holder_finds_out_that_it_was_taken_over(storage):
    paused = hold(storage, "paused")
    clock = Clock()
    held = try_to_hold(storage, "mine", clock)
    assert isinstance(held, Lease)
    assert clock.now >= EXPIRY_S
    assert not paused.lost
    with pytest.raises(LostLeaseError):
        paused.check()
    paused.warn("too late")
    paused.release()
    assert names_at(storage, AT) == [held.claim.name]
    held.check()
    held.release()


def test_lease__a_beat_finds_out_too_and_is_the_last(storage):
    paused = hold(storage, "paused", beat_s=0.02)
    put(storage, AT, claim("000002-aa"))
    wait_until(lambda: paused.lost)
    with pytest.raises(LostLeaseError, match="000002-aa"):
        paused.check()
    paused.release()
    assert names_at(storage, AT) == ["000002-aa"]


def test_lease__a_holder_without_a_claim_has_lost_it(storage):
    held = hold(storage)
    storage.remove(AT)
    with pytest.raises(LostLeaseError):
        held.check()
    with pytest.raises(LostLeaseError):
        held.check()
    held.release()
    assert names_at(storage, AT) == []


def test_lease__claims_of_the_same_epoch_come_and_go(storage):
    """A claimant that will withdraw is none that took over."""
    held = hold(storage)
    put(storage, AT, claim(f"{held.claim.name[:6]}-zz"))
    held.check()
    held.release()


def test_lease__a_beat_that_comes_late_holds_nothing(storage):
    """A claim that is back after its removal is below every later holder's."""
    gate, at_gate = threading.Event(), threading.Event()

    def wait(verb: str, path: str) -> None:
        if verb == "write" and threading.current_thread().name == "lease":
            at_gate.set()
            assert gate.wait(60)

    late = hold(gated(storage, wait), "run", beat_s=0.01)
    assert at_gate.wait(60)
    hold(storage, "run").release()
    held = hold(storage, "another")
    assert held.claim.epoch == 3
    held.check()
    gate.set()
    wait_until(lambda: late.claim.name in names_at(storage, AT) or late.lost)
    with pytest.raises(LostLeaseError):
        late.check()
    held.check()
    late.release()
    assert names_at(storage, AT) == [held.claim.name]
    held.release()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_lease__a_paused_claimant_does_not_hold_what_was_taken_over(storage):
    """It stood still between its claim and its look at the claims, and another came and went."""
    came = False

    def come(verb: str, path: str) -> None:
        nonlocal came
        if verb == "list" and not came and names_at(storage, AT):
            came = True
            clock = Clock()
            other = try_to_hold(storage, "other", clock)
            assert isinstance(other, Lease)
            assert clock.now >= EXPIRY_S
            other.release()

    held = hold(gated(storage, come), "paused", sleep=lambda s: None)
    assert came
    assert held.claim.epoch == 3
    held.check()
    held.release()


@pytest.mark.parametrize("seed", range(3))
def test_lease__threads_never_hold_together(storage, seed):
    """Claimants of many runs, some of them slow at any operation, on one stage again and again."""
    holders, most, turns = [0], [0], [0] * 6
    counting = threading.Lock()
    end = time.monotonic() + 60

    def hammer(index: int) -> None:
        random = Random(100 * seed + index)
        slow = gated(storage, lambda *_: time.sleep(random.choice([0, 0, 0.001, 0.003])))
        while turns[index] < 4:
            assert time.monotonic() < end
            held = acquire(
                slow,
                AT,
                run=f"run {index}",
                now_ms=now_ms,
                sleep=lambda s: time.sleep(s / 50),
                beat_s=0.01,
            )
            if isinstance(held, Lease):
                with counting:
                    holders[0] += 1
                    most[0] = max(most[0], holders[0])
                held.check()
                time.sleep(random.random() / 50)
                held.check()
                with counting:
                    holders[0] -= 1
                held.release()
                turns[index] += 1

    run_all([partial(hammer, index) for index in range(len(turns))])
    assert turns == [4] * len(turns)
    assert most == [1]
    assert names_at(storage, AT) == []


def run_all(tasks: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[task]) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Turns:
    """Lets one of several threads at a time do one operation of the storage, in a random order.

    So every interleaving of their operations may come, and a seed brings it again.
    """

    def __init__(self, seed: int, threads: int) -> None:
        self.random, self.changed = Random(seed), threading.Condition()
        self.left, self.waiting, self.turn = threads, set[int](), None

    def take(self, *_: str) -> None:
        me = threading.get_ident()
        with self.changed:
            if self.turn == me:
                self.turn = None
            self.waiting.add(me)
            self.give()
            assert self.changed.wait_for(lambda: self.turn == me, 60)
            self.waiting.discard(me)

    def leave(self) -> None:
        with self.changed:
            self.left -= 1
            self.turn = None
            self.give()

    def give(self) -> None:
        if self.turn is None and self.waiting and len(self.waiting) == self.left:
            self.turn = self.random.choice(sorted(self.waiting))
            self.changed.notify_all()


@pytest.mark.parametrize("seed", range(40))
def test_lease__any_order_of_three_claimants_beside_a_dead_one(tmp_path, seed):
    """Exactly one holds, and nothing is left of the others."""
    storage, turns = Storage.open(tmp_path), Turns(seed, 3)
    storage = Storage(files=storage.files, root=storage.root, uri="far")
    if seed % 2:
        put(storage, AT, claim("000004-aa", over=True))
    gate = gated(storage, turns.take)
    got: list[Lease] = []

    def compete(index: int) -> None:
        try:
            held = acquire(
                gate,
                AT,
                run=f"run {index}",
                now_ms=now_ms,
                clock=Clock(),
                sleep=lambda s: turns.take() if not got else give_up(),
                beat_s=3600,
            )
            assert isinstance(held, Lease)
            got.append(held)
        except TimeoutError:
            pass
        finally:
            turns.leave()

    def give_up() -> None:
        raise TimeoutError

    run_all([partial(compete, index) for index in range(3)])
    (held,) = got
    held.storage = storage
    held.check()
    assert names_at(storage, AT) == [held.claim.name]
    held.release()


@pytest.mark.parametrize("seed", range(80))
def test_lease__any_order_of_takeovers_beats_and_releases(tmp_path, seed):
    """Where each takes over from all before it, at most one still holds in the end."""
    folder, turns, random = Storage.open(tmp_path), Turns(seed, 4), Random(seed)
    storage = Storage(files=folder.files, root=folder.root, uri="far")
    gate = gated(storage, turns.take)
    held: list[Lease] = []

    def compete(beats: int, leave: bool) -> None:
        try:
            clock = Clock(meanwhile=turns.take)
            lease = try_to_hold(gate, "run", clock, expiry_s=2.0)
            if isinstance(lease, Lease):
                with suppress(LostLeaseError):
                    for _ in range(beats):
                        lease.check()
                        lease._beat(gate)
                if leave:
                    lease.release()
                else:
                    held.append(lease)
        finally:
            turns.leave()

    run_all([partial(compete, random.randrange(4), random.random() < 0.5) for _ in range(4)])
    for lease in held:
        lease.storage = storage
        with suppress(LostLeaseError):
            lease.check()
    assert sum(not lease.lost for lease in held) <= 1
    for lease in held:
        lease.release()


@pytest.mark.parametrize("at", ["list", "write"])
def test_lease__saying_never_waits_for_the_storage(storage, at):
    gate, at_gate = threading.Event(), threading.Event()

    def wait(at: str, verb: str, path: str) -> None:
        if verb == at and threading.current_thread().name == "lease":
            at_gate.set()
            assert gate.wait(60)

    held = hold(gated(storage, partial(wait, at)), beat_s=0.001)
    assert at_gate.wait(60)
    begun = time.perf_counter()
    for step in range(5000):
        held.say(step=step)
        assert not held.lost
    took = time.perf_counter() - begun
    gate.set()
    assert took < 1.0  # 5 microseconds each, but on a busy machine
    wait_until(lambda: any(c.step == 4999 for c in claims_at(storage, AT).values()))
    held.release()


def test_lease__a_notice_is_there_before_anything_else_happens(storage):
    held = hold(storage)
    held.say(attempt=3, step=5)
    held.warn("spot")
    (told,) = claims_at(storage, AT).values()
    assert (told.attempt, told.step, told.notice, told.beat) == (3, 5, "spot", 1)
    held.release()


def test_lease__hears_of_a_notice_by_itself_and_of_each_once(storage, monkeypatch):
    """Whoever is in the middle of a step, or before the first, cannot be asked."""
    monkeypatch.setattr(leases, "_HEAR_S", 0.01)
    news = ["spot"]
    held = hold(storage, hear=lambda: news[-1])

    def told() -> list[str]:
        return [c.notice for c in claims_at(storage, AT).values()]

    wait_until(lambda: told() == ["spot"])
    held.say(attempt=3, step=5)
    wait_until(lambda: [c.attempt for c in claims_at(storage, AT).values()] == [3])
    held.forget("")
    assert held.claim.notice == "spot"
    held.forget("spot")
    time.sleep(0.1)
    assert held.claim.notice == "", "it has worn off"
    news.append("spot, and now")
    wait_until(lambda: told() == ["spot, and now"])
    held.release()


def test_lease__a_notice_that_nothing_follows_wears_off(storage, monkeypatch):
    monkeypatch.setattr(leases, "_HEAR_S", 0.01)
    monkeypatch.setattr(leases, "NEAR_S", 0.2)
    held = hold(storage, hear=lambda: "spot")
    for notice in ("spot", ""):
        wait_until(lambda n=notice: [c.notice for c in claims_at(storage, AT).values()] == [n])
    held.release()


def test_lease__a_notice_waits_only_a_while_for_a_slow_storage(storage, monkeypatch):
    monkeypatch.setattr(leases, "_TELL_WITHIN_S", 0.05)
    gate = threading.Event()

    def wait(verb: str, path: str) -> None:
        if threading.current_thread().name == "lease":
            assert gate.wait(60)

    held = hold(gated(storage, wait))
    begun = time.monotonic()
    held.warn("spot")
    assert time.monotonic() - begun < 30
    assert next(iter(claims_at(storage, AT).values())).notice == ""
    gate.set()
    wait_until(lambda: [c.notice for c in claims_at(storage, AT).values()] == ["spot"])
    held.release()


def refusing(storage: Storage, down: threading.Event, *verbs: str) -> Gated:
    def before(verb: str, path: str) -> None:
        if down.is_set() and verb in verbs:
            raise StorageError(f"Could not {verb}: it is down.")

    return gated(storage, before)


@pytest.mark.parametrize("verb", ["list", "write"])
def test_lease__beats_outlive_a_storage_that_refuses(storage, verb):
    down = threading.Event()
    held = hold(refusing(storage, down, verb), beat_s=0.005)
    down.set()
    time.sleep(0.03)
    down.clear()
    (before,) = claims_at(storage, AT).values()
    wait_until(lambda: all(c.beat > before.beat + 1 for c in claims_at(storage, AT).values()))
    assert not held.lost
    held.release()
    assert names_at(storage, AT) == []


def test_lease__beats_are_not_patient(storage):
    """A beat that waited for its storage would write without looking, and hold up the release."""
    said: list[str] = []
    files = Switched(storage.files)
    held = hold(replace(storage, files=files).patient(3600, said.append), beat_s=0.005)
    files.down = True
    begun = time.monotonic()
    wait_until(lambda: files.refused > 5)
    held.release()
    assert time.monotonic() - begun < 60
    assert said == []


class Switched:
    """A file system that can be switched off."""

    def __init__(self, files: Any) -> None:
        self.files, self.down, self.refused = files, False, 0

    def __getattr__(self, name: str) -> Any:
        if self.down:
            self.refused += 1
            raise OSError("no route to host")
        return getattr(self.files, name)


def test_lease__a_release_that_is_refused_hides_no_error(storage, caplog):
    down = threading.Event()
    held = hold(refusing(storage, down, "list", "write", "remove"))

    def work() -> None:
        with ExitStack() as stack:
            stack.callback(held.release)
            down.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert "the lease on it will expire" in caplog.text
    down.clear()
    clock = Clock()
    with pytest.raises(TimeoutError):
        try_to_hold(storage, "soon", replace(clock, meanwhile=after(clock, 5)))
    again = try_to_hold(storage, held.claim.run, clock)
    assert isinstance(again, Lease)
    again.release()


def after(clock: Clock, times: int) -> Callable[[], None]:
    count = iter(range(times))

    def end() -> None:
        if next(count, None) is None:
            raise TimeoutError

    return end


def test_lease__a_release_does_not_wait_for_ever(storage, caplog):
    gate, at_gate = threading.Event(), threading.Event()

    def wait(verb: str, path: str) -> None:
        if threading.current_thread().name == "lease":
            at_gate.set()
            assert gate.wait(60)

    held = hold(gated(storage, wait), beat_s=0.001, expiry_s=0.05)
    assert at_gate.wait(60)
    held.release()
    assert "does not answer" in caplog.text
    assert names_at(storage, AT) == [held.claim.name]
    gate.set()
    wait_until(lambda: held._thread is not None and not held._thread.is_alive())
    held.release()
    assert names_at(storage, AT) == []


def test_lease__that_is_let_expire_is_not_given_up(storage, caplog):
    """Something may still be written: it is the holder's until another has waited long enough."""
    held = hold(storage, beat_s=0.005)
    held.let_expire()
    wait_until(lambda: held._thread is not None and not held._thread.is_alive())
    held.release()
    assert "is still being written to" in caplog.text
    (kept,) = claims_at(storage, AT).values()
    assert not kept.over
    held.check()
    clock = Clock()
    other = try_to_hold(storage, "other", clock)
    assert isinstance(other, Lease)
    assert clock.now >= EXPIRY_S
    with pytest.raises(LostLeaseError):
        held.check()
    held.release()
    other.check()
    other.release()


@pytest.mark.parametrize("verb", ["write", "list"])
def test_acquire__leaves_no_claim_where_the_storage_refuses(storage, verb):
    calls: list[str] = []

    def refuse(this: str, path: str) -> None:
        calls.append(this)
        if this == verb and calls.count(verb) == (1 if verb == "write" else 2):
            raise StorageError("Could not: it is down.")

    with pytest.raises(StorageError):
        hold(gated(storage, refuse))
    assert names_at(storage, AT) == []


def test_acquire__outlives_a_storage_that_does_not_remove_the_dead(storage):
    put(storage, AT, claim("000001-aa", run="run"))
    down = threading.Event()
    down.set()
    held = hold(refusing(storage, down, "remove"), "run")
    held.check()
    assert len(names_at(storage, AT)) == 2
    held.release()


def test_acquire__sees_claims_that_come_between_looks(storage):
    """Each is watched from when it was first seen."""
    clock = Clock()
    put(storage, AT, claim("000001-aa"))

    def come() -> None:
        if EXPIRY_S - 3 < clock.now <= EXPIRY_S - 2:
            put(storage, AT, claim("000002-bb"))

    clock.meanwhile = come
    held = try_to_hold(storage, "mine", clock)
    assert isinstance(held, Lease)
    assert [dead.name for dead in held.dead] == ["000001-aa", "000002-bb"]
    assert clock.now >= 2 * EXPIRY_S - 3
    held.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"name": 1}', b"\xff"])
def test_acquire__a_claim_that_cannot_be_read_lives_until_it_is_old(storage, content):
    storage.write(f"{AT}/000007-aa.json", content)
    clock = Clock()
    held = try_to_hold(storage, "mine", clock)
    assert isinstance(held, Lease)
    assert clock.now >= EXPIRY_S
    assert held.claim.epoch == 8
    assert [dead.name for dead in held.dead] == ["000007-aa"]
    held.release()


def test_acquire__clears_up_after_a_process_that_died_while_writing(tmp_path):
    storage = Storage.open(tmp_path)
    put(storage, AT, claim("000001-aa", over=True))
    storage.write(f"{AT}/000001-aa.json.1234.tmp", b"half")
    held = hold(storage)
    assert storage.names(AT) == [f"{held.claim.name}.json"]
    held.release()


def test_claim__is_read_as_it_was_written():
    written = claim("000012-ab", beat=3, attempt=4, step=5, notice="spot", now_ms=6)
    assert Claim.parse(written.to_bytes()) == written
    assert written.epoch == 12
    later = {**json.loads(written.to_bytes()), "mood": "good"}
    assert Claim.parse(json.dumps(later).encode()) == written


def test_lease__expiry_is_many_beats():
    """A slow beat costs no lease."""
    assert EXPIRY_S >= 5 * BEAT_S
