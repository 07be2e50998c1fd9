"""Worker processes that end with their parent, even where that is killed and can tell them nothing."""

import multiprocessing
import os
import signal
import threading
import time

POLL_SECONDS = 0.5


def end_with_parent(*_: int) -> None:
    """Ends this process of `multiprocessing` soon after its parent has ended; to be called when it starts."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        _watch(parent.pid, signal.SIGKILL)


def stop_with_parent() -> None:
    """Asks this process to stop, as SIGTERM does, soon after the process that started it has ended."""
    _watch(os.getppid(), signal.SIGTERM)


def _watch(parent: int, request: int) -> None:
    def wait() -> None:
        # Not PR_SET_PDEATHSIG: that speaks of the thread that started this process, which may end long before.
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os.kill(os.getpid(), request)

    threading.Thread(target=wait, name="parent", daemon=True).start()
