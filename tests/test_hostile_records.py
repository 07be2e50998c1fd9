"""Damaged records, lists and settings: one message that names file, line or key, before any work is done."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from vitx import checkpoints
from vitx.checkpoints import Checkpoints, DamagedCheckpointError
from vitx.cli import main
from vitx.configuration import Words, from_dict, override
from vitx.data.lists import read_list
from vitx.errors import RunError, UserError
from vitx.experiment import save_config
from vitx.locks import lock_folder
from vitx.run import Run, train
from vitx.run_folder import check_record
from vitx.training.logs import MetricsLog, read_metrics
from vitx.training.progress import RECORDED, Progress

LISTS = {
    "NUL in a path": ("list.csv", b"path,class\na.mp4,x\nb\0.mp4,x\n", "line 3.*NUL"),
    "NUL in a class": ("list.csv", b"path,class\na.mp4,x\0y\n", "line 2.*NUL"),
    "NUL in a header": ("list.csv", b"path,cl\0ass\na.mp4,x\n", "line 2.*NUL"),
    "UTF-16 without a mark": ("list.csv", "path,class\na.mp4,x\n".encode("utf-16-le"), "NUL"),
    "NUL in JSON": ("list.jsonl", rb'{"path": "a\u0000.mp4"}', "line 1.*NUL"),
    "NUL among several classes": ("list.jsonl", rb'{"path": "a", "class": ["x", "y\u0000"]}', "line 1.*NUL"),
    "NUL in a key": ("list.jsonl", rb'{"path": "a", "\u0000": 1}', "line 1.*NUL"),
    "half a pair in a path": ("list.jsonl", b'{"path": "b"}\n' + rb'{"path": "a\ud800.mp4"}', "line 2.*UTF-8"),
    "half a pair in a class": ("list.jsonl", rb'{"path": "a", "class": "\udfff"}', "line 1.*UTF-8"),
    "half a pair in a group": ("list.jsonl", rb'{"path": "a", "group": {"x": ["\ud83d"]}}', "line 1.*UTF-8"),
    "Latin-1 in a class": ("list.csv", b"path,class\na.mp4,x\na.mp4,\xe9\n", "line 3.*UTF-8"),
    "a quote that is not closed": ("list.csv", b'path,class\na.mp4,x\n"b.mp4,x\nc.mp4,x\n', "line 4"),
    "text behind a quote": ("list.csv", b'path,class\na.mp4,x\n"b.mp4"x,x\n', "line 3"),
    "a cell without end": ("list.csv", b"path,class\na.mp4,x\n" + b"b" * 10**6 + b",x\n", "line 3"),
    "a key twice": ("list.jsonl", b'{"path": "a", "class": "x", "class": "y"}\n', "line 1.*class"),
    "a nested row": ("list.jsonl", b"[" * 10**6, "line 1"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_character_that_no_text_has_is_named_with_its_line(kind, bounded, tmp_path):
    name, content, message = LISTS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}, {message}" if message.startswith("line") else message):
        list(read_list(tmp_path / name, ("path", "class"), "path"))


def test_paths_of_undecoded_bytes_are_read(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,class\n\xe9.mp4,x\n")
    ((_, fields),) = read_list(tmp_path / "list.csv", ("path", "class"), "path")
    assert fields["path"] == "\udce9.mp4"


ROWS = {
    "a list": (b"[1]", "line 2"),
    "a number": (b"3", "line 2"),
    "null": (b"null", "line 2"),
    "a text": (b'"step"', "line 2"),
    "no JSON": (b"{step}", "line 2"),
    "a nested list": (b"[" * 10**6, "line 2"),
    "no UTF-8": (b'{"step": 1, "split": "\xff"}', "0xff"),
    "no step": (b'{"split": "test"}', "row 2.*'step'"),
    "a step that is a text": (b'{"step": "1", "split": "test"}', "row 2.*'step'"),
    "a step that is true": (b'{"step": true, "split": "test"}', "row 2.*'step'"),
    "no split": (b'{"step": 1}', "row 2.*'split'"),
    "a split that is a list": (b'{"step": 1, "split": []}', "row 2.*'split'"),
    "a step of 400 digits": (b'{"step": 1' + b"0" * 400 + b', "split": "test"}', "row 2.*'step'"),
    "a loss of 400 digits": (b'{"step": 1, "split": "test", "loss": 1' + b"0" * 400 + b"}", "row 2.*'loss'"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_that_is_none_is_found_before_a_run_is_used(kind, bounded, tmp_path):
    row, message = ROWS[kind]
    good = b'{"step": 1, "split": "train", "loss": 1.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + row + b"\n" + good)
    with pytest.raises(UserError, match=rf"metrics\.jsonl.*{message}"):
        read_metrics(tmp_path)


def nested(depth: int, kind: type) -> object:
    data: object = 1
    for _ in range(depth):
        data = [data] if kind is list else {"type": "Experiment", "model": data}
    return data


@pytest.mark.parametrize("depth", [33, 100, 400, 900, 10**5])
@pytest.mark.parametrize("kind", [list, dict])
def test_nested_settings_are_refused(kind, depth, bounded):
    with pytest.raises(UserError, match=r"run/config\.json is nested deeper than 32"):
        from_dict(nested(depth, kind), "run/config.json")


@pytest.mark.parametrize("depth", [30, 200, 10**5])
@pytest.mark.parametrize("opening", ["[", '{"type":'])
def test_a_run_of_nested_settings_is_one_message(opening, depth, bounded, tmp_path, capsys):
    closing = {"[": "]"}.get(opening, "}")
    data = f'{{"format": 1, "experiment": {opening * depth}1{closing * depth}}}'
    (tmp_path / "config.json").write_text(data)
    assert main(["evaluate", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("vitx: ") and err.count("\n") == 1 and "config.json" in err and len(err) < 1000


@pytest.mark.parametrize("word", ["(" * 10**4, "-" * 10**5 + "1", "[" * 150 + "]" * 150, "9" * 5000])
def test_nested_words_of_a_command_line_are_refused(word, bounded, small):
    with pytest.raises(UserError, match=r"data\.image_size"):
        override(small, {"data.image_size": Words([word])})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as store:
        store.save(1, {"variables": {"x": jnp.arange(4.0)}}, {"best": None})
        store.wait()
    return folder


FIELDS = {
    "no digests": ({"digests": ...}, "digests"),
    "digests that are a list": ({"digests": []}, "digests"),
    "no step": ({"step": ...}, "step"),
    "a step that is a text": ({"step": "1"}, "step"),
    "another step": ({"step": 2}, "step 2"),
    "no best": ({"best": ...}, "best"),
    "a best that is a number": ({"best": 3}, "best"),
    "a best without a step": ({"best": {"metric": 1.0}}, "step"),
    "a best whose step is none": ({"best": {"step": None}}, "step"),
    "a best whose step is a list": ({"best": {"step": [1]}}, "step"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_record_signed_again_without_a_key_is_refused(kind, bounded, saved, tmp_path):
    changes, message = FIELDS[kind]
    shutil.copytree(saved, tmp_path / "run")
    (path,) = (path for path in (tmp_path / "run" / "1" / "record").iterdir() if path.name == "metadata")
    record = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not ...}
    del record["sha256"]
    path.write_text(json.dumps(record | {"sha256": checkpoints._sha256(record)}))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"variables": {"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}}
    refused = pytest.raises(DamagedCheckpointError, match=rf"run/1.*{message}")
    with Checkpoints(tmp_path / "run", read_only=True) as store, refused:
        store.restore(1, abstract)


@pytest.mark.parametrize("names", [..., None, [], "classes", {"class": "walk"}, {"class": [1]}, {"class": {"a": 1}}])
def test_a_record_without_names_of_classes_is_refused(names, tmp_path):
    record = {"step": 1} | ({} if names is ... else {"label_names": names})
    with pytest.raises(UserError, match=r"checkpoints.*label_names"):
        check_record(tmp_path, record)


@pytest.mark.parametrize("name", RECORDED)
def test_progress_of_another_type_is_refused(name):
    Progress.from_record({}, None)
    with pytest.raises(UserError, match=name):
        Progress.from_record({name: "x"}, None)


@pytest.mark.parametrize("error", [None, FileNotFoundError("x"), ValueError("x"), UserError("x"), RunError("x")])
def test_a_folder_that_is_removed_under_a_run_is_named(error, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunError, match=r"run or its \.lock was removed"), lock_folder(folder, busy=""):
        shutil.rmtree(folder)
        if error is not None:
            raise error


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_is_noticed_before_a_checkpoint(again, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunError, match="run"), lock_folder(folder, busy="") as lock:
        lock.check()
        shutil.rmtree(folder)
        if again:  # as a library creates the folder of the next checkpoint
            (folder / "checkpoints").mkdir(parents=True)
        with pytest.raises(RunError, match="run"):
            lock.check()


def test_a_folder_that_is_removed_while_it_trains_is_one_message(small_file, tmp_path, monkeypatch, capsys):
    folder, write = tmp_path / "run", MetricsLog.write

    def remove(self, *row):
        write(self, *row)
        shutil.rmtree(folder)

    monkeypatch.setattr(MetricsLog, "write", remove)
    assert main(["train", small_file, "--workdir", str(folder)]) == 1
    message = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vitx: ")]
    assert len(message) == 1 and f"{folder} or its .lock was removed" in message[0]


def test_a_row_that_is_none_stops_an_evaluation_before_it_begins(small, tmp_path, monkeypatch, capsys):
    save_config(small, tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text("[1]\n{}\n")
    run = Run(small, tmp_path, 1, {}, {}, jax.NamedSharding(jax.make_mesh((1,), ("data",)), jax.P()))
    monkeypatch.setattr("vitx.run_evaluation.predict_split", lambda *_: pytest.fail("the work began"))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        run.evaluate()
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1"):
        train(small, tmp_path)


def test_a_folder_that_stays_is_released(tmp_path):
    for _ in range(2):
        with lock_folder(tmp_path, busy="") as lock:
            lock.check()
