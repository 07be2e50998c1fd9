"""Faults of long runs: requests to stop, loss spikes, steps that hang."""

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


class PreemptionGuard:
    """Turns SIGTERM and Ctrl-C into requests to stop.

    Inside the guard SIGTERM raises `Preempted` at once. Inside `defer` the request is remembered instead, and so is the
    first Ctrl-C: the loop asks `requested` after every step, and saves before it stops. Inside `allow` both raise
    `Preempted`, which the loop answers in the same way. A second Ctrl-C interrupts as usual.
    """

    def __init__(self) -> None:
        self._requested = self._in_training = self._deferring = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "PreemptionGuard":
        # All processes of a run must stop after the same step: JAX's own handler lets them agree on one.
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            # A shell ignores Ctrl-C for what it runs in the background, and so does the run.
            handled = [s for s in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(s) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> bool:
        """Returns whether to stop after this step; must be asked after every step."""
        return self._requested if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

    @contextlib.contextmanager
    def defer(self) -> Iterator[None]:
        """Remembers requests inside the `with`, and raises `Preempted` at its end if there was one."""
        self._in_training = True
        try:
            with self._set_deferring(True):
                yield
        finally:
            self._in_training = False
        if self._requested:
            raise Preempted

    @contextlib.contextmanager
    def allow(self) -> Iterator[None]:
        """Raises `Preempted` on requests inside `defer` again, also on one that was remembered before."""
        with self._set_deferring(False):
            if self._requested:
                raise Preempted
            yield

    @contextlib.contextmanager
    def _set_deferring(self, deferring: bool) -> Iterator[None]:
        previous, self._deferring = self._deferring, deferring
        try:
            yield
        finally:
            self._deferring = previous

    def _handle(self, number: int, _: FrameType | None) -> None:
        repeated, self._requested = self._requested, True
        if number == signal.SIGINT and (repeated or not self._in_training):
            raise KeyboardInterrupt
        if not self._deferring:
            raise Preempted


class LossSpikeDetector:
    """Finds losses far above the recent ones.

    A spike exceeds the median of the last `WINDOW` losses by more than `deviations` times the larger of their median
    absolute deviation and 1 % of the run's first loss.

    Attributes:
        losses: recent losses, spikes included.
        first: the run's first loss; None before there is one.
    """

    WINDOW, MIN_HISTORY = 100, 20

    def __init__(self, deviations: float | None, losses: Iterable[float] = (), first: float | None = None) -> None:
        self.losses, self.first = collections.deque(losses, self.WINDOW), first
        self._deviations = deviations

    def update(self, loss: float) -> float | None:
        """Adds a loss; returns the median that it exceeds as a spike, or None."""
        median, self.first = None, loss if self.first is None else self.first
        if self._deviations is not None and len(self.losses) >= self.MIN_HISTORY:
            median = statistics.median(self.losses)
            deviation = statistics.median(abs(other - median) for other in self.losses)
            # Losses that are nearly equal, or near zero since everything is learnt, have a deviation near zero: without
            # a floor every rounding, and every hard example, would be a spike.
            if loss <= median + self._deviations * max(deviation, 1e-2 * abs(self.first)):
                median = None
        self.losses.append(loss)
        return median


@contextlib.contextmanager
def exit_after(minutes: float | None) -> Iterator[None]:
    """Ends the process with status 1 if the `with` takes longer, and prints the stack of every thread.

    A step that hangs in a device or in a collective never returns to Python, so no exception could end it.
    """
    if minutes is not None:
        faulthandler.dump_traceback_later(60 * minutes, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        if minutes is not None:
            faulthandler.cancel_dump_traceback_later()
