"""Small files that ask for much: memory, time, or a file that never ends. Each is refused, quickly and by name."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from vitx.cli import main
from vitx.data.container import VideoError
from vitx.data.encoding import encode_video
from vitx.data.file_kinds import read_video
from vitx.data.pipeline import Data
from vitx.errors import UserError
from vitx.evaluation.examples import load_predictions
from vitx.interop.preprocessing import Preprocessing
from vitx.interop.tensors import read_tensors
from vitx.interop.torch_files import _read_answer
from vitx.limits import check_memory, check_unpacked, open_regular
from vitx.storage import read_json


def deflated(path: Path, name: str, size: int, header: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as member:
        member.write(header)
        for _ in range(size // 2**22):
            member.write(bytes(2**22))
    return path


def npy_header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


LARGE_ARCHIVES = {
    "a bomb of one array": lambda path: deflated(path, "x.npy", 2**29, npy_header((2**27,))),
    "a bomb behind another name": lambda path: deflated(path, "x/../y.npy", 2**29, npy_header((2**27,))),
    "a shape without bytes": lambda path: npz(path, {"x.npy": npy_header((10**12,))}),
    "a shape of many axes": lambda path: npz(path, {"x.npy": npy_header((2**31, 2**31))}),
    "a negative shape": lambda path: npz(path, {"x.npy": npy_header((-1, 5))}),
    "long texts": lambda path: npz(path, {"x.npy": npy_header((1,), "<U1000000000")}),
    "objects": lambda path: npz(path, {"x.npy": npy_header((1,), "|O") + pickle.dumps([1])}),
    "many equal bombs": lambda path: npz(path, {f"{i}.npy": bytes(2**23) for i in range(64)}),
    "a header that is none": lambda path: npz(path, {"x.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}),
    "no archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)) and path,
}


@pytest.mark.parametrize("kind", LARGE_ARCHIVES)
def test_small_archives_that_claim_much_are_refused(kind, bounded, tmp_path):
    path = LARGE_ARCHIVES[kind](tmp_path / "weights.npz")
    with pytest.raises(UserError, match=r"weights\.npz"):
        read_tensors(path)


@pytest.mark.parametrize("kind", ["a shape without bytes", "long texts", "objects", "no archive"])
def test_predictions_of_somebody_else_are_refused_in_bounded_memory(tmp_path, kind):
    path = LARGE_ARCHIVES[kind](tmp_path / "predictions_test.npz")
    with pytest.raises(UserError, match=r"predictions_test\.npz(?s:.*)vitx evaluate .* --split test writes it again"):
        load_predictions(path)


def test_an_archive_of_weights_that_compress_well_is_read(tmp_path):
    np.savez_compressed(tmp_path / "weights.npz", x=np.zeros((2000, 1000), np.float32))
    assert read_tensors(tmp_path / "weights.npz")["x"].shape == (2000, 1000)


def test_sizes_are_compared_with_the_file_and_the_machine(tmp_path):
    (tmp_path / "x").write_bytes(bytes(1000))
    check_unpacked(tmp_path / "x", 2000)
    with pytest.raises(UserError, match="1,000 bytes"):
        check_unpacked(tmp_path / "x", 10**9)
    with pytest.raises(UserError, match="free"):
        check_memory(10**15, "it")


SIZES = {
    "eval_clips": {"eval_clips": 10**9},
    "eval_clips and crops": {"eval_clips": 10**8, "eval_crops": 3},
    "all clips": {"eval_clips": "all", "max_eval_clips": 10**9},
    "workers": {"num_workers": 10_000},
    "workers beyond counting": {"num_workers": 10**12},
    "frames": {"num_frames": 10**8},
    "image_size": {"image_size": (10**6, 10**6)},
    "a wide image": {"image_size": (1, 10**10)},
    "eval_batch_size": {"eval_batch_size": 10**12, "image_size": (32, 32)},
    "frames and clips": {"num_frames": 10**5, "eval_clips": 10**5},
}


@pytest.mark.parametrize("setting", SIZES)
def test_settings_that_need_more_memory_than_there_is_are_refused(setting, bounded, digits):
    data = Data(**({"dataset": digits, "num_frames": 4, "image_size": (24, 24)} | SIZES[setting]))
    with pytest.raises(UserError, match=r"data\.(num_workers|eval_clips|eval_batch_size)"):
        next(iter(data.eval_batches(digits.open("test"))))


def test_one_video_is_read_without_memory_for_worker_processes(digits):
    data = Data(digits, num_frames=4, image_size=(24, 24), num_workers=10_000)
    assert data.read_views(digits.open("test")[0]).shape == (1, 4, 24, 24, 3)


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 10**12}, {"image_size": (10**6, 10**6)}, {"image_size": (10**6, 10**6), "eval_size": (24, 24)}],
)
def test_a_training_batch_that_needs_too_much_is_refused(settings, bounded, digits):
    data = Data(digits, **{"num_frames": 4, "image_size": (24, 24), **settings})
    with pytest.raises(UserError, match=r"data\.batch_size"):
        next(iter(data.train_batches(digits.open("train"), 0, range(1))))


def test_crops_of_evaluation_take_nothing_from_training(digits):
    data = Data(digits, num_frames=4, image_size=(24, 24), batch_size=4, eval_size=(10**6, 10**6))
    (batch,) = data.train_batches(digits.open("train"), 0, range(1))
    assert batch["video"].shape == (4, 4, 24, 24, 3)


SCALES = {
    "short_side": {"short_side": 20_000},
    "short_side at the limit of numbers": {"short_side": 1_000_000},
    "long_side": {"long_side": 20_000},
    "both sides": {"scaled_to": (20_000, 20_000)},
    "a strip": {"scaled_to": (1_000_000, 100)},
    "a large input": {"size": (20_000, 20_000)},
}


@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize("clip", [(16, 48, 48, 3), (16, 48, 90, 3)])
def test_scaling_to_too_many_pixels_is_refused_before_it_is_tried(kind, clip, bounded):
    fields = {"size": (32, 32), "short_side": None, "num_frames": 16} | SCALES[kind]
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, **fields)
    with pytest.raises(UserError, match="pixels"):
        preprocessing.fit(np.zeros(clip, np.uint8))


def test_a_large_scale_that_is_allowed_takes_one_frame_at_a_time(bounded):
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32), 4000, 16)
    assert preprocessing.fit(np.zeros((16, 48, 48, 3), np.uint8)).shape == (16, 32, 32, 3)  # 770 MB if taken together


@pytest.fixture
def endless(tmp_path):
    """Paths that never end, or that nobody ever writes to."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("name", ["fifo", "zero"])
