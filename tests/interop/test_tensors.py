"""Files of tensors: what is read, and what no file may do."""

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from vitx.errors import UserError
from vitx.interop.tensors import read_tensors, write_safetensors

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b/c": np.ones(4, np.float16)}


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def write(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        write_safetensors(TENSORS, path, {})
    else:
        np.savez(path, **TENSORS)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.smoke
def test_tensors_are_read_as_written(suffix, tmp_path):
    found = read_tensors(write(tmp_path, suffix))
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_truncated_file_is_reported(suffix, tmp_path):
    path = write(tmp_path, suffix)
    whole = path.read_bytes()
    for length in (0, 5, 20, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"weights.*damaged"):
            read_tensors(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_flipped_byte_does_more_than_raise(data, tmp_path_factory):
    suffix = data.draw(st.sampled_from([".safetensors", ".npz", ".msgpack"]))
    path = tmp_path_factory.mktemp("flipped") / f"weights{suffix}"
    if suffix == ".safetensors":
        write_safetensors(TENSORS, path, {})
    elif suffix == ".npz":
        np.savez(path, **TENSORS)
    else:
        path.write_bytes(serialization.msgpack_serialize({"a": TENSORS["a"], "b": {"c": TENSORS["b/c"]}}))
    raw = bytearray(path.read_bytes())
    if raw:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    try:
        read_tensors(path)
    except UserError:
        pass


def test_a_header_that_claims_more_bytes_than_the_file_has_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    for length in (2**63, 2**40, 10**9):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(UserError, match="damaged"):
            read_tensors(path)
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(tmp_path):
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    tree = serialization.msgpack_serialize({"a/b": ones, "a": {"b": zeros}})
    (tmp_path / "weights.msgpack").write_bytes(tree)
    with zipfile.ZipFile(tmp_path / "weights.npz", "w") as archive:
        for array in (ones, zeros):
            np.save(file := io.BytesIO(), array)
            archive.writestr("a.npy", file.getvalue())
    header = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    )
    (tmp_path / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    for suffix in (".msgpack", ".npz", ".safetensors"):
        with pytest.raises(UserError, match="damaged"):
            read_tensors(tmp_path / f"weights{suffix}")


@pytest.mark.peers
def test_two_tensors_of_one_path_are_refused(tmp_path):
    import torch

    torch.save({"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="two tensors of one path"):
        read_tensors(tmp_path / "weights.pth")


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "weights.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(UserError, match="plain arrays"):
        read_tensors(tmp_path / "weights.npz")
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError):
        read_tensors(tmp_path / "weights.safetensors")
    (tmp_path / "weights.msgpack").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError):
        read_tensors(tmp_path / "weights.msgpack")


@pytest.mark.peers
def test_a_pickle_in_a_pytorch_file_is_refused(tmp_path):
    import torch

    torch.save({"a": torch.ones(2), "b": Bomb()}, tmp_path / "weights.pth")
    with pytest.raises(
        UserError, match=r"holds more than tensors.* torch.save\(model.state_dict\(\), FILE\)"
    ) as caught:
        read_tensors(tmp_path / "weights.pth")
    assert "\033" not in str(caught.value)
    torch.save({"model_state": {"a": torch.ones(2, dtype=torch.bfloat16)}}, tmp_path / "good.pth")
    np.testing.assert_array_equal(read_tensors(tmp_path / "good.pth")["model_state/a"], [1, 1])


@pytest.mark.parametrize("header", ["{'descr': '<f4', 'shape': (", "-" * 9000, "{'descr': '<f4', 'fortran_order': 1}"])
def test_a_malformed_header_is_refused(header, tmp_path):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        raw = header.encode().ljust(10_000 - 10)[:9_990]
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw)
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
        archive.writestr("a.npy", header.getvalue() + bytes(1000))
    with pytest.raises(UserError, match="damaged"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["weights.h5", "weights"])
def test_other_files_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="weights are read from"):
        read_tensors(tmp_path / name)
    with pytest.raises(UserError, match="there is no file"):
        read_tensors(tmp_path / "none.npz")
