"""Wall time by phase. Needs the standard library alone: a profile of the start begins before other imports."""

import collections
import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Splits wall time into named phases; a phase inside another one stops the outer one's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self._phases: list[str] = []
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time inside the `with` as the phase's."""
        self._switch()
        self._phases.append(phase)
        try:
            yield
        finally:
            self._switch()
            self._phases.pop()

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self.seconds[self._phases[-1]] += now - self._since
        self._since = now

    def __str__(self) -> str:
        return ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in self.seconds.items())
