"""Names that would control a terminal: of classes, files, labels, arrays, settings. They are printed as escapes."""

import io
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tqdm.auto

import vitx
from tests.evaluation.test_report import write as write_report
from vitx import strict_json
from vitx.ablations import tables
from vitx.cli import main
from vitx.console import escape, print_message, progress_bar
from vitx.data.encoding import encode_video
from vitx.evaluation.report import Section, table
from vitx.interop.own import save_own

# colours, C1's "clear the screen", a title, DEL, bell, overrides of the direction of writing, and every line break
NAME = "a\x1b[31m\x9b2J\x1b]0;t\x07\x7f\u202eb\u2066c\nforged\r\x0b\x0c\x1c\x85\u2028\u2029forged"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
ATTEMPTS = ("\x1b[2J", "\x9b31m", "\x07", "\x08\x08ok", "\rvitx: fine", "\x7f", "\u202etxt", "\u2066", "\x0e", "\ud800")
ATTEMPTS += ("\u2028", "\x85", "\x00", "\U000e0041", "\u200f")

pytestmark = pytest.mark.usefixtures("bounded")  # in memory and time, whatever a file claims


def assert_escaped(text: str) -> None:
    assert not CONTROLS.search(text), CONTROLS.findall(text)
    assert re.search(r"\\x1b\[31m.*\\u202e", text)
    assert not [line for line in text.splitlines() if line.lstrip(" -|").startswith("forged")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos whose class and files have hostile names, one that cannot be read among them."""
    folder = tmp_path_factory.mktemp("videos")
    for number, name in enumerate((NAME, "plain")):
        (folder / name).mkdir()
        for i in range(8):
            frames = np.full((4, 32, 32, 3), 10 * (2 * i + number), np.uint8)
            (folder / name / f"{NAME}{i}.mp4").write_bytes(encode_video(frames))
    (folder / "plain" / f"broken{NAME}.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def weights(tmp_path) -> Path:
    model = vitx.create_model("cnn_small", num_classes=2).with_input_shape(4, (32, 32))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape))))
    path, zeros = tmp_path / "own.safetensors", jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    save_own(model, zeros, path, preprocessing=None, labels={"class": (NAME, "b")})
    return path


@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_name_controls_the_terminal(name):
    shown = escape(f"a{name}b", lines=True)
    assert not CONTROLS.search(shown) and "\n" not in shown
    assert shown.isprintable() and shown.startswith("a") and shown.endswith("b")


def test_names_of_any_script_stay_as_they_are():
    for name in ("Übung", "می‌خواهم", "👨‍👩‍👧", "跑步", "a\\b", "कक्षा"):
        assert escape(name) == name


COMMANDS = {
    "a folder of classes": lambda folder, tmp: ["data", "check", folder],
    "a video that is missing": lambda folder, tmp: ["predict", folder, f"{NAME}.mp4"],
    "an experiment that is missing": lambda folder, tmp: ["train", f"{NAME}.py", "--workdir", tmp],
    "a file that is no experiment": lambda folder, tmp: ["train", f"{NAME}.txt", "--workdir", tmp],
    "a command": lambda folder, tmp: [f"{NAME}"],
    "an option": lambda folder, tmp: ["models", f"--{NAME}"],
    "a pattern": lambda folder, tmp: ["models", NAME],
    "a setting": lambda folder, tmp: ["train", experiment(tmp), "--workdir", tmp / "x", f"--data.{NAME}", "1"],
    "a value": lambda folder, tmp: ["train", experiment(tmp), "--workdir", tmp / "x", "--data.temporal", NAME],
    "a run that is missing": lambda folder, tmp: ["evaluate", tmp / NAME],
    "a type in config.json": lambda folder, tmp: ["evaluate", config(tmp, {"type": NAME})],
    "a setting in config.json": lambda folder, tmp: ["evaluate", config(tmp, {"type": "Experiment", NAME: 1})],
    "the format of config.json": lambda folder, tmp: ["evaluate", config(tmp, {}, form=NAME)],
    "a cell of a list": lambda folder, tmp: ["data", "check", csv(tmp, f'path,class\n"{NAME}.mp4","{NAME}"\n')],
    "a line of a list": lambda folder, tmp: ["data", "check", csv(tmp, f'path,class\na.mp4,b,"{NAME}"\n', NAME)],
    "a message of an experiment": lambda folder, tmp: ["train", experiment(tmp, f"int({NAME!r})"), "--workdir", tmp],
    "a format of annotations": lambda folder, tmp: ["data", "list", NAME, tmp, tmp, tmp / "list.csv"],
    "the names of arrays": lambda folder, tmp: ["predict", arrays(tmp), "--model", "cnn_small", video(folder)],
}  # fmt: skip


def experiment(folder: Path, more: str = "") -> Path:
    path = folder / "experiment.py"
    file = Path(__file__).parents[1] / "experiments" / "folder.py"
    path.write_text(
        f"{more}\nfrom vitx.experiment import load_experiment\nexperiment = load_experiment({str(file)!r})\n"
    )
    return path


def config(folder: Path, data: dict, form: object = 1) -> Path:
    (folder / "config.json").write_text(json.dumps({"format": form, "experiment": data}))
    return folder


def csv(folder: Path, text: str, name: str = "list") -> Path:
    (folder / f"{name}.csv").write_text(text)
    return folder / f"{name}.csv"


def arrays(folder: Path) -> Path:
    safetensors.numpy.save_file({NAME: np.zeros(3, np.float32)}, folder / f"{NAME}.safetensors")
    return folder / f"{NAME}.safetensors"


def video(folder: Path) -> Path:
    return next((folder / "plain").glob("a*"))


@pytest.mark.parametrize("what", COMMANDS)
def test_what_a_command_prints_is_escaped(what, folder, tmp_path, capsys):
    assert main([str(word) for word in COMMANDS[what](folder, tmp_path)]) in (1, 2)
    out, err = capsys.readouterr()
    assert_escaped(out + err)


def test_a_traceback_of_debug_is_escaped(tmp_path, capsys):
    words = ["train", experiment(tmp_path, f"int({NAME!r})"), "--workdir", tmp_path / NAME, "--debug"]
    assert main(list(map(str, words))) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and not CONTROLS.search(err)


def test_the_list_of_settings_is_escaped(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", str(experiment(tmp_path)), "--help", "--data.dataset.path", NAME])
    assert stop.value.code == 0
    assert not CONTROLS.search(capsys.readouterr().out)


def test_classes_and_files_of_a_prediction_are_escaped(weights, folder, capsys):
    (broken,) = (folder / "plain").glob("broken*")
    assert main(["predict", str(weights), str(video(folder)), str(broken)]) == 1
    out, err = capsys.readouterr()
    assert_escaped(out)
    assert_escaped(err)


def test_json_has_the_exact_names_without_control_characters(weights, folder, capsys):
    assert main(["predict", str(weights), str(video(folder)), "--json"]) == 0
    out = capsys.readouterr().out
    assert not CONTROLS.search(out)
    (answer,) = json.loads(out).values()
    assert set(answer["class"]) == {NAME, "b"}
    assert json.loads(strict_json.dumps(ATTEMPTS)) == list(ATTEMPTS)
    assert not CONTROLS.search(strict_json.dumps(ATTEMPTS))


def test_messages_and_progress_bars_are_escaped(monkeypatch, capsys):
    print_message(f"a video: {NAME}", "another")
    assert_escaped(capsys.readouterr().err)
    shown = io.StringIO()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(tqdm.auto.tqdm, "write", None)
    list(progress_bar([1], desc=NAME, unit=NAME, file=shown, ascii=True))
    assert "\x1b[31m" not in shown.getvalue() and r"\x1b[31m" in shown.getvalue() and "\u202e" not in shown.getvalue()


def test_reports_are_escaped(tmp_path):
    section = Section(NAME, [f"text {NAME}", table((NAME, "videos"), [(f"a\n{NAME}|b", 3)])])
    metrics = {NAME: 1.0}
    text = write_report(
        tmp_path, "test", NAME, title=NAME, facts=[NAME], sections=[section], metrics=metrics, checkpoint=NAME
    )
    assert_escaped(text)
    assert r"| a\na\x1b[31m" in text


@pytest.mark.parametrize("kind", tables.FORMATS)
def test_tables_of_an_ablation_are_escaped(kind, tmp_path):
    row = tables.TableRow(NAME, (0,), {NAME: (51.2, None)}, {1: NAME})
    tables.write_table(tables.Table({NAME: NAME}, (NAME,), (row,), ()), tmp_path)
    text = (tmp_path / f"table.{kind}").read_text()
    assert not CONTROLS.search(text)
    if kind == "json":
        assert json.loads(text)["rows"][0]["row"] == NAME
    elif kind == "tex":
        assert r"\textbackslash{}x1b[31m" in text
    else:
        assert r"\x1b[31m" in text


@pytest.mark.slow  # trains
def test_a_run_on_hostile_classes_prints_and_writes_escapes(folder, tmp_path, capsys):
    from tests.test_cli_runs import EXPERIMENT

    experiments = Path(__file__).parents[1] / "experiments" / "folder.py"
    (tmp_path / "exp.py").write_text(EXPERIMENT.format(folder=str(experiments)))
    run = tmp_path / "run"
    words = ["--data.dataset.path", folder, "--workdir", run, "--training.steps", 1]
    assert main(list(map(str, ["train", tmp_path / "exp.py", *words]))) == 0
    assert main(["evaluate", str(run)]) == 0
    out, err = capsys.readouterr()
    assert_escaped(out)
    assert not CONTROLS.search(err)
    # report.md names the classes, overview.md nothing of the data
    assert_escaped((run / "report.md").read_text())
    assert not CONTROLS.search((run / "overview.md").read_text())


def test_only_the_console_prints():
    printing = re.compile(r"(?<![\w.])print\(|sys\.std(out|err)\.write\(|traceback\.print_")
    package = Path(vitx.__file__).parent
    files = {path for path in package.rglob("*.py") if printing.search(path.read_text())}
    assert files == {package / "console.py"}
