"""What is written does not depend on a flag of JAX, and every JSON parser reads it."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitx import configuration, strict_json
from vitx.checkpoints import digest
from vitx.console import print_json
from vitx.rows import RowsWriter, read_rows
from vitx.storage import write_json
from vitx.training.optimizers import Optimizer
from vitx.training.step import init_state


def parse(text: str):
    """Parses as strict parsers do: Python's own also reads NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def shapes_of_state(experiment, *, x64: bool):
    optimizer = experiment.optimizer.build(10)
    video = jax.ShapeDtypeStruct((2, experiment.data.num_frames, *experiment.data.image_size, 3), np.uint8)
    with jax.enable_x64(x64):
        state = jax.eval_shape(
            lambda batch: init_state(experiment.model, experiment.task, optimizer, batch, 0, with_ema=True),
            {"video": video},
        )
    return {jax.tree_util.keystr(path): (x.shape, x.dtype) for path, x in jax.tree.leaves_with_path(state)}


@pytest.mark.parametrize("optimizer", sorted(set(configuration.part_names(Optimizer)) - {"Optimizer", "Optax"}))
def test_a_state_has_the_same_types_with_64_bits_enabled(small, optimizer):
    experiment = small.override({"optimizer": optimizer})
    assert shapes_of_state(experiment, x64=True) == shapes_of_state(experiment, x64=False)


@pytest.mark.parametrize("model", ["cnn_small", "lrcn_gru_small", "convlstm_small"])
def test_families_have_parameters_of_32_bits_with_64_enabled(small, model):
    experiment = small.override({"model": model})
    assert shapes_of_state(experiment, x64=True) == shapes_of_state(experiment, x64=False)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8, jnp.bfloat16, np.bool_])
def test_digests_do_not_depend_on_the_flag(dtype):
    values = np.arange(-7, 8).reshape(3, 5).astype(dtype)
    with jax.enable_x64(True):
        wide = np.asarray(digest(jnp.asarray(values)))
    np.testing.assert_array_equal(wide, np.asarray(digest(jnp.asarray(values))))


@pytest.mark.parametrize("bit", [0, 31, 32, 51, 63])
def test_digests_of_64_bits_see_every_bit(bit):
    values = np.linspace(0, 1, 5)
    flipped = (values.view(np.uint64) ^ np.array([0, 0, 1 << bit, 0, 0], np.uint64)).view(np.float64)
    with jax.enable_x64(True):
        one, other = (np.asarray(digest(jnp.asarray(x))) for x in (values, flipped))
    assert (one != other).all()


NUMBERS = {"nan": math.nan, "up": math.inf, "down": -math.inf, "deep": [{"x": (1.5, np.float32("nan"))}]}
EXPECTED = {"nan": None, "up": None, "down": None, "deep": [{"x": [1.5, None]}]}


def test_every_writer_leaves_out_numbers_that_are_not_json(tmp_path, capsys):
    write_json(tmp_path / "x.json", NUMBERS)
    (tmp_path / "rows.jsonl").touch()
    rows = RowsWriter(tmp_path / "rows.jsonl")
    rows.write({"step": 1, "split": "train", **NUMBERS})
    rows.close()
    print_json(NUMBERS)
    assert parse((tmp_path / "x.json").read_text()) == EXPECTED == parse(capsys.readouterr().out)
    line = parse((tmp_path / "rows.jsonl").read_text())
    assert line == {"step": 1, "split": "train", **EXPECTED} == read_rows(tmp_path / "rows.jsonl")[0]


def test_numpy_arrays_and_keys_that_are_no_text_are_written():
    assert parse(strict_json.dumps({1: np.arange(3), "s": np.float64(0.5)})) == {"1": [0, 1, 2], "s": 0.5}


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.1])
def test_settings_that_are_not_finite_survive_config_json(small, value):
    experiment = small.override({"training.hang_minutes": 1.0})
    object.__setattr__(experiment.training, "hang_minutes", value)  # past the check of its range
    data = parse(json.dumps(configuration.to_dict(experiment), allow_nan=False))
    assert data["training"]["hang_minutes"] in ("inf", "-inf", "nan", 0.1)
    if value == math.inf:
        assert configuration.from_dict(data).training.hang_minutes == math.inf


def test_no_other_module_writes_json(pytestconfig):
    # The last two take checksums of JSON texts, which are not written.
    expected = {"vitx/strict_json.py", "vitx/checkpoints.py", "vitx/data/preparation.py"}
    found = {
        str(path.relative_to(pytestconfig.rootpath))
        for path in (pytestconfig.rootpath / "vitx").rglob("*.py")
        if re.search(r"\bjson\.dumps?\(", path.read_text())
    }
    assert found == expected
