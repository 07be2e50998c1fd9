"""ViViT model 2 in PyTorch: transformers' image ViT for each time index, then its ViT over their class tokens.

Hugging Face has no model 2; this is what a user of transformers would put together from its parts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from vitx.errors import UserError
from vitx.interop.architectures import RENAMED, block_rules
from vitx.interop.fill import flatten_variables
from vitx.interop.huggingface import THEIR_ACTIVATIONS
from vitx.interop.names import NORM, PLAIN, NameRule, to_theirs
from vitx.layers.embeddings import height_and_width
from vitx.models.vivit import FactorisedEncoder


def compose(
    name: str, model: FactorisedEncoder, variables: Mapping[str, Any], video: Float[np.ndarray, "b t h w 3"]
) -> tuple[Any, np.ndarray]:
    """Returns (the PyTorch module with the model's weights, the batch in its layout).

    Args:
        name: name of the model, for errors.
        model: a ViViT model 2, or the average-pool baseline.
        variables: its variables, on the host.
        video: the batch.

    Raises:
        UserError: the model has parts that an image ViT lacks.
    """
    known = model.pooling == "class" and model.layouts == ("joint",) and model.position_kind == "learned"
    known = known and model.reducer is None
    if not known or not isinstance(model.num_classes, int) or not model.num_classes or model.sampled_frames:
        raise UserError(
            f"{name} cannot be composed from image ViTs; expected a class token, joint attention, learned positions, "
            "all tokens and one head of classes. Leave out --against, or these fields"
        )
    import torch

    params = flatten_variables(variables)
    t, width = model.grid[0], model.hidden_size
    frames, rows, columns = model.tubelet_size
    image = _create_vit(model, model.num_layers, height_and_width(model.image_size), (rows, columns), 3 * frames)
    kernel = params["embedding/kernel"].transpose(4, 0, 3, 1, 2).reshape(width, 3 * frames, rows, columns)
    _load_encoder(image, params, "spatial", {"weight": kernel, "bias": params["embedding/bias"]})
    temporal = None
    if model.num_temporal_layers:
        temporal = _create_vit(model, model.num_temporal_layers, (1, t), (1, 1), width)
        unused = temporal.embeddings.patch_embeddings  # the class tokens are tokens already
        unused.forward = lambda tokens: tokens.flatten(2).transpose(1, 2)
        unused.projection.requires_grad_(False)
        _load_encoder(temporal, params, "temporal", unused.projection.state_dict())
    head = torch.nn.Linear(width, model.num_classes)
    head.load_state_dict(_to_torch({"weight": params["head/logits/kernel"].T, "bias": params["head/logits/bias"]}))
    batch = video.reshape(len(video), t, frames, *video.shape[2:]).transpose(0, 1, 2, 5, 3, 4)
    return _create_module(image, temporal, head), batch.reshape(len(video), t, 3 * frames, *video.shape[2:4])


def _create_module(image: Any, temporal: Any, head: Any) -> Any:
    import torch

    class TwoEncoders(torch.nn.Module):
        """From [batch, times, channels, height, width] to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.image, self.temporal, self.head, self.config = image, temporal, head, image.config

        def forward(self, video: Any) -> Any:
            x = self.image(video.flatten(0, 1)).last_hidden_state[:, 0].unflatten(0, video.shape[:2])
            if self.temporal is None:
                return self.head(x.mean(1))
            return self.head(self.temporal(x.transpose(1, 2)[:, :, None]).last_hidden_state[:, 0])

    return TwoEncoders()


def _create_vit(
    model: FactorisedEncoder, num_layers: int, image_size: tuple[int, int], patch: tuple[int, int], channels: int
) -> Any:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=model.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=model.num_heads,
        intermediate_size=model.mlp_dim,
        hidden_act=THEIR_ACTIVATIONS[model.activation],
        layer_norm_eps=model.layer_norm_eps,
        qkv_bias=model.qkv_bias,
        image_size=image_size,
        patch_size=patch,
        num_channels=channels,
        attn_implementation="sdpa",
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def _load_encoder(vit: Any, params: Mapping[str, np.ndarray], encoder: str, projection: Mapping[str, Any]) -> None:
    """Loads the weights of one of our encoders, "spatial" or "temporal", into a ViT."""
    rules = [
        *block_rules("vit.encoder.layer.{i}", f"{encoder}_encoder/block_{{i}}"),
        NameRule("vit.layernorm", f"{encoder}_encoder/norm", NORM),
        NameRule("vit.embeddings.cls_token", f"{encoder}_positions/class_token", PLAIN),
        NameRule("vit.embeddings.position_embeddings", f"{encoder}_positions/positions", PLAIN),
    ]
    named = to_theirs({path: x for path, x in params.items() if path.startswith(f"{encoder}_")}, rules)
    named |= {f"vit.embeddings.patch_embeddings.projection.{name}": x for name, x in projection.items()}
    weights = {}
    for name in vit.state_dict():
        theirs = f"vit.{name}"
        for pattern, replacement in RENAMED:
            theirs = pattern.sub(replacement, theirs)
        weights[name] = named[theirs]
    vit.load_state_dict(_to_torch(weights))


def _to_torch(arrays: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {name: torch.tensor(np.ascontiguousarray(x)) for name, x in arrays.items()}
