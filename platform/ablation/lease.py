"""Who may write to a stage: one process at a time, on a storage that can only put, get and list.

A process claims a stage by an object of its own, `lease/<epoch>-<name>.json`, and then lists the
claims. It holds the stage where none has come since it saw that all others were dead; else it
withdraws its own and tries again. Of two at once the one that lists later sees the other, so never
both hold. The holder counts its beats in its claim. A claim is dead where it was given up, where
its process is known to be gone, where the same run has sent a successor, or where its count stood
still for `EXPIRY_S` of the observer's own clock: no two clocks are ever compared.

Whoever takes over claims a higher epoch, and a holder that sees one, or its own claim gone, writes
nothing more. Since a beat under way may bring a removed claim back, epochs must not begin anew: a
holder that took over leaves its claim behind, marked as given up, for the next one to remove.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from ablation.claims import Claim, clear, names_at, put, there
from ablation.process import this_process
from ablation.sightings import Sightings
from ablation.storage import Storage, StorageError

__all__ = ["BEAT_S", "EXPIRY_S", "NEAR_S", "Claim", "Lease", "LostLeaseError", "acquire"]

BEAT_S = 5.0
EXPIRY_S = 30.0
"""Six beats: a slow storage, or a pause of the machine, costs no lease."""

NEAR_S = 600.0
"""So long after a notice it excuses an end; clouds give half a minute to ten minutes."""

_HEAR_S = 1.0
_LOOK_S = 1.0
_TELL_WITHIN_S = 2.0
_RELEASE_WITHIN_S = 2.0
"""Others would wait for `EXPIRY_S` because of a refusal that passes."""

_log = logging.getLogger(__name__)
# The trainer's draws are no business of this module's, nor may two processes draw the same.
_uniform = secrets.SystemRandom().uniform


class LostLeaseError(Exception):
    """Another process has taken the stage over; this one may not write to it any more."""


@dataclass(slots=True)
class Lease:
    """A held stage. It beats in a thread of its own until it is released or lost.

    Until then only that thread writes the claim: nobody who tells it something waits for a storage.
    """

    storage: Storage
    path: str
    claim: Claim
    dead: tuple[Claim, ...]
    """Whose place it took, the newest last."""
    now_ms: Callable[[], int]
    beat_s: float = BEAT_S
    expiry_s: float = EXPIRY_S
    hear: Callable[[], str] = str
    """What is known of this process's coming end, at once and without raising: a step, or what
    comes before the first, may take longer than is left."""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    """Held for an instant, never while the storage is asked."""
    _urgent: bool = False
    _heard: str = ""
    _near_until: float = 0.0
    _told: str = ""
    """The notice that the storage has."""
    _over: bool = False
    _kept: bool = False
    _lost: str = ""
    _thread: threading.Thread | None = None

    def start(self) -> "Lease":
        """Begin to beat."""
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def say(self, *, attempt: int | None = None, step: int) -> None:
        """What the next beat tells; returns at once."""
        with self._changed:
            attempt = self.claim.attempt if attempt is None else attempt
            if attempt != self.claim.attempt and self.claim.notice:
                self._hurry()  # by the attempt it will be known whom the notice excuses
            self.claim = replace(self.claim, attempt=attempt, step=step)

    def warn(self, notice: str) -> None:
        """Tell now that an end was announced; a slow storage is waited for, for two seconds."""
        with self._changed:
            self._take(notice)
            self._hurry()
            self._changed.wait_for(lambda: self._told == notice or self.lost, _TELL_WITHIN_S)

    def forget(self, notice: str) -> None:
        """What was announced so has not come; another notice, heard since, stays."""
        with self._changed:
            if self.claim.notice == notice:
                self.claim = replace(self.claim, notice="")

    def check(self) -> None:
        """Look at the claims, before anything is committed.

        Raises LostLeaseError where another process has taken over.
        """
        self._look(self.storage)

    @property
    def lost(self) -> bool:
        """Whether a beat or a check has found that another process took over."""
        return bool(self._lost)

    def let_expire(self) -> None:
        """Beat no more, and do not give the stage up: something is still being written to it.

        Others take over after `EXPIRY_S`; from then on `check` refuses what is left of that.
        """
        with self._changed:
            self._over = self._kept = True
            self._changed.notify_all()

    def release(self) -> None:
        """Give the stage up. Where the storage refuses that, others must wait for `EXPIRY_S`."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._kept:
            _log.warning("%s is still being written to, so the lease on it will expire.", self._at)
            return
        if self._thread is not None:
            self._thread.join(self.expiry_s)  # by then the claim is as good as given up
            if self._thread.is_alive():
                _log.warning("%s does not answer, so the lease on it will expire.", self._at)
                return
        try:
            self._withdraw(self.storage.patient(_RELEASE_WITHIN_S, _log.info))
        except StorageError as error:
            _log.warning("%s is not released, so the lease on it will expire. %s", self._at, error)

    def _keep(self) -> None:
        storage = _impatient(self.storage)
        while self._wait():
            # While the storage refuses, nobody else can claim either.
            with suppress(StorageError, LostLeaseError):
                self._look(storage)
                self._beat(storage)

    def _wait(self) -> bool:
        """Until the next beat is due; False where there is to be none."""
        end = time.monotonic() + self.beat_s
        with self._changed:
            while (left_s := end - time.monotonic()) > 0 and not self._hears():
                woken = self._changed.wait_for(
                    lambda: self._over or self._urgent or self.lost, min(left_s, _HEAR_S)
                )
                if woken:
                    break
            self._urgent = False
            return not (self._over or self.lost)

    def _hears(self) -> bool:
        """Whether there is news of this process's end, which the next beat is to tell."""
        if (notice := self.hear()) not in ("", self._heard):
            self._take(notice)
        elif self.claim.notice and time.monotonic() > self._near_until:
            self.claim = replace(self.claim, notice="")  # it has not come
        else:
            return False
        return True

    def _take(self, notice: str) -> None:
        self.claim, self._heard = replace(self.claim, notice=notice), notice
        self._near_until = time.monotonic() + NEAR_S

    def _hurry(self) -> None:
        self._urgent = True
        self._changed.notify_all()

    def _look(self, storage: Storage) -> None:
        if not self.lost:
            names = names_at(storage, self.path)
            above = [name for name in names if name[:6] > self.claim.name[:6]]
            # A listing may pass over a file that is just being replaced.
            if above or (
                self.claim.name not in names and not there(storage, self.path, self.claim)
            ):
                with self._changed:
                    self._lost = above[-1] if above else "a later one"
                    self._changed.notify_all()
        if self.lost:
            raise LostLeaseError(
                f"{self._at} was held by {self.claim.name}, and is now by {self._lost}: another "
                f"process has taken the stage over."
            )

    def _beat(self, storage: Storage) -> None:
        with self._changed:
            self.claim = replace(self.claim, beat=self.claim.beat + 1, now_ms=self.now_ms())
            claim = self.claim
        put(storage, self.path, claim)
        with self._changed:
            self._told = claim.notice
            self._changed.notify_all()

    def _withdraw(self, storage: Storage) -> None:
        if self.claim.epoch == 1:  # nobody was ever taken over, so no beat can come late
            clear(storage, self.path, {self.claim.name})
        else:
            put(storage, self.path, replace(self.claim, over=True, now_ms=self.now_ms()))

    @property
    def _at(self) -> str:
        return f"{self.storage.uri}/{self.path}"


