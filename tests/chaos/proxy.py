"""A network that can be made hostile: an HTTP proxy of our own before one server.

    with Proxy("127.0.0.1:5000", seed=7) as proxy:
        ... "http://" + proxy.address ...
        proxy.faults = [Fault("error", chance=0.1), Fault("delay", seconds=2, times=1)]
        proxy.faults = []
        proxy.counts  # Counter({'passed': 12, 'error': 3, 'delay': 1})

It serves S3 and MLflow alike. Bodies are held in memory; the Host header passes as it came, so
that signatures stay valid.
"""

import re
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from random import Random
from typing import Literal, TypeAlias

from chaos.relay import Answer, Ask, Cut, Relay, Request

__all__ = ["Fault", "Kind", "Proxy", "anything", "is_listing"]

Kind: TypeAlias = Literal[
    "refuse",
    "error",
    "garbage",
    "delay",
    "stale",
    "cut upload",
    "flip upload",
    "lose",
    "cut download",
    "flip download",
]
"""What goes wrong:

- refuse: the connection is closed at once, nothing is done
- error: an answer with `status` and `body`, nothing is done
- garbage: an answer 200 with `body`, or with noise; nothing is done
- delay: the request is done `seconds` later; beside any other fault
- stale: a listing as it was `seconds` ago, or when it was first asked for
- cut upload: the server gets a part of the request's body, then both connections are closed
- flip upload: the server gets a body with one bit of its data flipped
- lose: the request is done, and the connection closed without an answer
- cut download: a part of the answer's body, then the connection is closed
- flip download: an answer whose body has one bit flipped
"""

_BEFORE: frozenset[Kind] = frozenset({"refuse", "error", "garbage"})
_UPLOAD: frozenset[Kind] = frozenset({"cut upload", "flip upload"})
_DOWNLOAD: frozenset[Kind] = frozenset({"cut download", "flip download"})
_LISTING: frozenset[Kind] = frozenset({"stale"})
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)\r\n")
"""S3's clients send a file within a chunk: its length before it, a checksum behind."""

_ERROR = b"<Error><Code>ServiceUnavailable</Code></Error>"
"""pyarrow 25 can crash on an error whose body has no root, and does on `<?xml version="1.0"?>`."""

_MOST_KEPT = 100  # answers to one listing


def anything(request: Request) -> bool:
    """Every request."""
    return True


def is_listing(request: Request) -> bool:
    """Whether it asks S3 for the names in a folder."""
    return request.method == "GET" and "list-type=2" in request.path


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that befalls each request that `when` picks, by `chance`, at most `times` times.

    `cut upload` and `flip upload` befall only requests with a body, `cut download` and `flip
    download` only answers with one, `stale` only listings.
    """

    kind: Kind
    chance: float = 1.0
    times: int | None = None
    when: Callable[[Request], bool] = anything
    seconds: float = 0.0
    status: int = 503
    body: bytes | None = None


class Proxy:
    """Stands before `upstream` (host:port) on a free port of this machine, in a block."""

    def __init__(self, upstream: str, *, seed: int = 0) -> None:
        self._over = threading.Event()
        self._random = Random(seed)
        self._lock = threading.RLock()  # a `when` may ask for the counts
        self._faults: tuple[Fault, ...] = ()
        self._fired: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._listings: dict[str, deque[tuple[float, Answer]]] = defaultdict(
            lambda: deque(maxlen=_MOST_KEPT)
        )
        self._relay = Relay(upstream, self._serve)
        self.address = self._relay.address

    def __enter__(self) -> "Proxy":
        self._relay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._relay.stop()

    @property
    def faults(self) -> Sequence[Fault]:
        """What goes wrong from now on; setting it counts their `times` anew."""
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        with self._lock:
            self._faults, self._fired = tuple(faults), Counter()

    @property
    def counts(self) -> Counter[str]:
        """How often each kind has happened so far, and how many requests `passed` unharmed."""
        with self._lock:
            return self._counts.copy()

    def _serve(self, request: Request, ask: Ask) -> Answer | Cut:
        for delay in self._due(request, {"delay"}, most=99):
            if self._over.wait(delay.seconds):
                return Cut()
        for fault in self._due(request, {*_BEFORE, *(_UPLOAD if request.body else ())}):
            match fault.kind:
                case "error":
                    body = _ERROR if fault.body is None else fault.body
                    return Answer(fault.status, "Fault", (), body)
                case "garbage":
                    body = self._noise() if fault.body is None else fault.body
                    return Answer(200, "OK", (), body)
                case "cut upload":
                    ask(self._part(request.body), True)
                    return Cut()
                case "flip upload":
                    return self._after(request, ask(self._flipped(request.body), False))
            return Cut()
        return self._pass(request, ask)

    def _pass(self, request: Request, ask: Ask) -> Answer | Cut:
        return self._after(request, ask(request.body, False))

    def _after(self, request: Request, answer: Answer) -> Answer | Cut:
        if is_listing(request) and answer.status == 200:
            with self._lock:
                self._listings[request.path].append((time.monotonic(), answer))
            for fault in self._due(request, _LISTING):
                answer = self._earlier(request.path, fault.seconds)
        for fault in self._due(request, {"lose", *(_DOWNLOAD if answer.body else ())}):
            match fault.kind:
                case "cut download":
                    return Cut(answer, len(self._part(answer.body)))
                case "flip download":
                    return replace(answer, body=self._flipped(answer.body))
            return Cut()
        with self._lock:
            self._counts["passed"] += 1
        return answer

    def _due(self, request: Request, kinds: AbstractSet[Kind], most: int = 1) -> list[Fault]:
        """Which faults of these kinds befall the request now: the first `most` that do."""
        due: list[Fault] = []
        with self._lock:
            for index, fault in enumerate(self._faults):
                if (
                    len(due) < most
                    and fault.kind in kinds
                    and (fault.times is None or self._fired[index] < fault.times)
                    and fault.when(request)
                    and self._random.random() < fault.chance
                ):
                    self._fired[index] += 1
                    self._counts[fault.kind] += 1
                    due.append(fault)
        return due

    def _earlier(self, path: str, seconds: float) -> Answer:
        """What was known of a listing so many seconds ago, at least what was known first."""
        until = time.monotonic() - seconds
        with self._lock:
            known = self._listings[path]
            return next((answer for at, answer in reversed(known) if at <= until), known[0][1])

    def _part(self, body: bytes) -> bytes:
        with self._lock:
            return body[: self._random.randrange(len(body))]

    def _flipped(self, body: bytes) -> bytes:
        flipped, chunk = bytearray(body), _CHUNK.match(body)
        where = range(len(body))
        if chunk and int(chunk[1], 16):
            where = range(chunk.end(), min(chunk.end() + int(chunk[1], 16), len(body)))
        with self._lock:
            flipped[self._random.choice(where)] ^= 1 << self._random.randrange(8)
        return bytes(flipped)

    def _noise(self) -> bytes:
        with self._lock:
            return self._random.randbytes(self._random.randrange(1, 2000))