def test_only_regular_files_are_opened(name, bounded, endless):
    with pytest.raises(UserError, match=name), open_regular(endless / name):
        pass
    with pytest.raises(UserError):
        read_json(endless / name)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson"])
@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/dev/full", "loop"])
def test_a_list_that_never_ends_is_refused(name, suffix, bounded, endless, capsys):
    path = endless / f"list{suffix}"
    path.symlink_to(name)
    assert main(["data", "check", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fifo", "/dev/zero", "/dev/random", "loop", "."])
def test_a_file_in_a_list_that_never_ends_is_reported(name, bounded, endless, capsys):
    (endless / "film.mp4").write_bytes(encode_video(np.zeros((4, 32, 32, 3), np.uint8)))
    (endless / "list.csv").write_text(f"path,class\nfilm.mp4,a\n{name},b\n")
    assert main(["data", "check", str(endless / "list.csv"), "--json"]) in (1, 2)
    out, err = capsys.readouterr()
    assert Path(name).name in out + err


def test_a_folder_of_frames_with_a_pipe_among_them_is_refused(bounded, endless):
    (endless / "frames").mkdir()
    for i in range(2):
        os.mkfifo(endless / "frames" / f"{i}.png")
    with pytest.raises(VideoError, match="frames"):
        read_video(str(endless / "frames"))


@pytest.mark.parametrize("command", ["predict", "evaluate", "convert"])
@pytest.mark.parametrize("name", ["fifo", "zero"])
def test_a_run_whose_config_never_ends_is_refused(command, name, bounded, endless, capsys):
    (endless / "run").mkdir()
    (endless / "run" / "config.json").symlink_to(endless / name)
    (endless / "clip.mp4").write_bytes(encode_video(np.zeros((4, 32, 32, 3), np.uint8)))
    words = {"predict": [endless / "clip.mp4"], "evaluate": [], "convert": [endless / "new.safetensors"]}[command]
    assert main([command, str(endless / "run"), *map(str, words)]) == 2
    assert "vitx: " in capsys.readouterr().err


def nested_key(depth: int) -> bytes:
    """A pickle of {key: 1}; the key is a pair of the same pair, and so on: hashing it takes 2**depth steps."""
    out = [b"\x80\x02}q\xffK\x01K\x01\x86q\x00"]
    for i in range(depth):
        out.append(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]))  # the pair once more, then a pair of both
    return b"".join([*out, b"K\x01s."])


