"""Compiles attention with gradients for four TPUs that need not exist, and compares its memory with the reference's.

Batch and heads are divided over two devices each. Needs libtpu (extra `plan`).
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from vitx.layers.attention import IMPLEMENTATIONS, choose_implementation
from vitx.layers.layouts import LAYOUTS
from vitx.layers.partition import attend

jax.config.update("jax_platforms", "cpu")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # libtpu must not look for a TPU
devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
assert choose_implementation("auto", devices[0]) == "tpu"
axes, types = ("data", "fsdp", "tensor", "frames"), (jax.sharding.AxisType.Auto,) * 4
mesh = jax.sharding.Mesh(np.reshape(devices, (2, 1, 2, 1)), axes, axis_types=types)


def compile_gradients(name, tokens, head_dim=64):
    implementation = IMPLEMENTATIONS[name]

    def squares(*heads):
        settings = {"grid": (1, tokens, 1), "num_prefix": 0, "parameters": {}, "check_vma": implementation.check_vma}
        return (attend(LAYOUTS["joint"], implementation.core, *heads, **settings).astype("float32") ** 2).sum()

    sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    heads = [jax.ShapeDtypeStruct((4, tokens, 16, head_dim), jnp.bfloat16, sharding=sharding)] * 3
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(squares, argnums=(0, 1, 2))).lower(*heads).compile()
    return "tpu_custom_call" in compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


# of short sequences most is in on-chip memory, which the analysis does not count
fused, small = compile_gradients("tpu", 12545)
_, large = compile_gradients("tpu", 25089)
scored, reference = compile_gradients("reference", 3137)
print({"12545": small, "25089": large, "reference of 3137": reference})
assert fused and not scored
assert large < 2.5 * small and small < reference / 2
for head_dim in (72, 80):  # of ViT-H/14 and its relatives
    assert compile_gradients("tpu", 1569, head_dim)[0]
assert not compile_gradients("tpu", 197)[0]
