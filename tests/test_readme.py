"""README and docs are true: their code runs, their commands parse, their links lead somewhere."""

import fnmatch
import importlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitx
from vitx.cli import _parser
from vitx.cli_settings import parse_settings, take_settings
from vitx.configuration import _PARTS
from vitx.data.encoding import encode_video
from vitx.interop.formats import FORMATS
from vitx.layers.layouts import LAYOUTS
from vitx.models import VARIANTS
from vitx.run import train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
STEPS = {"training.steps": 2, "training.evaluate_every": 0, "training.checkpoint_every": 2}


@pytest.fixture(scope="module")
def sandbox(small_file, tmp_path_factory):
    """A folder with what the pages speak of: experiment files, videos, a list, weights and a run."""
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "experiments").mkdir()
    # The quickstart under its own name, but so small that it trains in seconds.
    changes = {"model.num_classes": 8, "task.label": "motion", **STEPS}
    (folder / "experiments" / "quickstart.py").write_text(
        f"from vitx import load_experiment\nexperiment = load_experiment({small_file!r}).override({changes!r})\n"
    )
    shutil.copy(ROOT / "experiments" / "folder.py", folder / "experiments")
    rows = ["path,verb,noun"]
    for label, brightness in (("fall", 40), ("walk", 200)):
        (folder / "videos" / label).mkdir(parents=True)
        for i in range(6):
            noise = np.random.default_rng(i).integers(brightness, brightness + 50, (9, 24, 24, 3), np.uint8)
            (folder / "videos" / label / f"{i}.mp4").write_bytes(encode_video(noise))
            rows.append(f"videos/{label}/{i}.mp4,{label},{('adult', 'child')[i % 2]}")
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    shutil.copy(folder / "videos" / "fall" / "0.mp4", folder / "clip.mp4")
    shutil.copytree(ROOT / "tests" / "interop" / "golden" / "vivit", folder / "vivit-b-16x2-kinetics400")
    train(vitx.load_experiment(folder / "experiments" / "quickstart.py"), folder / "runs" / "quickstart")
    return folder


@pytest.fixture(autouse=True)
def _separate_registries(monkeypatch):
    """Parts that a page adds are gone after its test: other tests list all models."""
    for registry in (VARIANTS, LAYOUTS, FORMATS, _PARTS):
        assert len(registry)  # imports the modules that define parts, so that the copy is complete
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of the indented lines of a page that call vitx."""
    text = page.read_text().replace("\\\n", " ")  # a command may have several lines
    lines = re.findall(r"^    (vitx .*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("name", [name for name, page in zip(NAMES, PAGES, strict=True) if python_blocks(page)])
def test_python_blocks_run_in_order(name, sandbox, monkeypatch, capsys):
    monkeypatch.chdir(sandbox)
    names = {"__name__": __name__}
    for block in python_blocks(ROOT / name):
        exec(compile(block, name, "exec"), names)
    if name.endswith("models.md"):
        assert names["logits"].shape == (1, 8) and names["state"][1].frames == 12
    if name.endswith("evaluation.md"):
        assert names["metrics"]["views"] == "1x1" and 0 <= names["metrics"]["motion/top1"] <= 100


def test_the_dataset_class_of_the_docs_trains(sandbox, small, tmp_path, monkeypatch):
    monkeypatch.chdir(sandbox)
    names = {"__name__": __name__}
    for block in python_blocks(ROOT / "docs" / "datasets.md"):
        exec(compile(block, "datasets.md", "exec"), names)
    changes = {"data.dataset": names["Falls"](), "model.num_classes": 2, **STEPS}
    run = train(small.override(changes), tmp_path / "run")
    assert (tmp_path / "run" / "report.md").exists()
    assert next(iter(run.predict([sandbox / "clip.mp4"]).values())).keys() == {"action"}


def test_the_parts_of_the_page_on_extending_train_together(sandbox, small, tmp_path, monkeypatch):
    """Their file is the page: nothing of vitx is changed, and the run's folder names them."""
    monkeypatch.chdir(sandbox)
    names = {"__name__": __name__}
    for block in python_blocks(ROOT / "docs" / "extending.md"):
        exec(compile(block, "extending.md", "exec"), names)
    changes = {
        "model": vitx.create_model("colour_classifier", num_classes=8),
        "data.dataset": names["EverySecond"](small.data.dataset),
        "task": names["PolyLoss"](label="motion"),
        "optimizer": names["SignSGD"](),
        **STEPS,
    }
    run = train(small.override(changes), tmp_path / "run")
    loaded = vitx.load_run(tmp_path / "run").experiment
    assert [type(loaded.model), type(loaded.task), type(loaded.optimizer)] == [
        names[name] for name in ("ColourClassifier", "PolyLoss", "SignSGD")
    ]
    full = len(small.data.dataset.open("test"))
    assert run.evaluate("test")["examples"] == full // 2


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^- `([\w.]+)`$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {f"vitx.{name}" for name in vitx.__all__} - {"vitx.__version__"} <= set(listed)
    assert len(listed) == len(set(listed))
    for path in listed:
        module, _, attribute = path.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), path


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse_and_settings_exist(name):
    for words in commands(ROOT / name):
        if {"--help", "--version"} & set(words):
            continue
        others, settings = take_settings(words)
        options, parts = _parser().parse_known_args(others)
        if words[0] == "train":
            file = ROOT / (options.experiment or "none.py")
            experiment = vitx.load_experiment(file if file.exists() else ROOT / "experiments" / "quickstart.py")
            experiment.override(parse_settings([*parts, *settings]))


