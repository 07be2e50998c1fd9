"""Compares attention along a layout with parameters on eight devices with the same attention on one device."""

import importlib.util
from pathlib import Path

import jax
import numpy as np

from vitx.layers.attention import core
from vitx.layers.layouts import LAYOUTS, split_heads
from vitx.layers.partition import attend, attend_locally, merge_time, split_time

spec = importlib.util.spec_from_file_location("test_layouts", Path(__file__).with_name("test_layouts.py"))
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)

layout, grid = split_heads(tests.PAST, LAYOUTS["space"]), (4, 3, 2)
q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 24, 4, 3))
parameters = {"0_decay": jax.numpy.asarray([0.1, 0.9])}
expected = attend_locally(layout, core, q, k, v, grid=grid, prefix=0, parameters=parameters)


@jax.jit
def on_mesh(q, k, v, parameters):
    chunks = [split_time(x.reshape(2, 24, 12), 2, 0).reshape(2, 2, 12, 4, 3) for x in (q, k, v)]
    out = attend(layout, core, *chunks, grid=(2, 3, 2), prefix=0, chunks=2, parameters=parameters)
    return merge_time(out.reshape(2, 2, 12, 12), 0).reshape(q.shape)


types = (jax.sharding.AxisType.Auto,) * 4
with jax.set_mesh(jax.make_mesh((2, 1, 2, 2), ("data", "fsdp", "tensor", "frames"), axis_types=types)):
    np.testing.assert_allclose(on_mesh(q, k, v, parameters), expected, atol=1e-6)
