"""What the path of a parameter means: which block it belongs to, and what it is.

Paths are those of the parameter tree, joined by slashes: "spatial_encoder/block_3/mlp/out/kernel". Layer-wise learning
rates, weight decay, freezing, Muon and sharding all ask this module.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

BLOCK = re.compile(r"(.*)/block_(\d+)/")  # (encoder, number)
FINAL_NORM = re.compile(r"(\w*encoder)/norm/")
EMBEDDING = re.compile(r"(?:embedding|stem\w*|(\w+_)?positions)/")


def path_name(path: Any) -> str:
    """Returns a path of `jax.tree_util` as names joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def to_32_bits(tree: Any) -> Any:
    """Returns a tree of arrays with those of 64 bits as 32 bits.

    Arrays without a type get 64 bits under JAX_ENABLE_X64, and what a checkpoint holds must not depend on that.
    """
    narrow = {jnp.dtype("float64"): jnp.float32, jnp.dtype("int64"): jnp.int32, jnp.dtype("uint64"): jnp.uint32}
    return jax.tree.map(lambda x: x.astype(narrow[x.dtype]) if x.dtype in narrow else x, tree)


def is_kernel(path: Any) -> bool:
    """Returns whether a parameter is a matrix or convolution kernel: not a bias, scale, position or class token."""
    return path_name(path[-1:]) == "kernel"


def kernel_mask(params: Any) -> Any:
    """Returns which parameters are kernels; weight decay applies to these alone."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_kernel(path), params)


def is_block_matrix(path: Any, leaf: Any) -> bool:
    """Returns whether a parameter is a matrix inside a block of an encoder."""
    return leaf.ndim == 2 and is_kernel(path) and BLOCK.match(path_name(path)) is not None


def layer_numbers(params: Any) -> Any:
    """Returns the layer of every parameter: 0 for embedding, stem and positions, then the blocks, then all behind them.

    Blocks of several encoders are numbered in the order of the encoders' names, those of a decoder last. Positions of a
    later encoder belong to the block before it, and so does the final norm of an earlier one.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = {(found[1], int(found[2])) for name in names if (found := BLOCK.match(name))}
    blocks = sorted(blocks, key=lambda block: (block[0] == "decoder", block))
    number = {block: i for i, block in enumerate(blocks, 1)}

    def layer(path: Any, _: Any) -> int:
        name = path_name(path)
        if found := BLOCK.match(name):
            return number[found[1], int(found[2])]
        if found := FINAL_NORM.match(name):
            last = max((layer for (encoder, _), layer in number.items() if encoder == found[1]), default=len(blocks))
            return last if last < len(blocks) else last + 1
        if found := EMBEDDING.match(name):
            return number.get((f"{found[1] or ''}encoder", 0), 1) - 1
        return len(blocks) + 1

    return jax.tree_util.tree_map_with_path(layer, params)


def matches_any(path: Any, patterns: tuple[str, ...]) -> bool:
    """Returns whether a path begins with a match of one of the regular expressions."""
    return any(re.match(pattern, path_name(path)) for pattern in patterns)
