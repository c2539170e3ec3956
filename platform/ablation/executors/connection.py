"""A connection to a Ray cluster, whose loss is one sentence and an exit code."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial

import ray
from ray._private import services
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.exceptions import RayError

from ablation.executors.room import nodes, slots
from ablation.executors.sigterm import HOOK
from ablation.layout import Layout, LostPlaceError, PlaceError

__all__ = ["connected"]

_JOIN_WITHIN_S = 60.0
_KNOCK_S = 10.0
_KNOCK_EVERY_S = 5.0
_LOST_AFTER_S = 40.0
"""Ray gives up after 60 s (RAY_gcs_rpc_server_reconnect_timeout_s), and ends the process."""

_NO_STRAY_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}  # a worker without GPUs sees none
_ENVIRONMENT = {
    **_NO_STRAY_GPUS,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's table of trials: ours says more
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    WORKER_PROCESS_SETUP_HOOK_ENV_VAR: HOOK,
    "TUNE_MAX_PENDING_TRIALS_PG": "16",  # so many begin at a time
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must reach the command line
}


@contextmanager
def connected(layout: Layout) -> Generator[Layout]:
    """A connection to the cluster at `layout.address`, and the layout with its GPUs settled.

    `local` is a cluster of its own that ends with the block; a process that is connected already
    stays so. Nodes of a cluster that is there may come within a minute.

    Raises PlaceError where there is no cluster, or no room for a single cell, and LostPlaceError
    where the cluster is lost before the block ends.
    """
    if ray.is_initialized():
        yield _fitting(layout)
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    theirs = {"env_vars": _NO_STRAY_GPUS, "worker_process_setup_hook": HOOK}
    embedded = layout.address == "local"
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _knock(layout.address)
        with _apart():
            ray.init(
                address=layout.address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=None if embedded else theirs,  # what it starts has our environment
                include_dashboard=False if embedded else None,
            )
    except Exception as error:  # Ray raises what it likes, a bare Exception among it
        raise PlaceError(_refusal(layout.address, _last_line(error).rstrip("."))) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in its place
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        # Ray tells of workers that were lost on stdout.
        with redirect_stdout(sys.stderr), _watching(layout.address):
            yield _fitting(layout, wait_s=0.0 if embedded else _JOIN_WITHIN_S)
    except (RayError, ConnectionError) as error:
        raise LostPlaceError(_loss(layout.address, _last_line(error).rstrip("."))) from error
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once that nobody listens at a host and port: Ray would try for minutes.

    Raises OSError.
    """
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


@contextmanager
def _watching(address: str) -> Generator[None]:
    """End this process where the head is away for long: Ray itself would a little later, with 1."""
    head, over = ray.get_runtime_context().gcs_address, threading.Event()

    def watch() -> None:
        heard = time.monotonic()
        while not over.wait(_KNOCK_EVERY_S):
            try:
                _knock(head)
                heard = time.monotonic()
            except OSError as error:
                if time.monotonic() - heard > _LOST_AFTER_S:
                    print(_loss(address, str(error)), file=sys.stderr, flush=True)
                    os._exit(os.EX_TEMPFAIL)  # what waits for Ray cannot be interrupted

    threading.Thread(target=watch, name="watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _loss(address: str, why: str) -> str:
    return (
        f"The cluster at {address!r} was lost: {why}. What was committed is kept. Run the same "
        f"command again when the cluster is back, or on another one."
    )


def _refusal(address: str, why: str) -> str:
    if address == "local":
        return f"Ray could not start on this machine: {why}. Try again when it has less to do."
    return (
        f"address must be that of a Ray cluster which lets this process in, got {address!r}: "
        f"{why}. Start one there, give its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or "
        f"leave address out for an embedded one."
    )


@contextmanager
def _apart() -> Generator[None]:
    """Processes that Ray starts get groups of their own.

    A signal to the driver's whole group (`timeout`, `srun`, a terminal) must reach the driver
    alone, which then needs its cluster to save what is under way. They still end when it dies.
    """
    names = vars(services)
    plain = names["ConsolePopen"]
    names["ConsolePopen"] = partial(plain, process_group=0)
    try:
        yield
    finally:
        names["ConsolePopen"] = plain


def _fitting(layout: Layout, wait_s: float = 0.0) -> Layout:
    """The layout with a number of GPUs.

    Raises PlaceError where not even one cell fits, after so many seconds either.
    """
    end = time.monotonic() + wait_s
    while slots(layout) == 0 and time.monotonic() < end:
        time.sleep(1.0)
    offers = nodes()
    if layout.gpus_per_worker is None:
        layout = replace(layout, gpus_per_worker=int(any(node.get("GPU", 0) for node in offers)))
    if slots(layout) == 0:
        offer = "; ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in offers
        )
        raise PlaceError(
            f"A cell needs {layout.least} worker(s) of {layout.cpus_per_worker} CPUs and "
            f"{layout.gpus_per_worker} GPUs, and the cluster's nodes have: {offer}. Ask for fewer "
            f"workers or smaller ones, or add nodes."
        )
    return layout


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
