"""Names of JAX parameter trees: scenic's ViViT, and the image ViTs of AugReg and big_vision.

Trees are flat, with names joined by "/": from an .npz file, or from the msgpack that Flax writes.
"""

import re
from collections.abc import Mapping

import numpy as np

from vitx.interop.names import Tensors

PARAMETERS = re.compile(r"^(?:optimizer/target|opt/target|target|params)/(?:params/)?")
RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (PARAMETERS.pattern, ""),
        (r"^(Spatial|Temporal)Transformer/posembed_input/pos_embedding$", r"\1_positions/positions"),
        (r"^Transformer/posembed_input/pos_embedding$|^pos_embedding$", "positions/positions"),
        (r"^cls_(Spatial|Temporal)Transformer$", r"\1_positions/class_token"),
        (r"^cls$", "positions/class_token"),
        (r"^(Spatial|Temporal)Transformer/", r"\1_encoder/"),
        (r"^Transformer/", "encoder/"),
        (r"^Spatial_", "spatial_"),
        (r"^Temporal_", "temporal_"),
        (r"/encoderblock_(\d+)/", r"/block_\1/"),
        (r"/encoder_norm/", "/norm/"),
        (r"/MultiHeadDotProductAttention_(time|space)/", r"/\1_attention/"),
        (r"/MultiHeadDotProductAttention_\d+/", "/attention/"),
        (r"/LayerNorm_(time|space)/", r"/\1_attention_norm/"),
        (r"/LayerNorm_0/", "/attention_norm/"),
        (r"/LayerNorm_(\d+|mlp)/", "/mlp_norm/"),
        (r"/MlpBlock(_\d+)?/", "/mlp/"),
        (r"/mlp/Dense_0/", "/mlp/hidden/"),
        (r"/mlp/Dense_1/", "/mlp/out/"),
        (r"^(output_projection|head)/", "head/logits/"),
    )
]


def is_tree(names: Mapping[str, np.ndarray]) -> bool:
    """Returns whether tensors have the names of such a tree."""
    return any(re.search(r"Transformer/encoderblock_\d+/", name) for name in names)


def kernel_axes(tensors: Mapping[str, np.ndarray]) -> int:
    """Returns the number of axes of the tree's patch kernel: 5 for a video's, 4 for an image's, 0 without one."""
    return next((x.ndim for name, x in tensors.items() if re.search(r"(^|/)embedding/kernel$", name)), 0)


def to_ours(tensors: Mapping[str, np.ndarray]) -> tuple[Tensors, dict[str, str], tuple[str, ...]]:
    """Returns (tensors by our paths, {our path: name in the tree}, names of training state beside the parameters).

    Names that match no pattern are kept.
    """
    trained = [name for name in tensors if PARAMETERS.match(name)]
    found, sources = {}, {}
    for name in trained or tensors:
        path = name
        for pattern, replacement in RENAMED:
            path = pattern.sub(replacement, path)
        found[path], sources[path] = _merge_heads(path, tensors[name]), name
    return found, sources, tuple(name for name in tensors if trained and name not in trained)


def _merge_heads(path: str, x: np.ndarray) -> np.ndarray:
    """Removes the axis of heads: [width, heads, head_dim] for inputs, [heads, head_dim, width] for the output."""
    if re.search(r"attention/(query|key|value)/kernel$", path) and x.ndim == 3:
        return x.reshape(x.shape[0], -1)
    if re.search(r"attention/(query|key|value)/bias$", path):
        return x.reshape(-1)
    if re.search(r"attention/out/kernel$", path) and x.ndim == 3:
        return x.reshape(-1, x.shape[-1])
    return x
