"""Hugging Face's kinds of video Transformers, Vivit, Timesformer and VideoMAE: names of tensors, settings."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import linen as nn

from vitx.errors import UserError, did_you_mean
from vitx.interop.names import CONVOLUTION, CONVOLUTION_2D, NORM, PLAIN, NameRule, Tensors
from vitx.layers.embeddings import height_and_width
from vitx.models.timesformer import TimeSformer, TimeSformerSpace
from vitx.models.transformer import VideoEncoder, VideoTransformer
from vitx.models.videomae import VideoMAE, VideoMAEPretraining
from vitx.models.vivit import ViViT


def block_rules(theirs: str, ours: str, attention: str = "attention") -> list[NameRule]:
    """Returns the rules of a block; `attention` is our name of the module that the library calls "attention"."""
    return [
        *(NameRule(f"{theirs}.attention.attention.{x}", f"{ours}/{attention}/{x}") for x in ("query", "key", "value")),
        NameRule(f"{theirs}.attention.output.dense", f"{ours}/{attention}/out"),
        NameRule(f"{theirs}.layernorm_before", f"{ours}/{attention}_norm", NORM),
        NameRule(f"{theirs}.layernorm_after", f"{ours}/mlp_norm", NORM),
        NameRule(f"{theirs}.intermediate.dense", f"{ours}/mlp/hidden"),
        NameRule(f"{theirs}.output.dense", f"{ours}/mlp/out"),
    ]


def encoder_rules(prefix: str, attention: str = "attention") -> list[NameRule]:
    """Returns the rules of an encoder with its positions and head; see `block_rules` for `attention`."""
    return [
        *block_rules(f"{prefix}.encoder.layer.{{i}}", "encoder/block_{i}", attention),
        NameRule(f"{prefix}.layernorm", "encoder/norm", NORM),
        NameRule("classifier", "head/logits"),
        NameRule(f"{prefix}.embeddings.cls_token", "positions/class_token", PLAIN),
        NameRule(f"{prefix}.embeddings.position_embeddings", "positions/positions", PLAIN),
    ]


VIVIT_RULES = [
    *encoder_rules("vivit"),
    NameRule("vivit.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION),
]
TIMESFORMER_RULES = [
    *encoder_rules("timesformer"),
    NameRule("timesformer.embeddings.time_embeddings", "positions/time_positions", PLAIN),
    NameRule("timesformer.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION_2D),
]
TIME = "timesformer.encoder.layer.{i}.temporal_"
DIVIDED_RULES = [
    *encoder_rules("timesformer", "space_attention"),
    *TIMESFORMER_RULES[-2:],
    *(
        NameRule(f"{TIME}attention.attention.{x}", f"encoder/block_{{i}}/time_attention/{x}")
        for x in ("query", "key", "value")
    ),
    NameRule(f"{TIME}attention.output.dense", "encoder/block_{i}/time_attention/out"),
    NameRule(f"{TIME}layernorm", "encoder/block_{i}/time_attention_norm", NORM),
    NameRule(f"{TIME}dense", "encoder/block_{i}/time_dense"),
]
VIDEOMAE_RULES = [
    *encoder_rules("videomae"),
    NameRule("videomae.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION),
    NameRule("fc_norm", "norm", NORM),
    *block_rules("decoder.decoder_layers.{i}", "decoder/block_{i}"),
    NameRule("encoder_to_decoder", "to_decoder"),
    NameRule("mask_token", "mask_token", PLAIN),
    NameRule("decoder.norm", "decoder_norm", NORM),
    NameRule("decoder.head", "to_pixels"),
]
# (pattern, replacement) from names that transformers 5 writes, and those of VideoMAE's biases, to names in the rules.
RENAMED = [
    (re.compile(r"^(\w+)\.layers\.(\d+)\."), r"\1.encoder.layer.\2."),
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
    (re.compile(r"\.attention\.q_bias$"), ".attention.query.bias"),
    (re.compile(r"\.attention\.v_bias$"), ".attention.value.bias"),
]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One kind of model that Hugging Face has.

    Attributes:
        model_type: kind of the model in config.json.
        class_name: class of the model in transformers.
        processor: class of its preprocessing in transformers.
        rules: names of its tensors.
        model: our model, with the settings that config.json does not name.
        fits: returns whether one of our models is of this kind.
        fields: returns our settings that not all kinds share, given config.json.
        settings: returns the settings of config.json that not all kinds share, given our model.
        kind: (entry of config.json, its value) that distinguishes the kinds of a model_type; None for a single kind.
        rewrite: returns the tensors under the names of the hub's files, given those under the names of `rules`.
        note: returns a note for users of transformers, printed when a model's weights are saved.
    """

    model_type: str
    class_name: str
    processor: str
    rules: Sequence[NameRule]
    model: VideoEncoder
    fits: Callable[[VideoEncoder], bool]
    fields: Callable[[Mapping[str, Any]], dict[str, Any]]
    settings: Callable[[VideoEncoder], dict[str, Any]]
    kind: tuple[str, str] | None = None
    rewrite: Callable[[Tensors], Tensors] = lambda tensors: tensors
    note: Callable[[VideoEncoder], str] = lambda model: ""


