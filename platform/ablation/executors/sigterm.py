"""Run by Ray at the start of every worker process, in its main thread: SIGTERM may be a notice.

Ray sets its own handler for the signal right after this, and a stage runs in another thread, where
Python lets nobody set one. So Ray's handler is kept as what the signal means in the end.
"""

import ray._private.utils
import ray._private.worker

from ablation.notice import SIGTERM

__all__ = ["HOOK", "install"]

HOOK = f"{__name__}.install"


def install() -> None:
    """Have what Ray will make of SIGTERM happen only after the grace of a stage at work."""
    ray._private.utils.set_sigterm_handler = SIGTERM.heed
