"""Checkpoints: exact, verified, the newest and the best kept."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vitx import storage
from vitx.checkpoints import Checkpoints, abstract_state, digest, digests, suppress_orbax_info_logs
from vitx.errors import UserError


@pytest.fixture
def state():
    mesh = jax.make_mesh((1,), ("data",))
    place = NamedSharding(mesh, PartitionSpec())
    arrays = {
        "variables": {"params": {"kernel": jax.random.normal(jax.random.key(0), (64, 33)), "bias": jnp.ones(3)}},
        "optimizer": {"step": jnp.int32(7), "half": jnp.arange(5, dtype=jnp.bfloat16)},
    }
    return jax.tree.map(lambda leaf: jax.device_put(leaf, place), arrays)


def abstract(state):
    return abstract_state(state, jax.tree.map(lambda leaf: leaf.sharding, state))


@pytest.mark.smoke
def test_round_trip_is_exact_and_parts_restore_separately(state, folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state, {"best": None, "note": "x"})
        checkpoints.wait()
        restored, record = checkpoints.restore(7, abstract(state))
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert (record["step"], record["note"]) == (7, "x")
        part, _ = checkpoints.restore(7, {"variables": abstract(state)["variables"]})
        jax.tree.map(np.testing.assert_array_equal, part, {"variables": state["variables"]})


def test_the_newest_two_and_the_best_are_kept(state, folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.best_step = 2 if step >= 2 else None
            checkpoints.save(step, state, {"best": None})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]


def test_a_checkpoint_is_replaced_by_another_of_its_step_when_that_is_complete(state, folder, monkeypatch):
    other = jax.tree.map(lambda leaf: leaf + 1, state)

    def held():
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.steps() == [7]
            return checkpoints.restore(7, abstract(state))[0]

    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state, {"best": None})
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(checkpoints._manager, "save", interrupted)
            checkpoints.save(7, other, {"best": None})
    jax.tree.map(np.testing.assert_array_equal, held(), state)
    with Checkpoints(folder) as checkpoints:
        for saved in (state, other):
            checkpoints.save(7, saved, {"best": None})
    assert "replaced_7" in storage.names_in(folder)  # nobody waited
    jax.tree.map(np.testing.assert_array_equal, held(), other)
    assert "replaced_7" not in storage.names_in(folder)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_no_process_lists_checkpoints_before_a_damaged_one_is_renamed(state, tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"best": None})
        checkpoints.wait()
        arrays_of(tmp_path / "2")[-1].unlink()
        met, reload = [], checkpoints._manager.reload

        def meets(name):
            met.append(not (tmp_path / "2").exists())

        def reloads():
            assert (tmp_path / "2").exists() or met == [True]
            reload()

        monkeypatch.setattr("vitx.checkpoints.multihost_utils.sync_global_devices", meets)
        monkeypatch.setattr(checkpoints._manager, "reload", reloads)
        assert checkpoints.restore_newest(abstract(state), lambda _: None)[1]["step"] == 1
        assert met == [True]


def test_a_damaged_checkpoint_in_a_bucket_is_renamed_and_the_one_before_is_restored(bucket, state):
    folder = storage.as_path(bucket) / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {"best": None})
        checkpoints.wait()
    record = next(path for path in storage.files_under(folder / "2" / "record") if path.name != storage.COMMITTED)
    storage.write_text(record, "{}")
    messages = []
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_newest(abstract(state), messages.append)[1]["step"] == 1
        assert len(messages) == 1 and f"{folder / '2'}" in messages[0]
        assert [name[:10] for name in storage.names_in(folder)] == ["1", "damaged_2_"]
        checkpoints.save(2, state, {"best": None})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_a_store_that_fails_is_not_taken_for_damage(bucket, state, monkeypatch):
    with Checkpoints(storage.as_path(bucket)) as checkpoints:
        checkpoints.save(1, state, {"best": None})
        checkpoints.wait()

        def fail(*_, **__):
            raise ConnectionError("UNAVAILABLE")

        with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be reached"):
            patch.setattr(checkpoints._manager, "restore", fail)
            checkpoints.restore_newest(abstract(state), fail)
        assert checkpoints.steps() == [1]


@pytest.mark.parametrize("copied", range(1, 9, 2))
def test_a_kill_while_a_checkpoint_is_replaced_in_a_bucket_loses_none(copied, new_bucket, state, monkeypatch):
    folder = storage.as_path(new_bucket("s3"))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state, {"best": None})
        checkpoints.wait()
    done, real = [], storage._call

    def call(path, operation, *args, **options):
        if operation in ("cp_file", "rm_file"):
            done.append(path)
            if len(done) > 2 * copied:
                raise KeyboardInterrupt
        return real(path, operation, *args, **options)

    monkeypatch.setattr(storage, "_call", call)
    with contextlib.suppress(KeyboardInterrupt):
        storage.move_folder(folder / "7", folder / "replaced_7")
    assert done
    monkeypatch.undo()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [7]
        assert storage.names_in(folder) == ["7"]
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(7, abstract(state))[0], state)


def test_an_incomplete_checkpoint_in_a_bucket_is_removed(bucket, state):
    folder = storage.as_path(bucket) / "checkpoints"
    storage.write_text(folder / "4" / "optimizer" / "d" / "part", "x")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.restore_newest(abstract(state), print) is None
        checkpoints.save(4, state, {"best": None})
        checkpoints.wait()
        assert checkpoints.steps() == [4]
        assert not storage.exists(folder / "4" / "optimizer" / "d" / "part")


def flip(path, at, bit=3):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1 << bit
    path.write_bytes(data)


def arrays_of(folder):
    """The files that hold the arrays' bytes."""
    return sorted(
        (p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"), key=lambda p: p.stat().st_size
    )


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete_file", "delete_record", "delete_all"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_restored(damage, state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"best": {"step": 1}})
        checkpoints.save(2, jax.tree.map(lambda leaf: leaf + 1, state), {"best": {"step": 1}})
        checkpoints.wait()
    largest = arrays_of(tmp_path / "2")[-1]
    if damage == "flip":
        flip(largest, largest.stat().st_size // 2)
    elif damage == "truncate":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    elif damage == "delete_file":
        largest.unlink()
    elif damage == "delete_record":
        next((tmp_path / "2" / "record").glob("*")).unlink()
    else:
        for file in sorted((tmp_path / "2").rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (tmp_path / "2").rmdir()
    messages = []
    with Checkpoints(tmp_path) as checkpoints:
        restored, record = checkpoints.restore_newest(abstract(state), messages.append)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert record["step"] == 1 and checkpoints.best_step == 1
        if damage == "delete_all":
            assert not messages
        else:
            assert len(messages) == 1 and f"{tmp_path / '2'}" in messages[0]
            assert len(list(tmp_path.glob("damaged_2_*"))) == 1
        checkpoints.save(2, state, {"best": None})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_any_flipped_bit_is_detected_or_harmless(state, tmp_path):
    """Over every file of a checkpoint: the arrays come back exact or the checkpoint is refused."""
    rng = np.random.default_rng(0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {"best": None})
        checkpoints.wait()
        files = sorted(p for p in (tmp_path / "1").rglob("*") if p.is_file() and p.stat().st_size)
        refused = 0
        for _ in range(60):
            file, at, bit = files[rng.integers(len(files))], int(rng.integers(1 << 30)), int(rng.integers(8))
            flip(file, at, bit)
            try:
                restored, _ = checkpoints.restore(1, abstract(state))
            except UserError:
                refused += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, restored, state)
            flip(file, at, bit)
        assert refused > 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_digest_sees_every_bit_and_every_place(dtype):
    values = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(jnp.dtype(dtype))
    values[0, 0] = 1 - values[0, 1]
    digests = {bytes(np.asarray(digest(jnp.asarray(values))))}
    swapped = values.copy()
    swapped[0, 0], swapped[0, 1] = values[0, 1], values[0, 0]
    digests.add(bytes(np.asarray(digest(jnp.asarray(swapped)))))
    bits = 1 if dtype == "bool" else 8 * values.itemsize
    for place in range(values.size):
        for bit in range(bits):
            raw = bytearray(values.tobytes())
            raw[place * values.itemsize + bit // 8] ^= 1 << bit % 8
            changed = np.frombuffer(bytes(raw), values.dtype).reshape(values.shape)
            digests.add(bytes(np.asarray(digest(jnp.asarray(changed)))))
    assert len(digests) == 2 + values.size * bits


def test_digests_name_every_array(state):
    assert set(digests(state)) == {
        "['variables']['params']['kernel']",
        "['variables']['params']['bias']",
        "['optimizer']['step']",
        "['optimizer']['half']",
    }


def test_reading_alone_warns_of_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("absl"), "filters", [])  # commands that ran before leave one
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == []
    assert not caplog.records


def test_errors_alone_are_logged_until_the_outermost_block_ends(caplog, monkeypatch):
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "filters", [])  # commands that ran before leave one
    with suppress_orbax_info_logs():
        with suppress_orbax_info_logs():
            logger.error("an error")
        logger.warning("inside")
    logger.warning("after")
    assert caplog.messages == ["an error", "after"]
