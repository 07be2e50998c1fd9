"""Published recipes build at full size, and take two steps at reduced size on their dataset's own format."""

import dataclasses
import functools
import io
import json
import math
import re
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from PIL import Image

from vitx.ablations.description import load_ablation
from vitx.cli import main
from vitx.experiment import load_experiment
from vitx.models.transformer import VideoEncoder
from vitx.run import train

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
REPRESENTATIVES = (
    "kinetics400/vivit_b_16x2",
    "moments_in_time/vivit_l_16x2_fe",
    "epic_kitchens100/vivit_b_16x2_fe",
    "ssv2/timesformer_b_16_divided",
)


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
    assert len(recipes) >= 40
    workdirs = []
    for recipe in recipes:
        experiment = load_once(recipe.file)
        assert recipe.views == (experiment.data.views if recipe.views else ""), recipe.path
        commands = re.findall(r"^    (.+)$", recipe.docstring, re.MULTILINE)
        assert commands[0].startswith(f"vitx train {recipe.path} --workdir runs/"), recipe.path
        workdirs.append(commands[0].split()[-1])
        script, *words = commands[1].removeprefix("sbatch ").split()
        assert (pytestconfig.rootpath / script).is_file() and recipe.path in words, recipe.path
        for part in ("Follows: ", "Hardware: "):
            assert f"\n{part}" in recipe.docstring, (recipe.path, part)
    assert len(set(workdirs)) == len(workdirs)


def test_every_sweep_states_its_question_and_the_published_answer(table, pytestconfig):
    sweeps = list(table.find_sweeps())
    assert len(sweeps) >= 10
    for file, docstring in sweeps:
        assert docstring.splitlines()[0].endswith("?"), file
        assert f"vitx ablate {file.relative_to(pytestconfig.rootpath)} --workdir runs/" in docstring, file
        assert re.search(r"Compare with arXiv:[\d.]+", docstring), file
        assert re.search(r"^Result: (not measured yet|.*\d{4}-\d{2}-\d{2})", docstring, re.MULTILINE), file
        ablation = load_ablation(file)
        experiments = [ablation.base.override(row.changes) for row in ablation.rows]
        assert len({row.name for row in ablation.rows}) == len(set(experiments)) == len(ablation.rows) >= 3, file


@pytest.mark.slow
def test_every_row_of_every_sweep_builds_at_full_size(table):
    """Last run: 2026-11-28: ten files."""
    for file, _ in table.find_sweeps():
        ablation = load_ablation(file)
        for row in ablation.rows:
            experiment = ablation.base.override(row.changes)
            model = dataclasses.replace(experiment.model, scan_layers=True)
            video = (experiment.data.num_frames, *experiment.data.image_size, 3)
            assert count_parameters(model, experiment.task.__class__(), video) > 8e7, (file, row.name)


load_once = functools.cache(load_experiment)


