"""Many processes, one on each host or for each GPU: how they find one another, and end together."""

import concurrent.futures
import contextlib
import functools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from vitx import configuration
from vitx.errors import UserError

HEARTBEAT = 30  # seconds without a sign of life after which a process is taken for dead, and all others end
FAILURE, HEARD = "vitx/failure", "vitx/heard"
POLL = 2.0  # seconds between looks for another's failure
FAREWELL = 30  # seconds that the process of the coordinator waits for each other to have heard of a failure


def join(coordinator: str | None, process: int | None, processes: int | None, timeout: int = 300) -> None:
    """Joins the processes of a run; to be called before JAX looks for devices.

    Args:
        coordinator: HOST:PORT of process 0, a free port there; without it and the next two all are taken from the
            environment as JAX finds them (TPU VM, SLURM, Open MPI, Kubernetes).
        process: the number of this process, from 0.
        processes: how many there are.
        timeout: seconds to wait for the others.

    Raises:
        UserError: nothing in the environment says who the others are, or they are not to be found in time.
    """
    given = {"--coordinator": coordinator, "--process_id": process, "--num_processes": processes}
    if 0 < len(missing := [name for name, value in given.items() if value is None]) < len(given):
        raise UserError(f"give all of {', '.join(given)}, or none of them; missing: {', '.join(missing)}")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator is {coordinator}; expected HOST:PORT, as in 10.0.0.1:8476")
    if coordinator is not None and not 0 < int(coordinator.rpartition(":")[2]) < 65536:
        raise UserError(f"--coordinator is {coordinator}; expected a port from 1 to 65535")
    if processes is not None and processes < 1:
        raise UserError(f"--num_processes is {processes}; expected at least 1")
    if processes is not None and not 0 <= process < processes:
        raise UserError(f"--process_id is {process} and --num_processes {processes}; expected 0 to {processes - 1}")
    if timeout < 1:
        raise UserError(f"--join_timeout is {timeout}; expected seconds, at least 1")
    if process == 0:
        _check_free(coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    patience = {"initialization_timeout": 10 * timeout, "heartbeat_timeout_seconds": HEARTBEAT}
    began = time.monotonic()
    if process:
        _reach(coordinator, timeout)
    try:
        _within(timeout, functools.partial(jax.distributed.initialize, coordinator, processes, process, **patience))
    except ValueError as error:
        raise UserError(
            f"nothing here says who the other processes are ({error}); JAX finds them on TPU VMs, in SLURM, Open MPI "
            "and Kubernetes jobs; elsewhere give --coordinator HOST:PORT --process_id I --num_processes N"
        ) from error
    except Exception as error:  # XLA's errors have no type of their own
        waited, why = time.monotonic() - began, (str(error).splitlines() or ["no answer"])[0]
        where = coordinator or f"{distributed.global_state.coordinator_address}, which the environment names,"
        raise UserError(
            f"the {processes or 'other'} processes did not meet at {where} in {waited:.0f} s: {why}; check that all of "
            "them were started, and that this address and port can be reached from each"
        ) from error


def _within(seconds: float, call: Callable[[], None]) -> None:
    """Calls in a thread of its own: where JAX itself waits in vain, it ends the process without an exception.

    Raises:
        TimeoutError: the call has not returned.
    """
    outcome = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    outcome.result(timeout=seconds)


def _check_free(address: str) -> None:
    """Raises UserError where another program has the coordinator's port: JAX would name neither."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(f"port {port} of --coordinator {address} cannot be had here: {error.strerror}") from error


def _reach(address: str, timeout: int) -> None:
    """Waits until process 0 answers; JAX would end this process without an exception."""
    host, _, port = address.rpartition(":")
    began, problem = time.monotonic(), ""
    while time.monotonic() - began < timeout:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            problem = error.strerror or str(error)
            time.sleep(min(1.0, timeout / 10))
    raise UserError(
        f"the coordinator {address} cannot be reached: {problem}, for {time.monotonic() - began:.0f} s; check that "
        "process 0 was started there, and that no firewall closes the port"
    )


def first() -> bool:
    """Whether this is the one process that writes what needs one writer."""
    return jax.process_index() == 0


def together(what: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def check_same(settings: Any, workdir: Path) -> None:
    """Compares this process's settings with those of process 0: with others, what they share would be neither's.

    Raises:
        UserError: they differ, or process 0 does not train in this folder.
    """
    client = multihost.get_jax_distributed_client() if jax.process_count() > 1 else None
    if client is None:
        return
    key = f"vitx/settings{workdir.absolute()}"
    if first():
        client.key_value_set(key, json.dumps(configuration.to_dict(settings)), allow_overwrite=True)
        return
    here = f"process {jax.process_index()}"
    try:
        theirs = configuration.from_dict(json.loads(client.blocking_key_value_get(key, 1000 * FAREWELL)), "process 0")
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{here} trains in {workdir.absolute()}, process 0 does not; run the same command") from error
    if differing := configuration.differences(settings, theirs):
        lines = [f"{path}: {ours!r} in {here}, {its!r} in process 0" for path, (ours, its) in differing.items()]
        raise UserError("\n  ".join(["the processes differ in their settings; run the same command in each", *lines]))


@contextlib.contextmanager
def one_ahead(what: str) -> Iterator[None]:
    """The first process does what is inside, then the others do."""
    if not first():
        together(what)
    yield
    if first():
        together(what)


@contextlib.contextmanager
def ending_together(status: Callable[[BaseException], tuple[str, int]]) -> Iterator[None]:
    """A process that fails inside takes all others with it, and they say why.

    Without this they would wait in their next collective for one that is gone.

    Args:
        status: (message, exit status) of an exception.
    """
    client = multihost.get_jax_distributed_client() if jax.process_count() > 1 else None
    if client is None:
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(client, done), daemon=True).start()
    try:
        yield
    except BaseException as error:
        message, code = status(error)
        told = f"process {jax.process_index()} of {jax.process_count()}: {message}"
        print(f"vitx: {told}", file=sys.stderr, flush=True)
        done.set()
        with contextlib.suppress(Exception):  # another may have failed first, or the coordinator be gone
            client.key_value_set(FAILURE, f"{code} {told}")
        _leave(client, code)
    finally:
        done.set()


def _watch(client: Any, done: threading.Event) -> None:
    while not done.wait(POLL):
        try:
            code, told = client.key_value_try_get(FAILURE).split(" ", 1)
        except Exception:  # nobody has failed
            continue
        if not done.is_set():
            print(f"vitx: ended with {told}", file=sys.stderr, flush=True)
            _leave(client, int(code))


def _leave(client: Any, code: int) -> None:
    """Ends this process; the coordinator goes down with process 0, which therefore waits until all have heard.

    It is no clean exit: that would wait for collectives that are never entered.
    """
    with contextlib.suppress(Exception):  # one that was killed never hears
        client.key_value_set(f"{HEARD}/{jax.process_index()}", "")
        for other in range(1, jax.process_count()) if first() else ():
            client.blocking_key_value_get(f"{HEARD}/{other}", 1000 * FAREWELL)
    os._exit(code)
