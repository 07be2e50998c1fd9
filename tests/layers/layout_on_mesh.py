"""Compares attention along a layout with parameters, its gradients, and token merging, on eight devices with one."""

import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from vitx.layers.attention import core
from vitx.layers.layouts import LAYOUTS, split_heads
from vitx.layers.partition import attend, attend_locally, merge_time, split_time
from vitx.layers.token_merging import TokenMerging
from vitx.layers.transformer import Encoder, EncoderBlock

spec = importlib.util.spec_from_file_location("test_layouts", Path(__file__).with_name("test_layouts.py"))
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

layout, grid = split_heads(tests.PAST, LAYOUTS["space"]), (4, 3, 2)
q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 24, 4, 3))
parameters = {"0_decay": jax.numpy.asarray([0.1, 0.9])}


def on_one_device(q, k, v, parameters):
    return attend_locally(layout, core, q, k, v, grid=grid, num_prefix=0, parameters=parameters)


def on_mesh(q, k, v, parameters, check_vma):
    chunks = [split_time(x.reshape(2, 24, 12), 2, 0).reshape(2, 2, 12, 4, 3) for x in (q, k, v)]
    settings = {"grid": (2, 3, 2), "num_prefix": 0, "num_chunks": 2, "check_vma": check_vma}
    out = attend(layout, core, *chunks, parameters=parameters, **settings)
    return merge_time(out.reshape(2, 2, 12, 12), 0).reshape(q.shape)


def add_gradients(attend):
    """Returns the outputs and the gradients of their squares' sum, of queries, keys, values and parameters."""

    def squares(*inputs):
        out = attend(*inputs)
        return (out**2).sum(), out

    return jax.jit(jax.value_and_grad(squares, argnums=(0, 1, 2, 3), has_aux=True))


# every frame is encoded alone, and attention has a bias for each key
encoder = Encoder(2, EncoderBlock(num_heads=2, mlp_dim=8), reducer=TokenMerging(3))
frames = jax.random.normal(jax.random.key(1), (4, 2, 13, 8))
run = functools.partial(encoder.apply, grid=(1, 3, 4), num_prefix=1, train=False)
variables = encoder.init(jax.random.key(2), frames, grid=(1, 3, 4), num_prefix=1, train=False)
merged = jax.jit(run)(variables, frames)

expected = add_gradients(on_one_device)(q, k, v, parameters)
types = (jax.sharding.AxisType.Auto,) * 4
with jax.set_mesh(jax.make_mesh((2, 1, 2, 2), ("data", "fsdp", "tensor", "frames"), axis_types=types)):
    for check_vma in (True, False):
        found = add_gradients(functools.partial(on_mesh, check_vma=check_vma))(q, k, v, parameters)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
    np.testing.assert_allclose(jax.jit(run)(variables, frames), merged, rtol=1e-5, atol=1e-5)
    # Parts of the heads get no bias, so none may be left out silently.
    with pytest.raises(ValueError, match="bias"):
        attend(layout, core, q, k, v, grid=grid, num_prefix=0, parameters=parameters, bias=np.zeros((2, 1, 1, 24)))
