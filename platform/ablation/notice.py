"""Word of a machine's coming end: a signal, a file, or an address that a cloud's daemon answers at.

What is announced is answered by a checkpoint at the next step; work goes on until it is taken.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urljoin
from urllib.request import ProxyHandler, Request, build_opener

from ablation.address import masked, public

__all__ = ["SIGTERM", "Watch", "announced", "silence"]

_LOOK_EVERY_S = 1.0
_ANSWER_WITHIN_S = 2.0
_NONE = {"", "NONE", "FALSE", "[]", "{}"}
"""What clouds answer while nothing is announced: Google's maintenance and preemption metadata say
NONE and FALSE; Amazon's spot metadata answer with status 404."""
_log = logging.getLogger(__name__)


def announced(at: str) -> str:
    """What a file or an http(s) address says of this machine's end; empty where nothing."""
    if not at:
        return ""
    try:
        if not at.startswith(("http://", "https://")):
            return f"{at} is there" if Path(at).exists() else ""
        text = _answer(at)
    except (OSError, ValueError, HTTPException) as error:
        _warn_once(public(at), masked(str(error), at))  # no answer is no news
        return ""
    return "" if text.upper() in _NONE else f"{public(at)} says {text.splitlines()[0][:100]}"


def silence(at: str) -> str:
    """Why a file or an address could not announce anything; empty where it could."""
    if not at.startswith(("http://", "https://")):
        folder = Path(at).parent
        return "" if folder.is_dir() else f"its folder {folder} is not there"
    try:
        _answer(at)
    except (OSError, ValueError, HTTPException) as error:
        return masked(str(error), at)
    return ""


def _answer(at: str) -> str:
    """What an address says; Google's wants to be asked with its header, Amazon's with a token."""
    try:
        return _ask(at, {"Metadata-Flavor": "Google"})
    except HTTPError as error:
        if error.code != HTTPStatus.UNAUTHORIZED:
            raise
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _ask(urljoin(at, "/latest/api/token"), lifetime, method="PUT")
    return _ask(at, {"X-aws-ec2-metadata-token": token})


def _ask(at: str, headers: Mapping[str, str], method: str = "GET") -> str:
    request = Request(at, headers=dict(headers), method=method)
    try:
        # A machine's own metadata are behind no proxy.
        with build_opener(ProxyHandler({})).open(request, timeout=_ANSWER_WITHIN_S) as answer:
            text: str = answer.read(1000).decode(errors="replace").strip()
            return text
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.NOT_FOUND:
            return ""
        raise


@cache
def _warn_once(at: str, reason: str) -> None:
    _log.warning("%s should say when this machine is to end, but: %s", at, reason)


@dataclass(slots=True)
class Watch:
    """Looks at a place for a notice every second, in a thread, until the block ends."""

    look: Callable[[], str]
    every_s: float = _LOOK_EVERY_S
    text: str = ""
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __call__(self) -> str:
        """What is announced, empty while nothing is; returns at once."""
        return self.text

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch, name="notice", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(self.every_s + _ANSWER_WITHIN_S)

    def _watch(self) -> None:
        while True:
            self.text = self.look() or self.text
            if self._over.wait(self.every_s):
                return


@dataclass(slots=True)
class _Sigterm:
    """What SIGTERM means to this process: a notice while it works, else what it meant before."""

    text: str = ""
    grace_s: float = 0.0
    working: int = 0
    """Number of the process at work: what it forks is not, though it takes the signal too."""

    def heed(self, before: Callable[[int, FrameType | None], Any]) -> None:
        """Take the signal from now on; to be called in the main thread."""

        def answer(signum: int, frame: FrameType | None) -> None:
            if self.working != os.getpid() or self.text:
                before(signum, frame)
                return
            self.text = f"SIGTERM, to end within {self.grace_s:g} s"
            end = threading.Timer(self.grace_s, os.kill, (os.getpid(), signal.SIGTERM))
            end.daemon = True
            end.start()

        signal.signal(signal.SIGTERM, answer)

    @contextmanager
    def at_work(self, grace_s: float) -> Generator[Callable[[], str]]:
        """Until the block ends the first signal is a notice; `grace_s` seconds later it counts."""
        self.grace_s, self.working = grace_s, os.getpid()
        try:
            yield lambda: self.text
        finally:
            self.working = 0


SIGTERM = _Sigterm()
"""Signals are the process's, so there is one of these."""