@pytest.mark.parametrize("name", NAMES)
def test_commands_in_sentences_exist(name):
    choices = _parser()._subparsers._group_actions[0].choices
    for words in map(str.split, re.findall(r"`vitx ([a-z][^`]*)`", (ROOT / name).read_text())):
        assert words[0] in choices, words
        if words[0] == "data" and len(words) > 1:
            assert words[1] in choices["data"]._subparsers._group_actions[0].choices, words


def anchors(page: Path) -> set[str]:
    """Returns what a link may name after #: the page's headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text()):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            page = (ROOT / name).parent / file if file else ROOT / name
            assert page.exists(), target
            assert not anchor or anchor in anchors(page), target


def test_the_readme_begins_with_the_two_promised_commands():
    readme = (ROOT / "README.md").read_text().splitlines()
    indented = [line.strip() for line in readme if line.startswith("    ")]
    assert indented[:2] == [
        "pip install -e . && vitx train experiments/quickstart.py --workdir runs/quickstart",
        "pip install -e '.[test]' && pytest",
    ]
    assert len(readme) <= 130


def test_the_layout_in_the_readme_is_the_trees():
    layout = (ROOT / "README.md").read_text().split("## Repository")[1].split("Python 3")[0]
    inside = set(re.findall(r"(?:^      |  )(\w+(?:\.py|/))  ", layout.split("experiments/")[0], re.MULTILINE))
    folders = {f"{path.name}/" for path in (ROOT / "vitx").iterdir() if (path / "__init__.py").exists()}
    assert folders <= inside
    assert all((ROOT / "vitx" / name).exists() for name in inside), inside
    assert all((ROOT / name).is_dir() for name in re.findall(r"^    (\w+)/", layout, re.MULTILINE))


def test_every_page_is_listed():
    listed = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= set(listed)


def test_the_tables_of_models_cover_all_names():
    text = (ROOT / "docs" / "models.md").read_text().split("## Every name")[0]  # the index has them all
    patterns = [
        name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    ]
    uncovered = [name for name in vitx.list_models() if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    assert not uncovered
    assert all(fnmatch.filter(vitx.list_models(), pattern) for pattern in patterns)


@pytest.mark.slow
def test_the_counts_in_the_readme_are_those_of_vitx_cost():
    """Last run: 2026-11-28: 13 rows."""
    rows = re.findall(
        r"^\|[^|]*\| `(\w+)` \| (\d+) x (\d+)² \| ([\d.]+) \| ([\d.,]+) \|",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) >= 13
    for name, frames, size, params, gmacs in rows:
        cost = vitx.count_cost(vitx.create_model(name), (int(frames), int(size), int(size), 3))
        assert f"{cost.params / 1e6:.1f}" == params and f"{cost.macs / 1e9:,.1f}" == gmacs, name


def test_the_picture_of_layouts_shows_what_they_attend_to(pytestconfig, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "docs")
    import draw_layouts

    masks = {name: draw_layouts.attended(name) for name in draw_layouts.PANELS}
    t, h, w = draw_layouts.QUERY
    assert masks["joint"].all() and masks["space"][t].all() and masks["space"].sum() == 16
    assert masks["time"][:, h, w].all() and masks["time"].sum() == 4
    assert (masks["time_and_space"] == (masks["time"] | masks["space"])).all()
    draw_layouts.draw(tmp_path / "layouts.png")
    assert (tmp_path / "layouts.png").stat().st_size > 10_000