def _join_qkv(tensors: Tensors) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.query\.(weight|bias)", name):
            parts = [tensors[f"{match[1]}.{part}.{match[2]}"] for part in ("query", "key", "value")]
            found[f"{match[1]}.qkv.{match[2]}"] = np.concatenate(parts)
        elif not re.fullmatch(r".*\.(key|value)\.(weight|bias)", name):
            found[name] = tensor
    return found


def _name_biases(tensors: Tensors) -> Tensors:
    """Returns VideoMAE's tensors as transformers 4 names them, which 5 reads too."""
    found = {}
    for name, tensor in tensors.items():
        name = re.sub(r"\.attention\.query\.bias$", ".attention.q_bias", name)
        found[re.sub(r"\.attention\.value\.bias$", ".attention.v_bias", name)] = tensor
    return found


def _fits_vivit(model: VideoEncoder) -> bool:
    is_first = isinstance(model, ViViT) and model.layouts == ("joint",) and model.pooling == "class"
    return is_first and model.position_kind == "learned"


def _is_square(model: VideoEncoder) -> bool:
    rows, columns = height_and_width(model.image_size)
    return rows == columns and model.tubelet_size[1] == model.tubelet_size[2]


def _fits_timesformer(model: VideoEncoder, like: VideoTransformer) -> bool:
    same = type(model) is type(like) and model.layouts == like.layouts and model.pooling == "class"
    return same and _is_square(model) and model.tubelet_size[0] == 1  # transformers has squares alone


def _create_timesformer(
    attention_type: str, rules: Sequence[NameRule], model: VideoTransformer, note: str = ""
) -> Architecture:
    return Architecture(
        model_type="timesformer",
        class_name="TimesformerForVideoClassification",
        processor="VideoMAEImageProcessor",
        rules=rules,
        model=model,
        fits=functools.partial(_fits_timesformer, like=model),
        fields=lambda config: {
            "tubelet_size": (1, config["patch_size"], config["patch_size"]),
            "drop_path_rate": config.get("drop_path_rate", 0.0),
        },
        # drop_path_rate is not written: the config of transformers 5.0 (2026-01) accepts whole numbers only
        settings=lambda model: {"patch_size": model.tubelet_size[1], "attention_type": attention_type},
        kind=("attention_type", attention_type),
        rewrite=_join_qkv,
        note=lambda model: note,
    )


THEIR_FINAL_NORM_EPS = 1e-5  # epsilon of VideoMAE's fc_norm and decoder.norm, whatever its config.json says
# {our setting: (setting of config.json, its default, which transformers leaves out)}
DECODER_SETTINGS = {
    "decoder_hidden_size": ("decoder_hidden_size", 384),
    "decoder_num_layers": ("decoder_num_hidden_layers", 4),
    "decoder_num_heads": ("decoder_num_attention_heads", 6),
    "decoder_mlp_dim": ("decoder_intermediate_size", 1536),
}


