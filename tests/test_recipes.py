"""Published recipes build at full size, and take two steps at reduced size on their dataset's own format."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from vitx.cli import main
from vitx.data.encoding import encode_video
from vitx.experiment import load_experiment
from vitx.models.transformer import VideoTransformer
from vitx.run import train

REPRESENTATIVES = ("kinetics400/vivit_b_16x2",)


@pytest.fixture(scope="module")
def table(pytestconfig):
    """The module that writes the table of recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath / "docs")
        import write_recipes

        yield write_recipes


@pytest.fixture(scope="module")
def recipes(table):
    return list(table.find_recipes())


def test_the_table_of_recipes_is_that_of_their_files(table):
    page = table.PAGE.read_text()
    assert table.write_page(page) == page, "run python docs/write_recipes.py"


def test_every_recipe_states_its_commands_and_the_views_of_its_accuracy(recipes, pytestconfig):
    assert len(recipes) >= 6
    for recipe in recipes:
        experiment, name = load_experiment(recipe.file), recipe.file.stem
        assert recipe.views == (experiment.data.views if recipe.views else ""), recipe.path
        commands = re.findall(r"^    (.+)$", recipe.docstring, re.MULTILINE)
        assert commands[0] == f"vitx train {recipe.path} --workdir runs/{name}", recipe.path
        script, *words = commands[1].removeprefix("sbatch ").removesuffix(" \\").split()
        assert (pytestconfig.rootpath / script).is_file() and recipe.path in words, recipe.path
        assert re.search(r"^(Hardware|Follows): ", recipe.docstring, re.MULTILINE), recipe.path


@functools.cache
def shapes_of(model, task, video):
    batch = {"video": jax.ShapeDtypeStruct((1, *video), np.uint8)}
    return jax.eval_shape(functools.partial(task.init, model, batch=batch), jax.random.key(0))


PARAMETERS = {  # millions, as printed
    "kinetics400/vivit_b_16x2": 88.9,
    "kinetics400/vivit_b_16x2_fe": 115.1,
    "kinetics400/vivit_b_16x2_fsa": 117.3,
    "kinetics400/vivit_b_16x2_fdp": 88.9,
    "kinetics400/vivit_b_16x2_avg": 86.7,
}


def test_every_recipe_builds_at_full_size(recipes):
    for recipe in recipes:
        experiment, name = load_experiment(recipe.file), f"{recipe.file.parent.name}/{recipe.file.stem}"
        data, model = experiment.data, experiment.model
        if isinstance(model, VideoTransformer):
            model = model.clone(scan_layers=True)  # traces one block, of the same parameters
        shapes = shapes_of(model, experiment.task, (data.num_frames, *data.image_size, 3))
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
        assert count > 1e6
        if name in PARAMETERS:
            assert abs(count / 1e6 - PARAMETERS[name]) <= 0.1, (name, count)


def write_videos(folder, names, seed=0):
    """Writes videos of moving noise, 20 frames of 48 x 36 pixels."""
    rng = np.random.default_rng(seed)
    for name in names:
        frames = rng.integers(0, 256, (20, 36, 48, 3), np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_video(frames, options={"preset": "ultrafast"}))


def kinetics(folder):
    """Writes train.csv, val.csv and test.csv, and videos named by the downloaders; returns the arguments of `list`."""
    (folder / "annotations").mkdir()
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        rows = [(f"{split}{i:06d}", ("abseiling", "zumba")[i % 2]) for i in range(count)]
        lines = [f"{label},{name},3,13,{split}" for name, label in rows]
        text = "\n".join(["label,youtube_id,time_start,time_end,split", *lines])
        (folder / "annotations" / f"{split}.csv").write_text(text + "\n")
        write_videos(folder / "videos", [f"{split}/{label}/{name}_000003_000013.mp4" for name, label in rows])
    return "kinetics", 2


FORMATS = {"kinetics400": kinetics}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Returns a function that prepares a dataset from its official files, once; it returns the folder and classes."""

    @functools.cache
    def prepare(dataset):
        folder = tmp_path_factory.mktemp(dataset)
        kind, classes = FORMATS[dataset](folder)
        listed = ["list", kind, str(folder / "annotations"), str(folder / "videos"), str(folder / "list.csv")]
        assert main(["data", *listed]) == 0
        ready = [str(folder / "list.csv"), str(folder / "data" / dataset)]
        assert main(["data", "prepare", *ready, "--workers", "1"]) == 0
        return folder, classes

    return prepare


def reduced(experiment, classes):
    """Returns an experiment of the same parts and settings with a tiny model and clip, two steps and four clips."""
    model, frames = experiment.model, 4
    if isinstance(model, VideoTransformer):
        sizes = {"hidden_size": 24, "num_layers": 1, "num_heads": 4, "mlp_dim": 24}
        if getattr(model, "num_temporal_layers", 0):
            sizes["num_temporal_layers"] = 1
        frames = 2 * model.tubelet_size[0]
        model = dataclasses.replace(model, num_frames=frames, image_size=32, num_classes=classes, **sizes)
    return experiment.override(
        {
            "model": model,
            "data.num_frames": frames,
            "data.image_size": (32, 32),
            "data.batch_size": 4,
            "data.eval_batch_size": 2,
            "training.steps": 2,
            "training.log_every": 1,
            "training.evaluate_every": 0,
            "training.initialise_from": None,
        }
    )


def take_two_steps(name, root, prepared, workdir, monkeypatch):
    folder, classes = prepared(name.split("/")[0])
    monkeypatch.chdir(folder)  # where the recipe's own path of the data leads to the prepared videos
    experiment = load_experiment(root / "experiments" / f"{name}.py")
    run = train(reduced(experiment, classes), workdir)
    losses = [row["loss"] for row in run.metrics() if row["split"] == "train"]
    assert len(losses) == 2 and np.isfinite(losses).all()
    (test,) = (row for row in run.metrics() if row["split"] == "test")
    assert test["views"] == experiment.data.views and test["examples"] == 2


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_recipe_of_every_dataset_takes_two_steps_on_its_own_format(
    name, pytestconfig, prepared, tmp_path, monkeypatch
):
    take_two_steps(name, pytestconfig.rootpath, prepared, tmp_path / "run", monkeypatch)