def torch_archive(path: Path, data: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)


def torch_files(torch) -> dict:
    """Returns {kind: what writes a small file that asks for much}."""
    one = torch.ones(1)
    sparse = torch.sparse_coo_tensor([[0]], [1.0], (10**9,))
    rows = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), size=(1, 10**9))

    def save(state):
        return lambda path: torch.save(state, path)

    return {
        "expanded": save({"x": one.expand(10**10)}),
        "expanded over several axes": save({"x": one.expand(10**4, 10**4, 100)}),
        "expanded as integers": save({"x": torch.ones(1, dtype=torch.int64).expand(10**9)}),
        "many expanded": save({str(i): one.expand(10**7) for i in range(100)}),
        "overlapping strides": save({"x": torch.ones(10**4).as_strided((10**4, 10**5), (0, 0))}),
        "sparse": save({"x": sparse}),
        "sparse by rows": save({"x": rows}),
        "inside dictionaries": save({"state": {"model": {"x": one.expand(10**10)}}}),
        "bfloat16": save({"x": torch.ones(1, dtype=torch.bfloat16).expand(10**9)}),
        "legacy": lambda path: torch.save({"x": one.expand(10**10)}, path, _use_new_zipfile_serialization=False),
        "a deflate bomb": lambda path: torch_archive(path, pickle.dumps({}, 2), **{"data/0": bytes(2**29)}),
        "a key that hashes for ever": lambda path: path.write_bytes(nested_key(60)),
        "a key that hashes for ever, in an archive": lambda path: torch_archive(path, nested_key(60)),
        "a pickle of lists without end": lambda path: path.write_bytes(b"\x80\x02" + b"]" * 10**6 + b"."),
        "a number of many digits": lambda path: path.write_bytes(b"\x80\x02I" + b"9" * 10**6 + b"\n."),
        "a text that claims 4 GB": lambda path: path.write_bytes(b"\x80\x02X\xff\xff\xff\xff" + b"x" * 100),
    }


TORCH_KINDS = (
    *("expanded", "expanded over several axes", "expanded as integers", "many expanded", "overlapping strides"),
    *("sparse", "sparse by rows", "inside dictionaries", "bfloat16", "legacy", "a deflate bomb"),
    *("a key that hashes for ever", "a key that hashes for ever, in an archive", "a pickle of lists without end"),
    *("a number of many digits", "a text that claims 4 GB"),
)