def _fits_videomae(model: VideoEncoder, like: VideoEncoder) -> bool:
    square = model.tubelet_size[1] == model.tubelet_size[2]
    same = type(model) is type(like) and model.layouts == ("joint",) and square
    return same and getattr(model, "pooling", "mean") == "mean"


def _read_videomae_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "tubelet_size": (config["tubelet_size"], config["patch_size"], config["patch_size"]),
        "qkv_bias": config.get("qv_bias", config.get("qkv_bias", True)),
    }


def _write_videomae_settings(model: VideoEncoder) -> dict[str, Any]:
    return {
        "tubelet_size": model.tubelet_size[0],
        "patch_size": model.tubelet_size[1],
        "qv_bias": model.qkv_bias,
        "use_mean_pooling": True,
    }


def _read_classifier_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    if not config.get("use_mean_pooling", True):
        raise UserError(
            "use_mean_pooling in config.json is False, which classifies the first token; expected True, the mean of all"
        )
    return _read_videomae_fields(config) | {"final_norm_eps": THEIR_FINAL_NORM_EPS}


def _read_autoencoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    decoder = {ours: config.get(theirs, default) for ours, (theirs, default) in DECODER_SETTINGS.items()}
    encoder_norm = not config.get("use_mean_pooling", True)
    return (
        _read_videomae_fields(config)
        | decoder
        | {"encoder_norm": encoder_norm, "decoder_norm_eps": THEIR_FINAL_NORM_EPS}
    )


def _write_autoencoder_settings(model: VideoEncoder) -> dict[str, Any]:
    decoder = {theirs: getattr(model, ours) for ours, (theirs, _) in DECODER_SETTINGS.items()}
    return _write_videomae_settings(model) | decoder | {"use_mean_pooling": not model.encoder_norm}


def _describe_final_norm(model: VideoEncoder) -> str:
    eps = model.final_norm_eps if isinstance(model, VideoMAE) else model.decoder_norm_eps
    if eps == THEIR_FINAL_NORM_EPS:
        return ""
    return f"transformers adds {THEIR_FINAL_NORM_EPS} to the variance in the last norm, this model {eps}"


def _create_videomae(
    class_name: str,
    model: VideoEncoder,
    fields: Callable[[Mapping[str, Any]], dict[str, Any]],
    settings: Callable[[VideoEncoder], dict[str, Any]],
) -> Architecture:
    return Architecture(
        model_type="videomae",
        class_name=class_name,
        processor="VideoMAEImageProcessor",
        rules=VIDEOMAE_RULES,
        model=model,
        fits=functools.partial(_fits_videomae, like=model),
        fields=fields,
        settings=settings,
        kind=("architectures", class_name),
        rewrite=_name_biases,
        note=_describe_final_norm,
    )


