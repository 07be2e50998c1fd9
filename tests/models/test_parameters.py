"""Parameter counts, paths and shapes of every variant are frozen: checkpoints rely on them."""

import csv
import hashlib
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from vitx.models import VARIANTS
from vitx.models.transformer import VideoEncoder

FROZEN = Path(__file__).with_name("parameters.csv")
DEPTHS = {
    "encoder": "num_layers",
    "spatial_encoder": "num_layers",
    "temporal_encoder": "num_temporal_layers",
    "decoder": "decoder_num_layers",
}


def variable_shapes(model):
    """{path: shape} of parameters and statistics.

    Blocks of a Transformer are alike, so two of each encoder are traced and stand for all.
    """
    depths = {encoder: getattr(model, field) for encoder, field in DEPTHS.items() if getattr(model, field, 0)}
    traced = model
    if isinstance(model, VideoEncoder):
        traced = model.copy(**{DEPTHS[encoder]: 2 for encoder in depths})
    shapes = jax.eval_shape(traced.init, jax.random.key(0), jnp.zeros((1, *model.input_shape)))
    paths = {path: list(leaf.shape) for path, leaf in flatten_dict(shapes, sep="/").items()}
    if traced is not model:
        for path, shape in list(paths.items()):
            if found := re.fullmatch(r"(params/(\w+)/block_)1(/.*)", path):
                start, encoder, rest = found.groups()
                assert paths[f"{start}0{rest}"] == shape
                paths |= {f"{start}{i}{rest}": shape for i in range(2, depths[encoder])}
    return paths


def row_of(name):
    paths = variable_shapes(VARIANTS[name])
    parameters = sum(math.prod(shape) for path, shape in paths.items() if path.startswith("params/"))
    digest = hashlib.sha256(json.dumps(paths, sort_keys=True).encode()).hexdigest()[:16]
    return {"model": name, "parameters": str(parameters), "digest": digest}


def frozen():
    with FROZEN.open() as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.mark.smoke
def test_no_variant_is_left_out():
    ours = {name for name, model in VARIANTS.items() if type(model).__module__.startswith("vitx.")}
    assert ours == frozen().keys()


@pytest.mark.parametrize("family", sorted({name.split("_")[0] for name in frozen()}))
def test_parameters_are_frozen(family):
    """After a deliberate change: python tests/models/freeze_parameters.py, and a migration of old checkpoints."""
    expected = [row for name, row in frozen().items() if name.split("_")[0] == family]
    assert [row_of(row["model"]) for row in expected] == expected
