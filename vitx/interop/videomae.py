"""VideoMAE's weights: files of its authors, and masked autoencoders as the start of classifiers.

The files of VideoMAE, VideoMAE V2 and Unmasked Teacher name the same tensors, the last two those of the encoder alone
or with a decoder of their own.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from flax import linen as nn

from vitx.configuration import override, settings
from vitx.interop.architectures import split_qkv
from vitx.interop.fill import WeightsSource
from vitx.interop.names import CONVOLUTION, NORM, PLAIN, NameRule, to_ours
from vitx.models.transformer import VideoEncoder
from vitx.models.videomae import VideoMAEPretraining

FRESH = ("norm/*", "pooler/*", "head/*")  # paths that stay fresh when a classifier starts from a masked autoencoder
UNUSED = re.compile(r"clip_decoder\..*")  # Unmasked Teacher's projections to the features of its teacher


def _block_rules(theirs: str, ours: str) -> list[NameRule]:
    return [
        *(NameRule(f"{theirs}.attn.{x}", f"{ours}/attention/{x}") for x in ("query", "key", "value")),
        NameRule(f"{theirs}.attn.proj", f"{ours}/attention/out"),
        NameRule(f"{theirs}.norm1", f"{ours}/attention_norm", NORM),
        NameRule(f"{theirs}.norm2", f"{ours}/mlp_norm", NORM),
        NameRule(f"{theirs}.mlp.fc1", f"{ours}/mlp/hidden"),
        NameRule(f"{theirs}.mlp.fc2", f"{ours}/mlp/out"),
    ]


def _encoder_rules(prefix: str) -> list[NameRule]:
    return [
        NameRule(f"{prefix}patch_embed.proj", "embedding", CONVOLUTION),
        *_block_rules(f"{prefix}blocks.{{i}}", "encoder/block_{i}"),
    ]


RULES = [
    *_encoder_rules(""),
    NameRule("fc_norm", "norm", NORM),
    NameRule("head", "head/logits"),
    *_encoder_rules("encoder."),
    NameRule("encoder.norm", "encoder/norm", NORM),
    NameRule("encoder_to_decoder", "to_decoder"),
    NameRule("mask_token", "mask_token", PLAIN),
    *_block_rules("decoder.blocks.{i}", "decoder/block_{i}"),
    NameRule("decoder.norm", "decoder_norm", NORM),
    NameRule("decoder.head", "to_pixels"),
]
SIGN = re.compile(r"(encoder\.)?blocks\.0\.attn\.q_bias")


def is_authors(tensors: Mapping[str, np.ndarray]) -> bool:
    """Returns whether tensors have the names of the authors' files."""
    return any(SIGN.fullmatch(name) for name in tensors)


def authors_source(tensors: Mapping[str, np.ndarray], model: VideoEncoder) -> WeightsSource:
    """Returns the content of an authors' file as the weights of a classifier or a masked autoencoder.

    Args:
        tensors: content of the file.
        model: the model that the caller named.
    """
    bias = {"q_bias": "query.bias", "v_bias": "value.bias"}
    renamed = {re.sub(r"[qv]_bias$", lambda match: bias[match[0]], name): x for name, x in tensors.items()}
    found, names, unknown = to_ours(split_qkv(renamed), RULES)
    unused = tuple(name for name in unknown if UNUSED.fullmatch(name))
    source = WeightsSource(found, names, tuple(name for name in unknown if name not in unused), model, set_aside=unused)
    if isinstance(model, VideoMAEPretraining):
        return dataclasses.replace(source, model=override(model, {"encoder_norm": "encoder/norm/scale" in found}))
    return without_decoder(source, VideoMAEPretraining) if "norm/scale" not in found else source


def for_finetuning(source: WeightsSource, model: nn.Module) -> WeightsSource:
    """Returns a masked autoencoder's weights as those of the classifier that takes over its encoder.

    Weights of other models, and for other models, are returned as they are.

    Args:
        source: weights of any model.
        model: the model to fill.
    """
    kind = type(source.model)
    if getattr(kind, "finetuned", None) is not type(model):
        return source
    shared = {name: value for name, value in settings(source.model).items() if name in settings(model)}
    return dataclasses.replace(without_decoder(source, kind), model=override(model, shared), labels=None)


def without_decoder(source: WeightsSource, kind: type[VideoMAEPretraining]) -> WeightsSource:
    """Returns the weights of the encoder alone; norm and head of a classifier may stay fresh."""
    dropped = [path for path in source.tensors if re.fullmatch(kind.pretraining_only, path)]
    return dataclasses.replace(
        source,
        tensors={path: x for path, x in source.tensors.items() if path not in dropped},
        may_miss=(*source.may_miss, *FRESH),
        set_aside=(*source.set_aside, *(source.names.get(path, path) for path in dropped)),
        notes=(*source.notes, "the source is a masked autoencoder: its encoder is taken over, its decoder left out"),
    )
