"""Checkpoints: Orbax behind one file, with a digest of every array. `vitx.run_folder` lists what a run's folder holds.

Orbax (0.12.8, 2026-11) writes arrays to gs:// through TensorStore, and folders and lists through etils.epath, which
takes gcsfs; it asks google-cloud-storage for the bucket's kind, which needs the permission `storage.buckets.get`. An
emulator is found through TENSORSTORE_GCS_HTTP_URL and STORAGE_EMULATOR_HOST. Other stores: see `vitx.mirror`.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32
from orbax.checkpoint.checkpoint_managers import PreservationContext

from vitx import strict_json
from vitx.errors import RunError, UserError
from vitx.mirror import Mirror
from vitx.storage import COMMITTED, as_path, exists, move_folder, names_in, remove_folder
from vitx.stores import full_disk, is_bucket, report_io_errors

REPLACED = "replaced_"  # begins the name of a checkpoint whose successor of the same step is not complete yet

State = dict[str, Any]  # pytrees of arrays, by the name of the part that can be restored separately: variables, ...


@jax.jit
def digest(array: Array) -> UInt32[Array, "2"]:
    """Returns two checksums of an array's bits, the same however the array is sharded.

    Each is a sum modulo 2³² over all elements of a one-to-one hash of the element's bits, keyed by its position: a
    change of one element always changes both.
    """
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    elif array.dtype.itemsize == 8:
        # Both halves: a conversion would drop the upper one.
        halves = jax.lax.bitcast_convert_type(array, jnp.uint32)
        bits = halves[..., 0] ^ _mix(halves[..., 1])
    else:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    position, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        position += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        stride *= array.shape[axis]
    keys = _mix(position + 1), _mix(position + jnp.uint32(0x9E3779B9))
    return jnp.stack([jnp.sum(_mix(bits ^ key), dtype=jnp.uint32) for key in keys])


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Permutes the 32-bit numbers (the finaliser of MurmurHash3, Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def digests(state: State) -> dict[str, str]:
    """Returns {path of each array: its digest in hexadecimal}."""
    # A program for each shape, type and sharding: one of the whole state takes long to compile. One after the other:
    # many programs with collectives at once can lock one another out on simulated devices.
    found = {jax.tree_util.keystr(path): jax.device_get(digest(x)) for path, x in jax.tree.leaves_with_path(state)}
    return {path: f"{low:08x}{high:08x}" for path, (low, high) in found.items()}


@contextlib.contextmanager
def suppress_orbax_info_logs() -> Iterator[None]:
    """Drops what Orbax logs below an error: every folder that it opens, and options as they were set."""
    logger = logging.getLogger("absl")

    def is_error(record: logging.LogRecord) -> bool:  # a filter of its own for each call, since calls are nested
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


class DamagedCheckpointError(UserError):
    """A checkpoint that cannot be read, or whose arrays differ from their digests."""


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest and the best kept, verified when restored.

    Attributes:
        directory: folder of the checkpoints, local or in a bucket.
        best_step: step of the checkpoint to keep whatever its age, or None; `restore_newest` reads it from the record.
    """

    def __init__(self, directory: PurePath, *, keep: int = 2, read_only: bool = False):
        directory = as_path(directory)
        self.directory = directory if is_bucket(directory) else directory.absolute()
        self.best_step: int | None = None
        self._keep = keep
        # Orbax writes local folders and gs:// itself: with several processes, each of them its own part.
        written_by_orbax = not is_bucket(self.directory) or str(self.directory).startswith("gs://")
        self._mirror = None if written_by_orbax else Mirror(self.directory)
        if not read_only:
            self._finish_replacements()
            self._remove_incomplete()
        with report_io_errors(self.directory), suppress_orbax_info_logs():
            self._manager = ocp.CheckpointManager(
                os.fspath(self._mirror.local if self._mirror else self.directory),
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=None if self._mirror else self,
                    read_only=read_only,
                    create=not read_only,
                    lightweight_initialize=True,
                    # Folders that are created before the arrays are written need no signals between Orbax's threads.
                    async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
                    # Orbax would clean a bucket in the background, and lists at the same time what it removes.
                    cleanup_tmp_directories=not read_only and not is_bucket(self.directory),
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        with report_io_errors(self.directory):
            try:
                self._manager.close()
                if self._mirror:
                    self._mirror.wait()
            finally:
                if self._mirror:
                    self._mirror.close()

    def should_preserve(self, checkpoints: Any, *, context: PreservationContext) -> list[bool]:
        """Returns which checkpoints to keep, as Orbax asks: the newest few, and the best."""
        return _preserve([checkpoint.step for checkpoint in checkpoints], self._keep, self.best_step)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        with report_io_errors(self.directory):
            self._manager.reload()
            return self._mirror.steps() if self._mirror else sorted(self._manager.all_steps())

    def save(self, step: int, state: State, record: Mapping[str, Any]) -> None:
        """Starts to save in the background; returns when the arrays may change again.

        A checkpoint of the same step is replaced when the new one is complete.

        Args:
            step: number of finished training steps.
            state: arrays, in parts that can be restored separately.
            record: JSON data that is saved beside them: best metric, counters, config.
        """
        parts = {name: ocp.args.StandardSave(part) for name, part in state.items()}
        record = strict_json.to_strict({**record, "step": step, "digests": digests(state)})
        record["sha256"] = _sha256(record)
        self._check_free_space(state)
        with report_io_errors(self.directory):
            if self._mirror:
                self._mirror.wait()
            if step in (self._mirror.steps() if self._mirror else self._manager.all_steps()):
                self.wait()
                self._rename(step, f"{REPLACED}{step}")
            args = ocp.args.Composite(record=ocp.args.JsonSave(record), **parts)
            if not self._manager.save(step, args=args, force=True):
                raise RunError(f"Orbax refused to save step {step} in {self.directory}")
            if self._mirror:
                self._mirror.push(step, functools.partial(_preserve, keep=self._keep, best_step=self.best_step))

    def wait(self) -> None:
        """Waits until everything that was saved is complete on disk or in the bucket."""
        with report_io_errors(self.directory):
            self._manager.wait_until_finished()
            if self._mirror:
                self._mirror.wait()
            self._finish_replacements()

    def _check_free_space(self, state: State) -> None:
        folder = self._mirror.local if self._mirror else self.directory
        if is_bucket(folder):
            return
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(full_disk(folder, f": a checkpoint takes {needed:,} bytes and {free:,} are free"))

    def _rename(self, step: int, name: str) -> None:
        """Renames a checkpoint's folder; returns when no process lists its step any more."""
        if jax.process_index() == 0:
            move_folder(self.directory / str(step), self.directory / name)
        multihost_utils.sync_global_devices(f"renamed {step}")
        if self._mirror:
            self._mirror.forget(step)
        self._manager.reload()

    def _finish_replacements(self) -> None:
        """Removes checkpoints whose successors are complete, and brings back those whose successors never were."""
        if jax.process_index() == 0:
            for name in names_in(self.directory):
                if not name.startswith(REPLACED):
                    continue
                new = self.directory / name.removeprefix(REPLACED)
                # A local folder appears when it is complete; in a bucket, saving and copying end with a mark.
                if exists(new / COMMITTED if is_bucket(new) else new):
                    remove_folder(self.directory / name)
                else:  # the old one is complete: it is removed only after the new one is
                    remove_folder(new)
                    move_folder(self.directory / name, new)
        multihost_utils.sync_global_devices("replacements finished")

    def _remove_incomplete(self) -> None:
        """Removes checkpoints that a killed process has left unfinished in a bucket."""
        if is_bucket(self.directory) and jax.process_index() == 0:
            for name in names_in(self.directory):
                if name.isdecimal() and not exists(self.directory / name / COMMITTED):
                    remove_folder(self.directory / name)
        multihost_utils.sync_global_devices("incomplete checkpoints removed")

    def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """Returns (state, record) of one checkpoint, every array checked against its digest.

        Args:
            step: one of `steps()`.
            abstract: wanted parts, as `jax.ShapeDtypeStruct`s with the shardings that the arrays get.

        Raises:
            DamagedCheckpointError: the checkpoint is damaged, or holds arrays of other names or shapes.
            UserError: the disk or the store cannot be read.
        """
        parts = {name: ocp.args.StandardRestore(part) for name, part in abstract.items()}
        where = f"checkpoint {self.directory / str(step)}"
        try:
            with report_io_errors(self.directory):
                if self._mirror:
                    self._mirror.fetch(step)
                    self._manager.reload()
                args = ocp.args.Composite(record=ocp.args.JsonRestore(), **parts)
                restored = self._manager.restore(step, args=args)
            state, record = {name: restored[name] for name in abstract}, dict(restored["record"])
            if record.pop("sha256", None) != _sha256(record):
                raise ValueError("its record differs from its digest")
            check_fields(record, {"step": int, "digests": dict, "best": dict | None}, f"{where}: its record")
            check_fields(record["best"] or {"step": step}, {"step": int}, f"{where}: 'best' of its record")
            if record["step"] != step:
                raise ValueError(f"its record is of step {record['step']}")
            expected, found = record["digests"], digests(state)
        except UserError:
            raise
        except Exception as error:  # a damaged file can surface as nearly anything
            raise DamagedCheckpointError(f"{where} cannot be read: {_first_line(error)}") from error
        damaged = sorted(path for path in found if expected.get(path) != found[path])
        if damaged:
            raise DamagedCheckpointError(
                f"{where} is damaged: {len(damaged)} arrays differ from their digest, first {damaged[0]}"
            )
        return state, record

    def newest_record(self) -> dict[str, Any]:
        """Returns the newest record that can be read, {} where there are no checkpoints.

        Raises:
            DamagedCheckpointError: there are checkpoints, and no record can be read; the error is that of the newest.
        """
        errors = []
        for step in reversed(self.steps()):
            try:
                return self.restore(step, {})[1]
            except DamagedCheckpointError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return {}

    def restore_newest(self, abstract: State, log: Callable[[str], None]) -> tuple[State, dict[str, Any]] | None:
        """Returns the newest checkpoint that is whole, or None where there are no checkpoints.

        Damaged ones are reported and renamed `damaged_STEP_...`, so that their steps can be saved again.

        Raises:
            UserError: there are checkpoints and none of them can be read; nothing is renamed.
        """
        steps, errors = self.steps(), {}
        for step in reversed(steps):
            try:
                state, record = self.restore(step, abstract)
            except DamagedCheckpointError as error:
                errors[step] = error
                continue
            for damaged, error in errors.items():
                self._rename(damaged, f"damaged_{damaged}_{uuid.uuid4().hex[:8]}")
                log(f"{error}; it was set aside and step {step}, the one before, is taken")
            if (record.get("best") or {}).get("step") not in self.steps():
                record["best"] = None
            self.best_step = (record["best"] or {}).get("step")
            return state, record
        if steps:
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read; if they are of another version of the model "
                f"or of vitx, train in another --workdir",
                map(str, errors.values()),
            )
        return None


def check_fields(record: Mapping[str, Any], kinds: Mapping[str, Any], where: str) -> None:
    """Raises DamagedCheckpointError where a record lacks a field, or has one of another type.

    The digest of a record does not replace this check: whoever writes a record can also compute its digest.

    Args:
        record: content of the record.
        kinds: {name of a field: its type}.
        where: path of the record; begins the message.
    """
    for name, kind in kinds.items():
        if name not in record or not isinstance(record[name], kind):
            found = f"{name!r} is {str(record[name])[:60]!r}" if name in record else f"there is no {name!r}"
            expected = getattr(kind, "__name__", kind)
            raise DamagedCheckpointError(f"{where}: {found}; expected {expected}. Take another checkpoint")


def _preserve(steps: Sequence[int], keep: int, best_step: int | None) -> list[bool]:
    return [i >= len(steps) - keep or step == best_step for i, step in enumerate(steps)]


def abstract_state(state: Any, shardings: Any) -> Any:
    """Returns the shapes and types of a state, with the shardings that its arrays get when they are restored."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300] or type(error).__name__
