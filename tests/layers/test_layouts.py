"""Layouts: each equals a plain attention over all tokens under the mask that defines it."""

import jax
import numpy as np
import pytest

from vitx.layers import attention, layouts


@pytest.mark.parametrize("grid", [(4, 6, 8), (3, 5, 4), (2, 2, 2), (1, 3, 5), (3, 1, 2)])
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("name", sorted(layouts.LAYOUTS))
def test_a_layout_is_a_masked_joint_attention(name, grid, prefix, masked_attention):
    tokens = prefix + np.prod(grid)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, tokens, 4, 3))
    found = layouts.LAYOUTS[name](attention.core, q, k, v, grid=grid, prefix=prefix)
    np.testing.assert_allclose(found, masked_attention(name, q, k, v, grid, prefix), atol=2e-5)
