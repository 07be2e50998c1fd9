"""Processes that end with their parent, even where the parent is killed and cannot stop them."""

import multiprocessing
import os
import signal
import threading
import time

POLL_SECONDS = 0.5


def end_with_parent(*_: int) -> None:
    """Kills this process of `multiprocessing` soon after its parent has ended; called when the process starts."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _watch(parent.pid, signal.SIGKILL)


def stop_with_parent() -> None:
    """Sends this process SIGTERM soon after the process that started it has ended."""
    _watch(os.getppid(), signal.SIGTERM)


def _watch(parent: int, signal_number: int) -> None:
    """Starts a thread that sends this process a signal once `parent` has ended."""

    def wait() -> None:
        # Not PR_SET_PDEATHSIG: it follows the thread that started this process, which may end long before its process.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=wait, name="parent", daemon=True).start()
