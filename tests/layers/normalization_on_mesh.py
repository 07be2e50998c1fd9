"""Compares batch normalisation and its gradients on four devices with one; batch and time must stay divided."""

import jax
import jax.numpy as jnp
import numpy as np

from vitx.layers.normalization import normalize_batch

mesh = jax.make_mesh((2, 2), ("data", "frames"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((4, 2, 6, 16)), jnp.float32)
scale, bias = (jnp.asarray(rng.standard_normal(16), jnp.float32) for _ in range(2))
divided = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "frames")))
replicated = [jax.device_put(y, jax.NamedSharding(mesh, jax.P())) for y in (scale, bias)]

gradients = jax.grad(lambda *x: jnp.sum(jnp.sin(normalize_batch(*x, 1e-5)[0])), argnums=(0, 1, 2))
expected = gradients(x, scale, bias)
with jax.set_mesh(mesh):
    compiled = jax.jit(gradients).lower(divided, *replicated).compile()
assert "all-gather" not in compiled.as_text()
found = compiled(divided, *replicated)
assert found[0].sharding.shard_shape(x.shape) == (2, 1, 6, 16), found[0].sharding
for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
