"""What happens to long runs: notices to stop, losses that leap, steps that hang."""

import collections
import contextlib
import faulthandler
import signal
import statistics
import sys
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from vitx.errors import Preempted


class Notices:
    """Notices to stop: SIGTERM, and Ctrl-C.

    While it is entered SIGTERM raises `Preempted`, at once. Inside `deferred` it is noted instead, and so is the first
    Ctrl-C: there is something to save, and `came` tells when. A second Ctrl-C interrupts as ever. What was ignored
    before stays ignored, as Ctrl-C is in the background of a script. Of many processes all must stop after the same
    step: there JAX takes the notice, and agrees on one.
    """

    def __init__(self) -> None:
        self._noted = self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Notices":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            heard = (each for each in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(each) != signal.SIG_IGN)
            self._before = {each: signal.signal(each, self._take) for each in heard}
        return self

    def __exit__(self, *_: Any) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def came(self, step: int) -> bool:
        """Whether to stop after this step; to be asked after every one."""
        return self._noted if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Notices are noted, and raise when all inside is done."""
        with self._set(True):
            yield
        if self._noted:
            raise Preempted

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside `deferred`, notices raise again, one that was noted before too."""
        with self._set(False):
            if self._noted:
                raise Preempted
            yield

    @contextlib.contextmanager
    def _set(self, deferring: bool) -> Iterator[None]:
        before, self._deferring = self._deferring, deferring
        try:
            yield
        finally:
            self._deferring = before

    def _take(self, number: int, _: FrameType | None) -> None:
        again, self._noted = self._noted, True
        if number == signal.SIGINT and (again or not self._deferring):
            raise KeyboardInterrupt
        if not self._deferring:
            raise Preempted


class Spikes:
    """Tells losses that leap out of the last ones.

    A spike is a loss above their median by more than `deviations` times the median of their distances from it.

    Attributes:
        losses: the last ones, spikes too.
    """

    WINDOW, ENOUGH = 100, 20

    def __init__(self, deviations: float | None, losses: Iterable[float] = ()) -> None:
        self.losses = collections.deque(losses, self.WINDOW)
        self._deviations = deviations

    def judge(self, loss: float) -> float | None:
        """Returns the median that this loss leaps out of, or None if it does not; and remembers it."""
        median = None
        if self._deviations is not None and len(self.losses) >= self.ENOUGH:
            median = statistics.median(self.losses)
            distance = statistics.median(abs(each - median) for each in self.losses)
            # losses that hardly differ at all are no measure
            if loss <= median + self._deviations * max(distance, 1e-3 * abs(median)):
                median = None
        self.losses.append(loss)
        return median


@contextlib.contextmanager
def ended_after(minutes: float | None) -> Iterator[None]:
    """Ends the process with status 1 if what is inside takes longer, and prints where every thread is.

    A step that hangs in a device or in another process hears no exception.
    """
    if minutes is not None:
        faulthandler.dump_traceback_later(60 * minutes, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        if minutes is not None:
            faulthandler.cancel_dump_traceback_later()
