"""Files are written whole, beside their targets and nowhere else; what keeps them from it is one message."""

import contextlib
import gc
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.test_report import write as write_report
from vitx import storage
from vitx.cli import main
from vitx.errors import UserError
from vitx.evaluation.report import Picture, Section
from vitx.interop.tensors import read_safetensors, write_safetensors
from vitx.rows import RowsWriter
from vitx.run import load_run, train
from vitx.training.logs import Events

GOLDEN = Path(__file__).parent / "interop" / "golden"
pytestmark = pytest.mark.usefixtures("bounded")  # in memory and time, whatever a file claims


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run of one step."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(small.override({"training.steps": 1, "training.evaluate_every": 1}), folder)
    return folder


@contextlib.contextmanager
def disk(folder: Path, options: str):
    """A small disk, or one that is read only."""
    folder.mkdir(exist_ok=True)
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]).returncode:
        pytest.skip("this machine does not let us mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


WRITTEN = (
    *("metrics.jsonl", "report.md", "curves.png", "config.json", "overview.md", "initialised_from.json", ".lock"),
    *("predictions_test.npz", "test_motion_confusion.png", "test_appearance_confusion.png"),
)
# names that a temporary file of another one could have, so that somebody could put a link in its place
GUESSES = ("{}.tmp", ".{}.tmp", "{}~", "{}.part", "tmp", "{}.draft", ".tmp-{}")


def plant_links(folder: Path, names, thesis: Path) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(thesis)


@pytest.fixture
def thesis(tmp_path):
    """A file beside the run, the target of planted links; it must stay as it is, and alone in its folder."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "thesis.txt"
    path.write_text("years of work")
    yield path
    assert path.read_text() == "years of work" and os.listdir(path.parent) == ["thesis.txt"]


def test_evaluate_follows_no_link_in_a_run(trained, thesis, tmp_path):
    """Ten names that it writes, and seven names that a temporary file of each could have."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    names = [name for name in WRITTEN if name not in ("config.json", "metrics.jsonl", ".lock", "report.md")]
    names += [guess.format(name) for name in WRITTEN for guess in GUESSES]
    names += [f"{Path(name).stem}.tmp" for name in WRITTEN]
    plant_links(run, names, thesis)
    load_run(run).evaluate("test")
    written = [name for name in os.listdir(run) if (run / name).is_file() and not (run / name).is_symlink()]
    assert {"curves.png", "predictions_test.npz", "report.md", "metrics.jsonl"} <= set(written)


@pytest.mark.parametrize("label", ["x/../../home/thesis", "../home/thesis", "/home/thesis", "x/y", "..", "ä b"])
def test_the_name_of_a_label_leads_no_picture_out_of_a_run(label, thesis, tmp_path):
    (tmp_path / "run" / "test_confusion_x").mkdir(parents=True)
    picture = Picture(f"confusion_{label}.png", "confusion", b"a picture")
    write_report(tmp_path / "run", "test", "text", sections=[Section(label, [picture])])
    assert len(list((tmp_path / "run").glob("test_confusion_*.png"))) == 1
    assert sorted(os.listdir(tmp_path)) == ["home", "run"]


def test_a_lock_that_is_a_link_is_refused(trained, thesis, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    plant_links(run, [".lock"], thesis)
    with pytest.raises(UserError, match=r"\.lock|run"):
        load_run(run).evaluate("test")


WRITERS = {
    "bytes": lambda path: storage.write_bytes(path, b"new"),
    "text": lambda path: storage.write_text(path, "new"),
    "json": lambda path: storage.write_json(path, {"new": 1}),
    "tensors": lambda path: write_safetensors({"x": np.ones(3, np.float32)}, path, {}),
    "rows": lambda path: RowsWriter(path).close(),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writers_replace_links_and_never_follow_them(writer, thesis, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "x.safetensors"
    names = [guess.format(target.name) for guess in GUESSES] + ["x.tmp"]
    plant_links(folder, names if writer == "rows" else [*names, target.name], thesis)
    if writer == "rows":
        target.write_text("")
    WRITERS[writer](target)
    assert target.is_file() and not target.is_symlink()
    assert sorted(os.listdir(folder)) == sorted([*names, target.name])  # no temporary file is left


def test_a_failure_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    write_safetensors({"x": np.zeros(2, np.float32)}, path, {})
    monkeypatch.setattr("safetensors.numpy.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_safetensors({"x": np.ones(2, np.float32)}, path, {})
    np.testing.assert_array_equal(read_safetensors(path)["x"], 0)
    assert os.listdir(tmp_path) == [path.name]


def test_a_new_event_file_has_a_name_that_nobody_can_guess(tmp_path):
    names = set()
    for _ in range(2):
        Events(tmp_path, []).close()
        names |= {path.name.rpartition(".")[2] for path in tmp_path.iterdir()}
    assert len(names) == 2 and all(len(name) == 16 for name in names)


@pytest.mark.parametrize("destination", ["new.safetensors", "new"])
@pytest.mark.parametrize(("options", "message"), [("ro", "may not be written"), ("size=8k", "disk is full")])
def test_convert_to_a_disk_that_takes_nothing_is_one_message(destination, options, message, tmp_path, capsys):
    with disk(tmp_path / "disk", options) as folder:
        assert main(["convert", str(GOLDEN / "vivit"), str(folder / destination)]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("vitx: ") and message in last and str(folder) in last
        assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "words",
    [
        ["cost", "cnn_small", "--plot", "{}/plot.png"],
        ["data", "check", "{}/..", "--sheet", "{}/sheet.png"],
        ["convert", str(GOLDEN / "vivit"), "{}/missing/new.safetensors"],
    ],
)
def test_a_folder_that_may_not_be_written_is_found_before_the_work(words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vitx.analysis.growth.count_growth", lambda *_: pytest.fail("worked first"))
    monkeypatch.setattr("vitx.data.check.check", lambda *_, **__: pytest.fail("worked first"))
    with disk(tmp_path / "disk", "ro") as folder:
        assert main([word.format(folder) for word in words]) == 2
        assert capsys.readouterr().err.count("vitx: ") == 1


# tensorboardX 2.6 (2026-11) leaves its file open where closing fails
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_events_on_a_full_disk_raise_and_neither_hang_nor_print(tmp_path, capfd):
    with disk(tmp_path / "disk", "size=20k") as folder:
        events = Events(folder, [])
        row = {"split": "train"} | {f"metric_{i}": 1.0 for i in range(50)}
        with pytest.raises(UserError, match="disk is full"):
            for step in range(2000):
                events.add({**row, "step": step})
        with pytest.raises(UserError, match="disk is full"):
            events.close()
    gc.collect()  # an open file would be written once more
    assert capfd.readouterr().err == ""


def test_no_module_writes_by_a_path_of_its_own(pytestconfig):
    """Everything that is written goes through `storage`; what is left writes into a draft, memory or a device."""
    pattern = re.compile(
        r"""\.write_(?:text|bytes)\(|open\([^)]*["'](?:w|a|x)b?["']|\.savefig\(|save_file\(|np\.savez?"""
    )
    through_storage = re.compile(r"storage\.write_|draft|\(file\b|file,$|BytesIO|/proc/self|container|target")
    found = [
        f"{path.relative_to(pytestconfig.rootpath)}: {line.strip()}"
        for path in (pytestconfig.rootpath / "vitx").rglob("*.py")
        for line in path.read_text().splitlines()
        if pattern.search(line) and not through_storage.search(line) and path.name != "storage.py"
    ]
    assert found == ["vitx/evaluation/examples.py: np.savez_compressed("]  # into memory
