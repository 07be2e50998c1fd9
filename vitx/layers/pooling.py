"""Pooling by attention. In shapes: b batch, n tokens, d width."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from vitx.layers.attention import core
from vitx.layers.transformer import Activation, MlpBlock
from vitx.layers.types import DType


class AttentionPooling(nn.Module):
    """A learned query that attends to all tokens, then an MLP: an attentive probe.

    As in V-JEPA (Bardes et al. 2024, arXiv:2404.08471), no projection follows the attention.

    Attributes:
        num_heads: attention heads.
        mlp_dim: width of the MLP's hidden layer.
        layer_norm_eps: added to the variance.
        activation: activation of the MLP.
        dtype: type of the computations; parameters are float32.
    """

    num_heads: int
    mlp_dim: int
    layer_norm_eps: float = 1e-6
    activation: Activation = "gelu"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool = False) -> Float[Array, "b d"]:
        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name=name)

        def project(x: Float[Array, "b n d"], name: str) -> Float[Array, "b n heads _"]:
            dense = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)
            return rearrange(dense(x), "b n (heads d) -> b n heads d", heads=self.num_heads)

        token = self.param("query_token", nn.initializers.normal(0.02), (1, 1, x.shape[-1]), jnp.float32)
        token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, x.shape[-1]))
        tokens = norm("norm")(x)
        attended = core(project(token, "query"), project(tokens, "key"), project(tokens, "value"))
        token = token + rearrange(attended, "b n heads d -> b n (heads d)")
        mlp = MlpBlock(self.mlp_dim, self.activation, dtype=self.dtype, name="mlp")
        return (token + mlp(norm("mlp_norm")(token), train=train))[:, 0]
