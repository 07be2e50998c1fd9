"""`vitx train --profile_startup`: what takes the time from the start of the process to the end of the first step."""

import builtins
import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from vitx.console import print_message
from vitx.training.stopwatch import Stopwatch

FIRST_STEP = "train"  # start-up ends when this phase ends for the first time
# {name of a phase's clock: text in the table}, in the order of the table
PHASES = {
    "build": "data: open or build",
    "restore": "restore a checkpoint",
    "initialise": "initialise parameters and optimiser",
    "compile": "compile the step",
    "input": "first batch",
    FIRST_STEP: "first step",
}
# {event of JAX: text in the table}
COMPILATION = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "XLA, or reading a kept program",
}
CACHE_EVENTS = {
    "/jax/compilation_cache/cache_hits": "programs read from the cache of compiled ones",
    "/jax/compilation_cache/cache_misses": "added to it",
}
IMPORT = "import "  # begins the names of phases that are imports
SMALL_PACKAGE = 0.05  # seconds; packages that take less to import share a line


class StartupProfile(Stopwatch):
    """A stopwatch that counts imports, too, until the first step ends; a context manager.

    Attributes:
        cached: {JAX's event: number of programs} read from and added to the cache of compiled programs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cached = dict.fromkeys(CACHE_EVENTS, 0)
        self._spans: list[tuple[float, float, str]] = []
        self._thread, self._import, self._active = threading.get_ident(), builtins.__import__, False
        self._before, self._began = seconds_since_start(), time.perf_counter()

    def __enter__(self) -> "StartupProfile":
        self._active, builtins.__import__ = True, self._timed_import
        import jax  # not at the top: it is the first of the imports that are counted

        jax.monitoring.register_event_time_span_listener(self._add_span)
        jax.monitoring.register_event_listener(self._add_event)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._finish(report=exception[0] is None)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Counts the time inside the `with` as the phase's; prints the table where the first step ends."""
        with super().__call__(phase):
            yield
        if phase == FIRST_STEP:
            self._finish(report=True)

    @property
    def imports(self) -> dict[str, float]:
        """Seconds by package, including its imports of the standard library and excluding other packages."""
        return {name.removeprefix(IMPORT): time for name, time in self.seconds.items() if name.startswith(IMPORT)}

    def table(self, seconds: float) -> list[str]:
        """Returns the lines of the table.

        Args:
            seconds: the time since this profile began.
        """
        imported = sum(self.imports.values())
        large = {package: time for package, time in self.imports.items() if time >= SMALL_PACKAGE}
        phases = {text: self.seconds.get(name, 0.0) for name, text in PHASES.items()}
        compiled = dict.fromkeys(COMPILATION.values(), 0.0)
        for began, ended, event in self._spans:
            compiled[COMPILATION[event]] += ended - began
        rows = {"interpreter and command line": self._before, "imports": imported}
        rows |= {f"  {package}": large[package] for package in sorted(large, key=large.get, reverse=True)}
        rows["  other packages"] = imported - sum(large.values())
        rows["settings, checks and all else"] = seconds - imported - sum(phases.values())
        end = "until the first step ended" if FIRST_STEP in self.seconds else "in total; no step was taken"
        rows |= phases | {end: self._before + seconds}
        rows |= {f"in all of this, {name}": time for name, time in compiled.items()}
        programs = ", ".join(f"{self.cached[event]} {text}" for event, text in CACHE_EVENTS.items())
        return ["start-up, seconds:", *(f"  {name:46} {time:8.2f}" for name, time in rows.items()), f"  {programs}"]

    def _finish(self, *, report: bool) -> None:
        if not self._active:
            return
        import jax

        seconds, self._active = time.perf_counter() - self._began, False
        builtins.__import__ = self._import
        jax.monitoring.unregister_event_time_span_listener(self._add_span)
        jax.monitoring.unregister_event_listener(self._add_event)
        if report:
            print_message(*self.table(seconds))
        for name in self.imports:  # no phases of the run
            del self.seconds[IMPORT + name]

    def _timed_import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        package = (((globals or {}).get("__package__") or name) if level else name).partition(".")[0]
        if threading.get_ident() != self._thread or package in sys.stdlib_module_names:
            return self._import(name, globals, locals, fromlist, level)
        with super().__call__(IMPORT + package):
            return self._import(name, globals, locals, fromlist, level)

    def _add_span(self, event: str, began: float, ended: float, **_: Any) -> None:
        if event in COMPILATION:
            # An inner function is traced, lowered and compiled within the span of the outer one.
            while self._spans and self._spans[-1][0] >= began:
                self._spans.pop()
            self._spans.append((began, ended, event))

    def _add_event(self, event: str, **_: Any) -> None:
        if event in self.cached:
            self.cached[event] += 1


def seconds_since_start() -> float:
    """Returns the seconds since this process was started; 0 where the system does not record it."""
    try:
        with open("/proc/self/stat") as file:
            ticks = float(file.read().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
