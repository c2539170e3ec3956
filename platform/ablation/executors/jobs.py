"""Ray's jobs, by the address of its dashboard: a driver that runs on the cluster itself."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from ablation.address import masked, public
from ablation.layout import LostPlaceError, PlaceError

__all__ = ["Job", "Jobs"]

_KNOCK_S = 10.0
_CHATTY = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
"""Loggers that tell of every upload, each with a level of its own."""
_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How a job stands: `over` with an exit code, where it got as far as having one."""

    state: str
    over: bool
    code: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Jobs:
    """The jobs of one cluster. Every method raises LostPlaceError where it does not answer."""

    address: str
    client: Any

    @classmethod
    def at(cls, address: str) -> "Jobs":
        """The jobs of the dashboard at an http(s) address; RAY_ADDRESS does not count.

        Raises PlaceError where nobody listens there, or the token is not the cluster's.
        """
        try:
            _knock(address)
            with _unnamed():
                client = JobSubmissionClient(address, headers=_token())
        except AuthenticationError as error:
            raise PlaceError(
                f"Ray's dashboard at {public(address)} lets nobody in without the cluster's token. "
                f"Give it in RAY_AUTH_TOKEN, or name its file in RAY_AUTH_TOKEN_PATH."
            ) from error
        except (OSError, RuntimeError, ConnectionError) as error:
            raise PlaceError(
                f"Ray's dashboard must answer at {public(address)}: {_line(error, address)}. "
                f"Correct `dashboard` in the profile, or start the cluster."
            ) from error
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        return cls(address, client)

    def submit(
        self, job: str, command: str, *, folder: Path, environment: Mapping[str, str]
    ) -> None:
        """Start a driver, whose working folder is a copy of `folder`; a job is submitted once."""
        runtime = {"working_dir": str(folder), "env_vars": dict(environment)}
        with _answering(self.address):
            if self.look(job) is None:
                self.client.submit_job(entrypoint=command, submission_id=job, runtime_env=runtime)

    def look(self, job: str) -> Job | None:
        """How a job stands; None of one that the cluster does not know (any more)."""
        with _answering(self.address):
            try:
                found = self.client.get_job_info(job)
            except RuntimeError as error:
                if "does not exist" in str(error):
                    return None
                raise
        return Job(
            state=str(found.status.value).lower(),
            over=found.status.is_terminal(),
            code=0 if found.status is JobStatus.SUCCEEDED else found.driver_exit_code,
            message=found.message or "",
        )

    def session(self) -> str:
        """What the cluster calls the time since its head began."""
        with _answering(self.address):
            said = self.client._do_request("GET", "/api/version").json()
        return str(said.get("session_name", ""))

    def stop(self, job: str) -> None:
        """Send SIGTERM to a job's driver."""
        with _answering(self.address):
            self.client.stop_job(job)

    def logs(self, job: str) -> str:
        """What a job has said so far."""
        with _answering(self.address):
            return str(self.client.get_job_logs(job))

    def follow(self, job: str, say: Callable[[str], None]) -> None:
        """Pass on what a job says until it ends, or the cluster is lost."""

        async def listen() -> None:
            async for text in self.client.tail_job_logs(job):
                say(text)

        with _answering(self.address):
            asyncio.run(listen())


@contextmanager
def _answering(address: str) -> Generator[None]:
    """Raises LostPlaceError where the dashboard does not answer, or not as it must."""
    try:
        yield
    except (OSError, RuntimeError, ClientError) as error:
        raise LostPlaceError(
            f"Ray's dashboard at {public(address)} does not answer as it must: "
            f"{_line(error, address)}. Try again when the cluster is back: what was committed is "
            f"kept."
        ) from error


@contextmanager
def _unnamed() -> Generator[None]:
    """Ray prefers variables to the address that it is given."""
    held = {name: os.environ.pop(name) for name in _ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ |= held


def _knock(address: str) -> None:
    """Find out in time that nobody listens: Ray's client waits for ever.

    Raises OSError.
    """
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=_KNOCK_S).close()


def _token() -> dict[str, str] | None:
    """The header that shows the cluster's token, from where Ray looks for it."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        with suppress(OSError, RuntimeError):  # of a home that is not known
            named = os.environ.get("RAY_AUTH_TOKEN_PATH")
            file = Path(named or Path.home() / ".ray" / "auth_token")
            token = file.read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else None


def _line(error: Exception, address: str) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return masked(line, address).rstrip(".")