@pytest.mark.peers
@pytest.mark.parametrize("kind", TORCH_KINDS)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_small_pytorch_file_takes_neither_memory_nor_time(kind, bounded, tmp_path):
    path = tmp_path / "weights.pth"
    torch_files(pytest.importorskip("torch"))[kind](path)
    with pytest.raises(UserError, match=r"weights\.pth"):
        read_tensors(path)


@pytest.mark.peers
def test_a_pytorch_file_is_read_as_written_in_its_own_process(tmp_path):
    torch = pytest.importorskip("torch")
    kinds = {"f": torch.float32, "d": torch.float64, "h": torch.float16, "i": torch.int64, "b": torch.bool}
    state = {name: torch.arange(6).reshape(2, 3).to(kind) for name, kind in kinds.items()}
    state |= {"half": torch.arange(3).to(torch.bfloat16), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    state |= {"turned": torch.arange(6.0).reshape(2, 3).T, "inner": {"x": torch.ones(2)}}
    torch.save(state, tmp_path / "weights.pth")
    found = read_tensors(tmp_path / "weights.pth")
    expected = {name: x for name, x in state.items() if name != "inner"} | {"inner/x": state["inner"]["x"]}
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        x = x.float() if x.dtype == torch.bfloat16 else x
        np.testing.assert_array_equal(found[name], x.numpy())
        assert found[name].dtype == x.numpy().dtype


def zipped(path: Path, sizes: list[int], claimed: int) -> None:
    """A PyTorch file of members of zeros, `claimed` the size of each in the archive's directory."""
    torch_archive(path, pickle.dumps({}, 2), **{f"data/{i}": bytes(size) for i, size in enumerate(sizes)})
    data, at = bytearray(path.read_bytes()), 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 24 : at + 28] = claimed.to_bytes(4, "little")
        at += 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("sizes", "claimed"),
    [([2**20] * 2, 2**28), ([2**20], 2**29), ([2**16] * 9, 2**26), ([1], 2**32 - 2), ([1] * 3000, 2**17)],
)
def test_a_pytorch_archive_that_claims_much_is_refused_before_it_is_read(
    sizes, claimed, bounded, tmp_path, monkeypatch
):
    zipped(tmp_path / "weights.pth", sizes, claimed)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("the file is read"))
    with pytest.raises(UserError, match=r"weights\.pth .*claims"):
        read_tensors(tmp_path / "weights.pth")


ANSWERS = {  # what a process that a hostile file controls could write
    "nothing": b"",
    "no JSON": b"{\n",
    "a list": b"[1]\n",
    "nested JSON": b"[" * 10**6 + b"\n",
    "a line without end": b"x" * (2**26 + 10),
    "no shape": b'{"tensors": [["x", "float32"]]}\n',
    "a shape beyond memory": b'{"tensors": [["x", "float32", [1000000, 1000000]]]}\n',
    "a shape of many axes": b'{"tensors": [["x", "float32", ' + str([2] * 60).encode() + b"]]}\n",
    "many tensors": b'{"tensors": [' + b",".join([b'["x", "float64", [1000000]]'] * 100) + b"]}\n",
    "a negative side": b'{"tensors": [["x", "float32", [-4]]]}\n',
    "objects": b'{"tensors": [["x", "object", [1]]]}\n12345678',
    "too few bytes": b'{"tensors": [["x", "float32", [4]]]}\n1234',
    "a number of many digits": b'{"tensors": [["x", "float32", [1' + b"0" * 5000 + b"]]]}\n",
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_answer_of_a_process_that_a_file_controls_is_checked(kind, bounded, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}.")
    (tmp_path / "answer").write_bytes(ANSWERS[kind])
    with open(tmp_path / "answer", "rb") as answer:
        assert _read_answer(answer, tmp_path / "weights.pth", 4) is None


def test_a_reader_that_ends_without_an_answer_is_an_error_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02}.")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(UserError, match=r"weights\.pth"):
        read_tensors(tmp_path / "weights.pth")