@functools.cache
def count_parameters(model, task, video):
    batch = {"video": jax.ShapeDtypeStruct((1, *video), np.uint8)}
    shapes = jax.eval_shape(functools.partial(task.init, model, batch=batch), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


PARAMETERS = {  # millions without the head, from those that are printed or released (400 classes, or 174)
    "kinetics400/vivit_b_16x2": 88.954,
    "kinetics400/vivit_b_16x2_fe": 115.063,
    "kinetics400/vivit_b_16x2_fsa": 117.319,
    "kinetics400/vivit_b_16x2_fdp": 88.952,
    "kinetics400/vivit_b_16x2_avg": 86.696,
    "kinetics400/vivit_l_16x2_fe": 606.828,
    "kinetics400/timesformer_b_16_divided": 121.566,
    "kinetics400/slowfast_r50_8x8": 34.566,
    "kinetics400/csn_r101": 22.214,
    "kinetics400/x3d_m": 3.794,
    "kinetics400/r2plus1d_18": 31.505,
    "kinetics400/videomae_b_16x2": 86.535,
    "kinetics400/videomae_b_16x2_pretrain": 94.211,
}


def check_full_size(recipe):
    experiment, name = load_once(recipe.file), f"{recipe.file.parent.name}/{recipe.file.stem}"
    data, model = experiment.data, experiment.model
    if hasattr(model, "num_classes"):
        # models that differ in heads alone are traced once
        model = dataclasses.replace(model, num_classes=400)
    if isinstance(model, VideoEncoder):
        model = model.clone(scan_layers=True)  # traces one block, of the same parameters
    count = count_parameters(model, experiment.task.__class__(), (data.num_frames, *data.image_size, 3))
    assert count > 1e6, name
    if name in PARAMETERS:
        assert round(count / 1e6, 3) == PARAMETERS[name], (name, count)


def test_a_recipe_of_every_kind_of_model_builds_at_full_size(recipes):
    kinds = {}
    for recipe in recipes:
        model = load_once(recipe.file).model
        kinds.setdefault((type(model), getattr(model, "layouts", None)), recipe)
    assert len(kinds) == 17
    for recipe in kinds.values():
        check_full_size(recipe)


@pytest.mark.slow
def test_every_recipe_builds_at_full_size(recipes):
    """Last run: 2026-11-28: all of them."""
    for recipe in recipes:
        check_full_size(recipe)


def write_videos(folder, names, frames=20, codec="libx264"):
    """Writes videos of noise, 48 x 36 pixels."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with av.open(folder / name, "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 36, "yuv420p"
            for _ in range(frames):
                noise = rng.integers(0, 256, (36, 48, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
            container.mux(stream.encode(None))


def kinetics(folder):
    """Writes train.csv, val.csv and test.csv, and videos named by the downloaders."""
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        rows = [(f"{split}{i:06d}", ("abseiling", "zumba")[i % 2]) for i in range(count)]
        lines = [f"{label},{name},3,13,{split}" for name, label in rows]
        text = "\n".join(["label,youtube_id,time_start,time_end,split", *lines])
        (folder / "annotations" / f"{split}.csv").write_text(text + "\n")
        write_videos(folder / "videos", [f"{split}/{label}/{name}_000003_000013.mp4" for name, label in rows])


def something_something(folder):
    """Writes the lists of templates, and videos in VP9 with numbers for names."""
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        clips = [{"id": str(i), "template": ("Holding [something]", "Pushing [something]")[i % 2]} for i in numbers]
        (folder / "annotations" / f"something-something-v2-{split}.json").write_text(json.dumps(clips))
        write_videos(folder / "videos", [f"{i}.webm" for i in numbers], codec="libvpx-vp9")


def epic_kitchens(folder):
    """Writes segments of two long videos, with the numbers of verbs and nouns."""
    header = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class"
    for split, video, count in (("train", "P01_01", 4), ("validation", "P02_01", 2)):
        rows = [f"{video},00:00:0{i}.00,00:00:0{i}.80,{96 * (i % 2)},{299 * (i % 2)}" for i in range(count)]
        (folder / "annotations" / f"EPIC_100_{split}.csv").write_text("\n".join([header, *rows]) + "\n")
        write_videos(folder / "videos", [f"{video[:3]}/{video}.MP4"], frames=110)


def moments_in_time(folder):
    """Writes folders of classes in the two folders of the splits."""
    for split, count in (("training", 4), ("validation", 2)):
        names = [f"{split}/{('clapping', 'dripping')[i % 2]}/{split}_{i}.mp4" for i in range(count)]
        write_videos(folder / "videos", names)


def ucf101(folder):
    """Writes the lists of the first split and videos named by group."""
    train = [f"{name}/v_{name}_g0{i}_c01.avi {i % 2 + 1}" for i in range(8) for name in [("Archery", "YoYo")[i % 2]]]
    test = [f"{name}/v_{name}_g2{i}_c01.avi" for i, name in enumerate(("Archery", "YoYo"))]
    (folder / "annotations" / "trainlist01.txt").write_text("\n".join(train) + "\n")
    (folder / "annotations" / "testlist01.txt").write_text("\n".join(test) + "\n")
    write_videos(folder / "videos", [line.split()[0] for line in (*train, *test)])


def hmdb51(folder):
    """Writes a list of the first split for each class, and videos in the folders of their classes."""
    classes = ("cartwheel", "wave")
    for name in classes:
        lines = [f"{name}_{i}.avi {2 if i == 4 else 1} " for i in range(5)]
        (folder / "annotations" / f"{name}_test_split1.txt").write_text("\n".join(lines) + "\n")
    write_videos(folder / "videos", [f"{name}/{name}_{i}.avi" for name in classes for i in range(5)])


EPIC_WORDS = ["--labels", "verb", "noun", "--num_classes", "verb=97", "noun=300"]
DATASETS = {  # {folder of recipes: (writer of the official files, format of `list`, words of `prepare`, classes)}
    "kinetics400": (kinetics, "kinetics", [], 2),
    "kinetics600": (kinetics, "kinetics", [], 2),
    "ssv2": (something_something, "something_something_v2", [], 2),
    "epic_kitchens100": (epic_kitchens, "epic_kitchens", EPIC_WORDS, (("verb", 97), ("noun", 300))),
    "moments_in_time": (moments_in_time, None, [], 2),
    "ucf101": (ucf101, "ucf101", [], 2),
    "hmdb51": (hmdb51, "hmdb51", [], 2),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Returns a function that prepares a dataset from its official files, once; it returns the folder and classes."""

    @functools.cache
    def prepare(dataset):
        folder = tmp_path_factory.mktemp(dataset)
        write, kind, words, classes = DATASETS[dataset]
        (folder / "annotations").mkdir()
        write(folder)
        source = folder / "videos"
        if kind is not None:
            source = folder / "list.csv"
            listed = [kind, str(folder / "annotations"), str(folder / "videos"), str(source)]
            assert main(["data", "list", *listed]) == 0
        assert main(["data", "prepare", str(source), str(folder / "ready"), "--workers", "1", *words]) == 0
        return folder, classes

    return prepare


def reduced(experiment, classes):
    """Returns an experiment of the same parts and settings with a tiny model and clip, two steps and four clips."""
    model, frames = experiment.model, 8
    if isinstance(model, VideoEncoder):
        sizes = {"hidden_size": 24, "num_layers": 1, "num_heads": 4, "mlp_dim": 24}
        if getattr(model, "num_temporal_layers", 0):
            sizes["num_temporal_layers"] = 1
        frames = 2 * model.tubelet_size[0]
        if hasattr(model, "decoder_num_layers"):
            sizes |= {f"decoder_{name}": size for name, size in sizes.items()}
        else:
            sizes["num_classes"] = classes
        model = dataclasses.replace(model, num_frames=frames, image_size=32, **sizes)
    else:
        # the reference compiles fastest; the kernels that are fast on a CPU have tests of their own
        sizes = {"width": 8, "depths": (1,) * len(model.depths), "norm_groups": 2, "implementation": "reference"}
        model = dataclasses.replace(model, num_classes=classes, **sizes)
    return experiment.override(
        {
            "model": model,
            "data.num_frames": frames,
            "data.image_size": (32, 32),
            "data.eval_size": experiment.data.eval_size and (48, 48),
            "data.eval_short_side": experiment.data.eval_short_side and 36,
            "data.batch_size": 4,
            "data.eval_batch_size": 2,
            "training.steps": 2,
            "training.log_every": 1,
            "training.evaluate_every": 0,
            "training.precise_bn_batches": min(experiment.training.precise_bn_batches, 1),
            "training.initialise_from": None,
        }
    )


def take_two_steps(name, prepared, tmp_path, monkeypatch):
    folder, classes = prepared(name.split("/")[0])
    experiment = load_once(EXPERIMENTS / f"{name}.py")
    # the recipe's own path of the data leads to the prepared videos
    path = tmp_path / experiment.data.dataset.path
    path.parent.mkdir(parents=True)
    path.symlink_to(folder / "ready")
    monkeypatch.chdir(tmp_path)
    test = check_two_steps(train(reduced(experiment, classes), tmp_path / "run"))
    assert test["views"].split()[0] == experiment.data.views


def check_two_steps(run):
    """Checks that a run took two steps and tested two examples; returns its metrics of the test split."""
    losses = [row["loss"] for row in run.metrics() if row["split"] == "train"]
    assert len(losses) == 2 and np.isfinite(losses).all()
    (test,) = (row for row in run.metrics() if row["split"] == "test")
    assert test["examples"] == 2
    return test


ALL = sorted(
    str(file.relative_to(EXPERIMENTS).with_suffix(""))
    for dataset in DATASETS
    for file in (EXPERIMENTS / dataset).glob("*.py")
    if "Not run here." in file.read_text()
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if name not in REPRESENTATIVES])
def test_every_other_recipe_takes_two_steps_on_its_own_format(name, prepared, tmp_path, monkeypatch):
    take_two_steps(name, prepared, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_a_recipe_of_every_dataset_takes_two_steps_on_its_own_format(name, prepared, tmp_path, monkeypatch):
    take_two_steps(name, prepared, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def moving_mnist(tmp_path_factory):
    """A folder in which TFDS has prepared eight sequences of Moving MNIST, in array_record files."""
    import tensorflow_datasets as tfds

    class MovingMnist(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            # TFDS's own Video is stored like this sequence, but needs TensorFlow to be written
            image = tfds.features.Image(shape=(64, 64, 1), encoding_format="png")
            video = tfds.features.Sequence(image, length=20)
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"image_sequence": video}))

        def _split_generators(self, dl_manager):
            pixels = np.random.default_rng(0).integers(0, 256, (8, 20, 64, 64, 1), np.uint8)
            return {
                "test": ((i, {"image_sequence": list(map(self.to_png, frames))}) for i, frames in enumerate(pixels))
            }

        def _generate_examples(self):
            raise NotImplementedError

        @staticmethod
        def to_png(frame):
            file = io.BytesIO()
            Image.fromarray(frame[..., 0]).save(file, "PNG")
            file.seek(0)
            return file

    folder = tmp_path_factory.mktemp("tfds")
    MovingMnist(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in (EXPERIMENTS / "moving_mnist").glob("*.py")))
def test_recipes_of_moving_mnist_take_two_steps_on_its_own_format(name, moving_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(moving_mnist))
    experiment = load_once(EXPERIMENTS / "moving_mnist" / f"{name}.py")
    changes = {
        "data.dataset.train": "test[:4]",
        "data.dataset.validation": "test[4:6]",
        "data.dataset.test": "test[6:]",
        "data.num_frames": 5,
        "data.batch_size": 4,
        "data.eval_batch_size": 2,
        "model": dataclasses.replace(experiment.model, widths=(4,) * len(experiment.model.widths), horizon=2),
        "training.steps": 2,
        "training.log_every": 1,
        "training.evaluate_every": 0,
    }
    test = check_two_steps(train(experiment.override(changes), tmp_path / "run"))
    assert test["mse/copy"] > 0
