"""Checkpoints: Orbax behind one file, with a digest of every array, and what a run's folder holds.

A run's folder:

    config.json      the experiment: settings, versions; never executed
    metrics.jsonl    one object a line: step, split, figures
    checkpoints/     one folder a step, written asynchronously and renamed into place when complete
    events.*         TensorBoard's view of metrics.jsonl
    report.md        what the run learnt, with its pictures
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32
from orbax.checkpoint.checkpoint_managers import PreservationContext

from vitx.errors import RunError, UserError
from vitx.storage import full_disk, report_io_errors

REPLACED = "replaced_"  # begins the name of a checkpoint whose successor of the same step is not whole yet

State = dict[str, Any]  # pytrees of arrays by the part that they restore separately: variables, optimizer, ...


@jax.jit
def digest(array: Array) -> UInt32[Array, "2"]:
    """Two checksums of an array's bits, the same however the array is sharded.

    Each is a sum modulo 2³² over all elements of a one-to-one hash of the element's bits, keyed by its position: a
    change of one element always changes both.
    """
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{8 * array.dtype.itemsize}")).astype(jnp.uint32)
    position, stride = jnp.zeros(array.shape, jnp.uint32), 1
    for axis in reversed(range(array.ndim)):
        position += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        stride *= array.shape[axis]
    keys = _mixed(position + 1), _mixed(position + jnp.uint32(0x9E3779B9))
    return jnp.stack([jnp.sum(_mixed(bits ^ key), dtype=jnp.uint32) for key in keys])


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of the 32-bit numbers (the finaliser of MurmurHash3, Appleby)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def digests(state: State) -> dict[str, str]:
    """Returns {path of each array: its digest in hexadecimal}."""
    # a program for each shape, type and sharding, for one of the whole state takes long to compile; and one after the
    # other, for many with collectives at once can lock one another out on simulated devices
    found = {jax.tree_util.keystr(path): jax.device_get(digest(x)) for path, x in jax.tree.leaves_with_path(state)}
    return {path: f"{low:08x}{high:08x}" for path, (low, high) in found.items()}


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest and the best kept, restored verified.

    Attributes:
        directory: the folder of checkpoints.
        best_step: the checkpoint to keep whatever its age, or None; the record says which.
    """

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False):
        self.directory = Path(directory).absolute()
        self.best_step: int | None = None
        self._keep = keep
        if not read_only:
            self._settle()
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                read_only=read_only,
                create=not read_only,
                lightweight_initialize=True,
                cleanup_tmp_directories=not read_only,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        with report_io_errors(self.directory):
            self._manager.close()

    def should_preserve(self, checkpoints: Any, *, context: PreservationContext) -> list[bool]:
        """Orbax asks which checkpoints to keep: the newest few, and the best."""
        newest = len(checkpoints) - self._keep
        return [i >= newest or checkpoint.step == self.best_step for i, checkpoint in enumerate(checkpoints)]

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        self._manager.reload()
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, record: Mapping[str, Any]) -> None:
        """Starts to save; returns when the arrays may change again.

        A checkpoint of the same step gives way when the new one is whole.

        Args:
            step: number of finished training steps.
            state: arrays, in parts that can be restored apart.
            record: JSON data that travels with them: best metric, counters, config.
        """
        parts = {name: ocp.args.StandardSave(part) for name, part in state.items()}
        record = {**record, "step": step, "digests": digests(state)}
        record["sha256"] = _sha256(record)
        needed, there = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.directory).free
        if there < needed:
            raise UserError(full_disk(self.directory, f": a checkpoint takes {needed:,} bytes and {there:,} are free"))
        with report_io_errors(self.directory):
            if step in self._manager.all_steps():
                self.wait()
                self._rename(step, f"{REPLACED}{step}")
            args = ocp.args.Composite(record=ocp.args.JsonSave(record), **parts)
            if not self._manager.save(step, args=args, force=True):
                raise RunError(f"Orbax refused to save step {step} in {self.directory}")

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with report_io_errors(self.directory):
            self._manager.wait_until_finished()
            self._settle()

    def _rename(self, step: int, name: str) -> None:
        """Takes a checkpoint out of the list; returns when it is in that of no process."""
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(self.directory / name)
        multihost_utils.sync_global_devices(f"renamed {step}")
        self._manager.reload()

    def _settle(self) -> None:
        """Removes checkpoints whose successors are whole, and brings back those whose successors never were."""
        if jax.process_index() == 0:
            for old in self.directory.glob(f"{REPLACED}*"):
                new = self.directory / old.name.removeprefix(REPLACED)
                if new.exists():
                    shutil.rmtree(old)
                else:
                    old.rename(new)
        multihost_utils.sync_global_devices("settled")

    def restore(self, step: int, abstract: State) -> tuple[State, dict[str, Any]]:
        """Returns (state, record) of one checkpoint, every array checked against its digest.

        Args:
            step: one of `steps()`.
            abstract: the parts wanted: `jax.ShapeDtypeStruct`s with the shardings that the arrays shall have.

        Raises:
            UserError: the checkpoint is damaged, or holds arrays of other names or shapes.
        """
        parts = {name: ocp.args.StandardRestore(part) for name, part in abstract.items()}
        where = f"checkpoint {self.directory / str(step)}"
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore(), **parts))
            state, record = {name: restored[name] for name in abstract}, dict(restored["record"])
            if record.pop("sha256", None) != _sha256(record) or record["step"] != step:
                raise ValueError("its record differs from its digest")
            expected, found = record["digests"], digests(state)
        except Exception as error:  # a damaged file can surface as nearly anything
            raise UserError(f"{where} cannot be read: {_first_line(error)}") from error
        damaged = sorted(path for path in found if expected.get(path) != found[path])
        if damaged:
            raise UserError(f"{where} is damaged: {len(damaged)} arrays differ from their digest, first {damaged[0]}")
        return state, record

    def restore_newest(self, abstract: State, say: Callable[[str], None]) -> tuple[State, dict[str, Any]] | None:
        """Returns the newest checkpoint that is whole, or None where there are no checkpoints.

        Damaged ones are said so, and set aside as `damaged_STEP_...` so that their steps can be saved again.

        Raises:
            UserError: there are checkpoints and none of them can be read; nothing is set aside.
        """
        steps, errors = self.steps(), {}
        for step in reversed(steps):
            try:
                state, record = self.restore(step, abstract)
            except UserError as error:
                errors[step] = error
                continue
            for damaged, error in errors.items():
                self._rename(damaged, f"damaged_{damaged}_{uuid.uuid4().hex[:8]}")
                say(f"{error}; it was set aside and step {step}, the one before, is taken")
            if (record.get("best") or {}).get("step") not in self.steps():
                record["best"] = None
            self.best_step = (record["best"] or {}).get("step")
            return state, record
        if steps:
            messages = "".join(f"\n  {error}" for error in errors.values())
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read; if they are of another version of the model "
                f"or of vitx, train in another --workdir{messages}"
            )
        return None


def abstract_state(state: Any, shardings: Any) -> Any:
    """Returns the state's shapes and types with the shardings that they shall be restored to."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def _sha256(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300] or type(error).__name__
