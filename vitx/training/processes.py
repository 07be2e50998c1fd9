"""Many processes, one for each host or GPU: how they find one another, and how they end together."""

import concurrent.futures
import contextlib
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from vitx import configuration, strict_json
from vitx.console import print_text
from vitx.errors import UserError
from vitx.storage import absolute

HEARTBEAT_SECONDS = 30  # a process without a heartbeat for this long is taken for dead, and all others end
FAILURE_KEY, ACKNOWLEDGED_KEY = "vitx/failure", "vitx/acknowledged"
POLL_SECONDS = 2.0  # between checks whether another process has failed
ACKNOWLEDGE_SECONDS = 30  # limit of the coordinator's wait for each process to acknowledge a failure
EXIT_SECONDS = 2.0  # the coordinator's wait for the other processes to end


def join_processes(
    coordinator: str | None, process_id: int | None, num_processes: int | None, timeout: int = 300
) -> None:
    """Connects the processes of a run; must be called before JAX looks for devices.

    Args:
        coordinator: HOST:PORT of process 0, a free port there. Where `coordinator`, `process_id` and `num_processes`
            are None, JAX takes all three from the environment (TPU VM, SLURM, Open MPI, Kubernetes).
        process_id: number of this process, from 0.
        num_processes: number of processes.
        timeout: seconds to wait for the others.

    Raises:
        UserError: the arguments or the environment do not name the processes, or the processes do not meet in time.
    """
    _check_addresses(coordinator, process_id, num_processes, timeout)
    if process_id == 0:
        _check_port_is_free(coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    limits = {"initialization_timeout": 10 * timeout, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    initialize = functools.partial(jax.distributed.initialize, coordinator, num_processes, process_id, **limits)
    began = time.monotonic()
    if process_id:
        _wait_for_coordinator(coordinator, timeout)
    try:
        _call_with_timeout(timeout, initialize)
    except ValueError as error:
        raise UserError(
            f"nothing here names the other processes ({error}); JAX finds them on TPU VMs and in SLURM, Open MPI and "
            "Kubernetes jobs; elsewhere give --coordinator HOST:PORT --process_id I --num_processes N"
        ) from error
    except Exception as error:  # XLA's errors have no type of their own
        waited, reason = time.monotonic() - began, (str(error).splitlines() or ["no answer"])[0]
        address = coordinator or f"{distributed.global_state.coordinator_address}, which the environment names,"
        raise UserError(
            f"the {num_processes or 'other'} processes did not meet at {address} in {waited:.0f} s: {reason}; check "
            "that all of them were started, and that each can reach this address and port"
        ) from error


def _check_addresses(coordinator: str | None, process_id: int | None, num_processes: int | None, timeout: int) -> None:
    given = {"--coordinator": coordinator, "--process_id": process_id, "--num_processes": num_processes}
    if 0 < len(missing := [name for name, value in given.items() if value is None]) < len(given):
        raise UserError(f"give all of {', '.join(given)}, or none of them; missing: {', '.join(missing)}")
    if timeout < 1:
        raise UserError(f"--join_timeout is {timeout}; expected at least 1 second")
    if coordinator is None:
        return
    port = coordinator.rpartition(":")[2]
    if not port.isdecimal():
        raise UserError(f"--coordinator is {coordinator}; expected HOST:PORT, as in 10.0.0.1:8476")
    if not 0 < int(port) < 65536:
        raise UserError(f"--coordinator is {coordinator}; expected a port from 1 to 65535")
    if num_processes < 1:
        raise UserError(f"--num_processes is {num_processes}; expected at least 1")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id is {process_id} and --num_processes {num_processes}; expected 0 to {num_processes - 1}"
        )


def _call_with_timeout(seconds: float, call: Callable[[], None]) -> None:
    """Calls in a thread of its own: where JAX itself gives up waiting, it ends the process without an exception.

    Raises:
        TimeoutError: the call has not returned in time.
    """
    outcome = concurrent.futures.Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    outcome.result(timeout=seconds)


def _check_port_is_free(address: str) -> None:
    """Raises UserError where another program holds the coordinator's port: JAX's own error names neither."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} of --coordinator {address} cannot be opened here: {error.strerror}"
            ) from error


def _wait_for_coordinator(address: str, timeout: int) -> None:
    """Waits until process 0 answers; JAX would end this process without an exception."""
    host, _, port = address.rpartition(":")
    began, reason = time.monotonic(), ""
    while time.monotonic() - began < timeout:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(min(1.0, timeout / 10))
    raise UserError(
        f"the coordinator {address} cannot be reached: {reason}, for {time.monotonic() - began:.0f} s; check that "
        "process 0 was started there, and that no firewall closes the port"
    )


def is_first_process() -> bool:
    """Returns whether this is process 0, which alone writes files and messages."""
    return jax.process_index() == 0


def sync_processes(name: str) -> None:
    """Waits until all processes have come to the barrier of that name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_same_settings(settings: Any, workdir: PurePath) -> None:
    """Compares this process's settings with those of process 0.

    Raises:
        UserError: the settings differ, or process 0 does not train in this folder.
    """
    client = multihost.get_jax_distributed_client() if jax.process_count() > 1 else None
    if client is None:
        return
    key = f"vitx/settings{absolute(workdir)}"
    if is_first_process():
        client.key_value_set(key, strict_json.dumps(configuration.to_dict(settings)), allow_overwrite=True)
        return
    me = f"process {jax.process_index()}"
    try:
        published = client.blocking_key_value_get(key, 1000 * ACKNOWLEDGE_SECONDS)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"{me} trains in {absolute(workdir)}, process 0 does not; run the same command") from error
    theirs = configuration.from_dict(json.loads(published), "process 0")
    if differing := configuration.differences(settings, theirs):
        lines = [f"{path}: {mine!r} in {me}, {other!r} in process 0" for path, (mine, other) in differing.items()]
        raise UserError("the processes differ in their settings; run the same command in each", lines)


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Runs the `with` in the first process, then in the others."""
    if not is_first_process():
        sync_processes(name)
    yield
    if is_first_process():
        sync_processes(name)


@contextlib.contextmanager
def fail_together(describe: Callable[[BaseException], tuple[str, int]]) -> Iterator[None]:
    """Ends all processes with the message of the one that fails inside the `with`.

    Without this the others would wait in their next collective for a process that is gone.

    Args:
        describe: returns (message, exit status) of an exception.
    """
    client = multihost.get_jax_distributed_client() if jax.process_count() > 1 else None
    if client is None:
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch_for_failure, args=(client, done), daemon=True).start()
    try:
        yield
    except BaseException as error:
        message, status = describe(error)
        message = f"process {jax.process_index()} of {jax.process_count()}: {message}"
        print_text(f"vitx: {message}", lines=True, error=True)
        done.set()
        with contextlib.suppress(Exception):  # another process may have failed first, or the coordinator be gone
            client.key_value_set(FAILURE_KEY, f"{status} {message}")
        _exit_process(client, status)
    finally:
        done.set()


def _watch_for_failure(client: Any, done: threading.Event) -> None:
    while not done.wait(POLL_SECONDS):
        try:
            status, message = client.key_value_try_get(FAILURE_KEY).split(" ", 1)
        except Exception:  # no process has failed
            continue
        if not done.is_set():
            print_text(f"vitx: ended with {message}", lines=True, error=True)
            _exit_process(client, int(status))


def _exit_process(client: Any, status: int) -> None:
    """Ends this process; process 0, whose end takes the coordinator down, first waits until all know of the failure.

    The exit is not a clean one, which would wait for collectives that no process enters any more.
    """
    with contextlib.suppress(Exception):  # a process that was killed never acknowledges
        client.key_value_set(f"{ACKNOWLEDGED_KEY}/{jax.process_index()}", "")
        for other in range(1, jax.process_count()) if is_first_process() else ():
            client.blocking_key_value_get(f"{ACKNOWLEDGED_KEY}/{other}", 1000 * ACKNOWLEDGE_SECONDS)
        if is_first_process():
            # Whoever has acknowledged ends next; a process that still lives when the coordinator is gone is aborted by
            # JAX (0.10.2, 2026-11), with another exit status than the run's.
            time.sleep(EXIT_SECONDS)
    os._exit(status)