# One entry for each kind of model; config.json's model_type, and its entry that `kind` names, choose one.
ARCHITECTURES = (
    Architecture(
        model_type="vivit",
        class_name="VivitForVideoClassification",
        processor="VivitImageProcessor",
        rules=VIVIT_RULES,
        model=ViViT(),
        fits=_fits_vivit,
        fields=lambda config: {"tubelet_size": config["tubelet_size"]},
        settings=lambda model: {"tubelet_size": list(model.tubelet_size)},
    ),
    _create_timesformer("divided_space_time", DIVIDED_RULES, TimeSformer()),
    _create_timesformer("joint_space_time", TIMESFORMER_RULES, TimeSformer(layouts=("joint",))),
    _create_timesformer(
        "space_only",
        TIMESFORMER_RULES,
        TimeSformerSpace(),
        note="transformers 5 gives space-only attention logits for every frame; its authors, and vitx, average the "
        "frames before the last norm",
    ),
    _create_videomae("VideoMAEForVideoClassification", VideoMAE(), _read_classifier_fields, _write_videomae_settings),
    _create_videomae(
        "VideoMAEForPreTraining", VideoMAEPretraining(), _read_autoencoder_fields, _write_autoencoder_settings
    ),
)
MODEL_TYPES = tuple(dict.fromkeys(architecture.model_type for architecture in ARCHITECTURES))


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """Returns the kind of model that a config.json describes.

    Raises:
        UserError: it is not known here.
    """
    model_type = str(config.get("model_type"))
    of_type = [architecture for architecture in ARCHITECTURES if architecture.model_type == model_type]
    if not of_type:
        raise UserError(
            f"{where} describes a model of type {config.get('model_type')!r}{did_you_mean(model_type, MODEL_TYPES)} "
            f"Known are {', '.join(MODEL_TYPES)}"
        )
    if of_type[0].kind is None:
        return of_type[0]
    entry, default = of_type[0].kind  # the first is the default of transformers
    kinds = {architecture.kind[1]: architecture for architecture in of_type if architecture.kind}
    found = config.get(entry) or default
    kind = str(found[0] if isinstance(found, list) else found)
    if kind not in kinds:
        raise UserError(f"{where} has {entry} {kind!r}; expected one of {', '.join(kinds)}")
    return kinds[kind]


BARE_LAYER = re.compile(r"(encoder\.)?layers?\.\d+\.")
"""Beginning of the names of a layer of a bare backbone."""


def family_of(tensors: Mapping[str, np.ndarray]) -> str | None:
    """Returns the model_type where the tensors are of such a model or its bare backbone."""
    for family in MODEL_TYPES:
        if any(name.startswith(f"{family}.") for name in tensors):
            return family
    if any(BARE_LAYER.match(name) and name.endswith(".attention.q_bias") for name in tensors):
        return "videomae"
    kernels = [x for name, x in tensors.items() if name == "embeddings.patch_embeddings.projection.weight"]
    if kernels and kernels[0].ndim == 5:
        return "vivit"
    is_timesformer = any(BARE_LAYER.match(name) and ".attention.attention.qkv." in name for name in tensors)
    return "timesformer" if is_timesformer else None


def rename_tensors(tensors: Mapping[str, np.ndarray], model_type: str) -> Tensors:
    """Returns the tensors under the names of the hub, transformers 4's; queries, keys and values split."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(("embeddings.", "encoder.", "layernorm.", "layers.")):
            name = f"{model_type}.{name}"  # a bare backbone
        for pattern, replacement in RENAMED:
            name = pattern.sub(replacement, name)
        found[name] = tensor
    return split_qkv(found)


def split_qkv(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the tensors with queries, keys and values split where one tensor holds all three."""
    found = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.qkv\.(weight|bias)", name):
            if len(tensor) % 3:
                raise UserError(f"{name} has shape {list(tensor.shape)}; expected queries, keys and values in one")
            for part, name in zip(np.split(tensor, 3), ("query", "key", "value"), strict=True):
                found[f"{match[1]}.{name}.{match[2]}"] = part
        else:
            found[name] = tensor
    return found


def find_architecture(model: nn.Module) -> Architecture | None:
    """Returns the kind of model that Hugging Face has for one of ours, or None."""
    if not isinstance(model, VideoEncoder) or model.sampled_frames:
        return None
    return next((architecture for architecture in ARCHITECTURES if architecture.fits(model)), None)


def architecture_for(model: nn.Module) -> Architecture:
    """Returns the kind of model that Hugging Face has for one of ours.

    Raises:
        UserError: it has none.
    """
    if not isinstance(model, VideoEncoder):
        raise UserError(f"Hugging Face has no {type(model).__name__}; write one .safetensors file instead")
    architecture = find_architecture(model)
    if architecture is None:
        raise UserError(
            f"Hugging Face has no model like this {type(model).__name__} (layouts {model.layouts}, pooling "
            f"{getattr(model, 'pooling', None)!r}); it has ViViT 1 with a class token and, for squares, TimeSformer "
            "divided, joint and space and VideoMAE with a mean. Write one .safetensors file instead"
        )
    return architecture
