"""Image networks as the start of video models: how they are inflated along time, and which ViTs are read."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from vitx.configuration import override
from vitx.errors import UserError
from vitx.interop import trees
from vitx.interop.architectures import encoder_rules, rename_tensors, split_qkv
from vitx.interop.fill import Inflation, WeightsSource
from vitx.interop.names import CONVOLUTION_2D, NORM, PLAIN, NameRule, Tensors, to_ours
from vitx.layers.embeddings import resize_positions
from vitx.models.timesformer import TimeSformer, TimeSformerSpace
from vitx.models.transformer import VideoTransformer
from vitx.models.vivit import FactorisedEncoder

TIMM_RULES = [
    *(NameRule(f"blocks.{{i}}.attn.{x}", f"encoder/block_{{i}}/attention/{x}") for x in ("query", "key", "value")),
    NameRule("blocks.{i}.attn.proj", "encoder/block_{i}/attention/out"),
    NameRule("blocks.{i}.norm1", "encoder/block_{i}/attention_norm", NORM),
    NameRule("blocks.{i}.norm2", "encoder/block_{i}/mlp_norm", NORM),
    NameRule("blocks.{i}.mlp.fc1", "encoder/block_{i}/mlp/hidden"),
    NameRule("blocks.{i}.mlp.fc2", "encoder/block_{i}/mlp/out"),
    NameRule("norm", "encoder/norm", NORM),
    NameRule("head", "head/logits"),
    NameRule("cls_token", "positions/class_token", PLAIN),
    NameRule("pos_embed", "positions/positions", PLAIN),
    NameRule("patch_embed.proj", "embedding", CONVOLUTION_2D),
]
VIT_RULES = [*encoder_rules("vit"), NameRule("vit.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION_2D)]


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """One way in which image ViTs are stored.

    Attributes:
        library: where such files come from, for messages.
        sign: pattern of the beginning of a tensor's name that no other format has.
        to_ours: returns (tensors under our paths, {our path: name in the file}, names that no rule knows).
        function: settings of its models that differ from our defaults.
        unused: patterns of tensors that a video model has no use for.
    """

    library: str
    sign: str
    to_ours: Callable[[Mapping[str, np.ndarray]], tuple[Tensors, dict[str, str], tuple[str, ...]]]
    function: dict[str, Any]
    unused: str = r".*(head|classifier|pre_logits|pooler|fc_norm).*"

    def recognises(self, tensors: Mapping[str, np.ndarray]) -> bool:
        """Returns whether tensors are of this format."""
        return any(re.match(self.sign, name) for name in tensors)

    def is_unused(self, name: str) -> bool:
        """Returns whether a tensor is known to have no use."""
        return re.fullmatch(self.unused, name) is not None


def _read_tree(tensors: Mapping[str, np.ndarray]) -> tuple[Tensors, dict[str, str], tuple[str, ...]]:
    found, names, _ = trees.to_ours(tensors)
    if trees.kernel_axes(tensors) == 4:
        found["embedding/kernel"] = found["embedding/kernel"][None]  # [1, h, w, c, d]: of one frame
    known = [path for path in found if path.startswith(("encoder/", "positions/", "head/", "embedding/"))]
    unknown = tuple(names[path] for path in found if path not in known)
    return {path: found[path] for path in known}, {path: names[path] for path in known}, unknown


FORMATS = {
    "jax": ImageFormat(
        "AugReg's or big_vision",
        r".*Transformer/encoderblock_",
        _read_tree,
        {"activation": "gelu_tanh", "layer_norm_eps": 1e-6},
    ),
    "huggingface": ImageFormat(
        "Hugging Face",
        r"(vit\.)?(encoder\.)?layers?\.\d+\.layernorm_before\.",
        lambda tensors: to_ours(rename_tensors(tensors, "vit"), VIT_RULES),
        {"activation": "gelu", "layer_norm_eps": 1e-12},
    ),
    "timm": ImageFormat(
        "timm",
        r"blocks\.\d+\.attn\.",
        lambda tensors: to_ours(split_qkv(tensors), TIMM_RULES),
        {"activation": "gelu", "layer_norm_eps": 1e-6},
    ),
}


@dataclasses.dataclass(frozen=True)
class FromImage:
    """How an image network becomes a video model.

    Attributes:
        inflation: how the patch kernel, or a convolution's, is extended over frames: "central" puts it at the middle
            frame, zeros elsewhere; "average" spreads it evenly (ViViT, section 3.4, eq. 8 and 9; I3D, section 2.4.1).
        other_attention: how all but the last attention of a block start: as a copy of the image's ("copy"), or with an
            output projection of zeros ("zero"), so that they change nothing at first.
        grid: (rows, columns) of a ViT's patches; None takes the video's where that is square, and refuses another
            number of patches.
    """

    inflation: Inflation = "central"
    other_attention: Literal["copy", "zero"] = "copy"
    grid: tuple[int, int] | None = None


def image_source(
    path: PurePath, kind: ImageFormat, tensors: Mapping[str, np.ndarray], shaped: VideoTransformer, how: FromImage
) -> WeightsSource:
    """Returns an image ViT's tensors as those of a video model.

    Args:
        path: path of the file, for messages.
        kind: format of the tensors.
        tensors: content of the file.
        shaped: video model of the shapes that are wanted.
        how: how the image model is inflated.

    Raises:
        UserError: tensors that every ViT has are missing, or the grid of patches is not known.
    """
    found, names, unknown = kind.to_ours(tensors)
    absent = [name for name in ("embedding/kernel", "embedding/bias", "positions/positions") if name not in found]
    if absent:
        raise UserError(
            f"{path} holds no weights that are known here: like {kind.library}'s image ViT it names "
            f"{', '.join(sorted(tensors)[:3])}, ..., but {', '.join(absent)} are missing"
        )
    # positions already have the requested shape, and the image's activation and epsilon are the video model's
    model = override(shaped, kind.function)
    inflated, sources = inflate(found, model, how)
    used = {sources[path] for path in inflated if path in sources}
    return WeightsSource(
        inflated,
        {path: names[image] for path, image in sources.items() if image in names},
        tuple(name for name in unknown if not kind.is_unused(name)),
        model,
        may_miss=("head/*", "temporal_*", "*_dense/*", "*/class_token", "positions/time_positions"),
        set_aside=(
            *(name for image, name in names.items() if image not in used),
            *(name for name in unknown if kind.is_unused(name)),
        ),
        inflation=how.inflation,
    )


def inflate(image: Mapping[str, np.ndarray], model: VideoTransformer, how: FromImage) -> tuple[Tensors, dict[str, str]]:
    """Returns (the video model's parameters as far as the image's give them, {path of each: the image's path}).

    The kernel keeps its one frame: `fill` inflates it.

    Args:
        image: parameters of an image ViT, named as our encoder's; the kernel [1, height, width, channels, hidden].

    Raises:
        UserError: the image's patches are not as many as the grid says.
    """
    spatial = isinstance(model, FactorisedEncoder)
    encoder, positions = ("spatial_encoder", "spatial_positions") if spatial else ("encoder", "positions")
    found: Tensors = {}
    sources: dict[str, str] = {}
    for path, tensor in image.items():
        if match := re.fullmatch(r"encoder/block_(\d+)/attention(_norm)?/(.*)", path):
            number, norm, rest = match.groups(default="")
            for layout in model.layouts:
                name = "attention" if len(model.layouts) == 1 else f"{layout}_attention"
                other = layout != model.layouts[-1]
                is_zero = other and how.other_attention == "zero" and rest.startswith("out/") and not norm
                ours = f"{encoder}/block_{number}/{name}{norm}/{rest}"
                found[ours], sources[ours] = np.zeros_like(tensor) if is_zero else tensor, path
        elif path.startswith("encoder/"):
            ours = path.replace("encoder", encoder, 1)
            found[ours], sources[ours] = tensor, path
        elif not path.startswith(("positions/", "head/", "embedding/")):
            found[path], sources[path] = tensor, path  # no parameter of ours; `fill` reports it
    for name in ("embedding/kernel", "embedding/bias"):
        found[name], sources[name] = image[name], name
    if getattr(model, "position_kind", "learned") == "learned":
        found[f"{positions}/positions"] = _inflate_positions(image, model, how)
        sources[f"{positions}/positions"] = "positions/positions"
    if model.num_prefix and "positions/class_token" in image:
        found[f"{positions}/class_token"] = image["positions/class_token"]
        sources[f"{positions}/class_token"] = "positions/class_token"
    if isinstance(model, TimeSformer):
        found["positions/time_positions"] = np.zeros((1, model.grid[0], model.hidden_size), np.float32)
    return found, sources


def _inflate_positions(image: Mapping[str, np.ndarray], model: VideoTransformer, how: FromImage) -> np.ndarray:
    table = image["positions/positions"]
    table = table.reshape(1, -1, table.shape[-1])
    t, h, w = model.grid
    rows, columns = how.grid or (h, w)
    num_prefix = table.shape[1] - rows * columns
    if num_prefix not in (0, 1) or (how.grid is None and h != w):
        raise UserError(
            f"the image model has {table.shape[1]} positions, and the video {h}x{w} patches; the grid of the image's "
            "patches cannot be inferred: set from_image=FromImage(grid=(rows, columns)), or --grid on the command line"
        )
    space = np.asarray(resize_positions(table[:, num_prefix:], 0, (1, rows, columns), (1, h, w)))
    if not isinstance(model, FactorisedEncoder | TimeSformer | TimeSformerSpace):
        space = np.tile(space, (1, t, 1))
    if not model.num_prefix:
        return space
    return np.concatenate([table[:, :1] if num_prefix else np.zeros_like(table[:, :1]), space], axis=1)
