"""Weights that fit in shape and not in meaning are refused, and the file, setting, array or row is named."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vitx
from tests.training.test_cnn import SMALL
from vitx.checkpoints import Checkpoints
from vitx.cli import main
from vitx.configuration import to_dict
from vitx.data.files import _parse_number
from vitx.errors import UserError
from vitx.experiment import save_config
from vitx.interop.fill import WeightsSource, check_layers, fill, flatten_variables
from vitx.interop.huggingface import read_weights
from vitx.run import load_run, train

GOLDEN = Path(__file__).parent / "interop" / "golden"
pytestmark = pytest.mark.usefixtures("bounded")  # in memory and time, whatever a file claims


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """A run of one step, and the checkpoint of another whose seed alone is different."""
    folder = tmp_path_factory.mktemp("trained")
    variables = train(small.override({"training.steps": 1}), folder / "0").variables
    with Checkpoints(folder / "0" / "checkpoints", read_only=True) as checkpoints:
        _, record = checkpoints.restore(1, {})
    record["config"]["training"]["seed"] = 1
    with Checkpoints(folder / "1" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": dict(variables)}, {k: v for k, v in record.items() if k != "digests"})
        checkpoints.wait()
    return folder


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "0", tmp_path / "run")
    return tmp_path / "run"


def test_checkpoints_of_another_run_are_refused(trained, run, small):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(trained / "1" / "checkpoints", run / "checkpoints")
    with pytest.raises(UserError, match=r"training\.seed: 1 in the checkpoint, 0 in config\.json"):
        load_run(run)
    with pytest.raises(UserError, match=r"training\.seed"):
        vitx.load_pretrained(run)
    with pytest.raises(UserError, match=r"training\.seed"):
        train(small.override({"training.steps": 1, "training.seed": 0}), run)


EDITS = {
    "model.num_heads": 4,
    "model.activation": "gelu",
    "model.layer_norm_eps": 1e-3,
    "model.dropout_rate": 0.5,
    "data.frame_stride": 4,
    "data.frame_rate": 12.5,
    "data.temporal": "uniform",
    "task.mean": [0.1, 0.2, 0.3],
    "task.std": [0.1, 0.2, 0.3],
    "optimizer.peak_lr": 0.3,
    "training.ema_decay": 0.9,
}


@pytest.mark.parametrize("path", EDITS)
def test_settings_edited_after_training_are_refused(path, run):
    config = json.loads((run / "config.json").read_text())
    part, name = path.split(".")
    config["experiment"][part][name] = EDITS[path]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=path.replace(".", r"\.")):
        load_run(run)


@pytest.mark.parametrize("path", ["data.num_workers", "training.log_every", "data.eval_batch_size"])
def test_settings_that_may_change_are_accepted(path, run):
    config = json.loads((run / "config.json").read_text())
    part, name = path.split(".")
    config["experiment"][part][name] = 3
    (run / "config.json").write_text(json.dumps(config))
    loaded = load_run(run)
    assert getattr(getattr(loaded.experiment, part), name) == 3 and loaded.step == 1


@pytest.mark.parametrize("layers", [10**4, 10**9])
def test_a_run_that_promises_many_layers_is_refused_before_they_are_traced(layers, run):
    config = json.loads((run / "config.json").read_text())
    config["experiment"]["model"]["num_layers"] = layers
    (run / "config.json").write_text(json.dumps(config))
    for load in (load_run, vitx.load_pretrained):
        with pytest.raises(UserError, match="num_layers"):
            load(run)


@pytest.mark.parametrize("layers", [300, 10**4, 10**6, 10**9])
@pytest.mark.parametrize("source", ["vivit", "timesformer_divided"])
def test_a_directory_that_promises_many_layers_is_refused_before_they_are_traced(source, layers, tmp_path):
    shutil.copytree(GOLDEN / source, tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["num_hidden_layers"] = layers
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{layers:,} layers"):
        vitx.load_pretrained(tmp_path / "x")


@pytest.mark.parametrize("name", ["r3d_18", "slow_r50", "slowfast_r50_4x16"])
def test_convolutions_that_promise_many_layers_are_refused(name):
    model = vitx.create_model(name)
    with pytest.raises(UserError, match="depths"):
        check_layers(model.copy(depths=(3, 4, 10**9, 3)), 100, "file")
    check_layers(model, 100, "file")


def save_as(run: Path, change) -> None:
    """Saves a checkpoint again with other variables, as somebody who can write digests would."""
    loaded = load_run(run)
    with Checkpoints(run / "checkpoints") as checkpoints:
        _, record = checkpoints.restore(1, {})
        variables = jax.tree_util.tree_map_with_path(change, dict(loaded.variables))
        checkpoints.save(1, {"variables": variables}, {k: v for k, v in record.items() if k != "digests"})
        checkpoints.wait()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(value, run):
    save_as(run, lambda path, x: x.at[0].set(value) if "bias" in str(path[-1]) and "embedding" in str(path) else x)
    with pytest.raises(UserError, match="embedding/bias"):
        load_run(run)
    with pytest.raises(UserError, match="embedding/bias"):
        vitx.load_pretrained(run)


@pytest.fixture(scope="module")
def normalised(small, tmp_path_factory):
    """A run, as it is stored, of a model with running variances."""
    model = SMALL.copy(num_classes=(("appearance", 10), ("motion", 8)))
    experiment = small.override({"model": model}).with_absolute_paths()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, 24, 24, 3))))
    folder = tmp_path_factory.mktemp("normalised") / "run"
    folder.mkdir()
    save_config(experiment, folder / "config.json")
    label_names = {"appearance": list(map(str, range(10))), "motion": list(map(str, range(8)))}
    record = {"best": None, "config": to_dict(experiment), "label_names": label_names}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        variables = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), dict(shapes))
        checkpoints.save(1, {"variables": variables}, record)
        checkpoints.wait()
    return folder


@pytest.mark.parametrize(
    ("value", "message"), [(-1e-3, "var holds negative variances"), (np.nan, "var holds values that are not finite")]
)
def test_variances_of_a_run_that_no_training_gives_are_refused(value, message, normalised, tmp_path):
    shutil.copytree(normalised, tmp_path / "run")
    load_run(tmp_path / "run")
    save_as(tmp_path / "run", lambda path, x: x.at[-1].set(value) if path[-1].key == "var" else x)
    for load in (load_run, vitx.load_pretrained):
        with pytest.raises(UserError, match=message):
            load(tmp_path / "run")


def fill_cnn(**changes):
    """Returns (variables, report) of a small CNN filled with 0.5; `changes` replace the first value of an array."""
    model = vitx.create_model("cnn_small", num_classes=3)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape))))
    tensors = {path: np.full(x.shape, 0.5, np.float32) for path, x in flatten_variables(variables).items()}
    var, kernel = (next(path for path in tensors if path.endswith(end)) for end in ("/var", "/kernel"))
    for name, (array, value) in changes.items():
        path = {"var": var, "kernel": kernel}[name]
        tensors[path] = tensors[path].astype(array)
        tensors[path].flat[0] = value
    return fill(WeightsSource(tensors, {}, (), model), model, "file", swap_head=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"var": (np.float32, -1e-3)}, "file: .*var holds negative variances"),
        ({"var": (np.float64, -1.0)}, "negative variances"),
        ({"var": (np.float32, np.nan)}, "not finite"),
        ({"kernel": (np.float64, 1e39)}, "file: .*kernel holds values beyond the range of float32"),
        ({"kernel": (np.float64, -1e300)}, "float32"),
        ({"kernel": (np.float16, np.inf)}, "not finite"),
        ({"kernel": (np.int32, 1)}, "floating-point"),
    ],
)
def test_values_that_no_trained_model_has_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        fill_cnn(**changes)


def test_values_that_a_trained_model_has_are_loaded():
    variables, report = fill_cnn(var=(np.float32, 0.0), kernel=(np.float64, 3e38))
    arrays = flatten_variables(variables)
    for end, first in (("/var", 0.0), ("/kernel", np.float32(3e38))):
        array = np.ravel(next(x for path, x in arrays.items() if path.endswith(end)))
        assert array.dtype == np.float32 and array[0] == first and (array[1:] == 0.5).all()
    assert report.loaded.keys() == arrays.keys() and not report.fresh


@pytest.fixture
def sharded(tmp_path):
    x, y = np.ones(2, np.float32), np.zeros(3, np.float32)
    safetensors.numpy.save_file({"x": x}, tmp_path / "a.safetensors")
    safetensors.numpy.save_file({"y": y}, tmp_path / "b.safetensors")
    return tmp_path


RIGHT = {"x": "a.safetensors", "y": "b.safetensors"}


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"x": "b.safetensors", "y": "a.safetensors"}, "x|y"),
        ({"x": "a.safetensors", "y": "a.safetensors"}, "y"),
        (RIGHT | {"z": "b.safetensors"}, "z"),
        ({"y": "b.safetensors", "z": "a.safetensors"}, "x|z"),
    ],
)
def test_an_index_that_disagrees_with_its_files_is_refused(table, name, sharded):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    with pytest.raises(UserError, match=name):
        read_weights(sharded)


def test_an_index_that_agrees_is_read(sharded):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": RIGHT}))
    assert set(read_weights(sharded)) == {"x", "y"}


@pytest.mark.parametrize("cell", ["1e39", "-1e300", 10**400, "9" * 400, "nan", "inf", "", None, "1e-400x", "x"])
def test_numbers_beyond_float32_are_refused_with_their_row(cell):
    with pytest.raises(UserError, match="line 7: EF is") as caught:
        _parse_number(cell, "list.csv, line 7: EF")
    assert len(str(caught.value)) < 200


def test_evaluate_of_another_runs_checkpoints_is_one_message(trained, run, capsys):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(trained / "1" / "checkpoints", run / "checkpoints")
    assert main(["evaluate", str(run)]) == 2
    assert capsys.readouterr().err.count("vitx: ") == 1
