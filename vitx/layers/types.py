"""Types that layers and models share."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

# float64 needs jax.enable_x64; comparisons with references use it to take rounding out
DType = Literal["float32", "bfloat16", "float64"]
Triple = tuple[int, int, int]  # (frames, height, width)


def promote_to_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns half precision as float32, and float32 and float64 as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
