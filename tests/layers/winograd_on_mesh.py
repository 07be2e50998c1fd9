"""Compares Winograd's convolution and its gradients on two devices with one; the batch must stay divided."""

import jax
import jax.numpy as jnp
import numpy as np

from vitx.layers import winograd

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((4, 3, 8, 8, 3), (3, 3, 3, 3, 5)))
divided = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
replicated = jax.device_put(kernel, jax.NamedSharding(mesh, jax.P()))


def loss(x, kernel):
    return jnp.sum(jnp.sin(winograd.convolve_3x3(x, kernel, (1, 1, 1))))


for limit in (0, 1e9):  # frame by frame, and at once
    winograd.MAX_BYTES = winograd.MAX_GRADIENT_BYTES = limit
    jax.clear_caches()
    expected = jax.grad(loss, argnums=(0, 1))(x, kernel)
    with jax.set_mesh(mesh):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(divided, replicated).compile()
    assert "all-gather" not in compiled.as_text(), limit
    found = compiled(divided, replicated)
    assert found[0].sharding.shard_shape(x.shape) == (2, 3, 8, 8, 3), found[0].sharding
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