def acquire(
    storage: Storage,
    path: str,
    *,
    run: str,
    now_ms: Callable[[], int],
    hear: Callable[[], str] = str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    beat_s: float | None = None,
    expiry_s: float | None = None,
) -> Lease | Claim:
    """Hold the stage whose claims lie at `path`, or say who lives and holds it.

    It returns as soon as the holder is known to live, by its next beat, or to be dead: after
    `expiry_s` (`EXPIRY_S`) at the longest, for one that died on another machine.
    """
    beat_s = BEAT_S if beat_s is None else beat_s
    expiry_s = EXPIRY_S if expiry_s is None else expiry_s
    watch = Sightings(run=run, me=this_process(), most_s=BEAT_S, expiry_s=expiry_s, clock=clock)
    while True:
        claims = watch.look(storage, path)
        if living := next(filter(watch.alive, claims.values()), None):
            return living
        if not all(watch.dead(claim) for claim in claims.values()):
            sleep(_LOOK_S)
            continue
        epoch = 1 + max((claim.epoch for claim in claims.values()), default=0)
        name = f"{epoch:06d}-{secrets.token_hex(4)}"
        mine = Claim(name=name, process=watch.me, run=run, now_ms=now_ms())
        if _stake(storage, path, mine, claims):
            dead = tuple(sorted(claims.values(), key=lambda claim: claim.name))
            lease = Lease(storage, path, mine, dead, now_ms, beat_s, expiry_s, hear).start()
            _clear(storage, path, claims)
            return lease
        sleep(_uniform(0.1, 1.0))


def _stake(storage: Storage, path: str, mine: Claim, dead: Collection[str]) -> bool:
    """Put a claim, and take it back unless it is there and the only one beside the dead."""
    with ExitStack() as stack:
        stack.callback(_clear, storage, path, {mine.name})
        put(storage, path, mine)
        names = {*names_at(storage, path)} - {*dead}
        # A listing that lags does not have it yet.
        held = names <= {mine.name} and (bool(names) or there(storage, path, mine))
        if held:
            stack.pop_all()
        return held


def _clear(storage: Storage, path: str, names: Collection[str]) -> None:
    """Remove claims that hold nothing; where the storage refuses, they grow old."""
    with suppress(StorageError):
        clear(_impatient(storage), path, names)


def _impatient(storage: Storage) -> Storage:
    return storage.patient(0.0, _log.info)
