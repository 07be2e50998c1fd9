"""Image networks as the start of video models: how they are inflated along time, and whose ViTs are read."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vitx.errors import UserError
from vitx.interop.fill import Inflation
from vitx.interop.huggingface import encoder_rules, qkv_apart, renamed
from vitx.interop.names import CONVOLUTION_2D, NORM, PLAIN, Rule, Tensors
from vitx.layers.embeddings import resize_positions
from vitx.models.timesformer import TimeSformer, TimeSformerSpace
from vitx.models.transformer import VideoTransformer
from vitx.models.vivit import FactorisedEncoder

TIMM_RULES = [
    *(Rule(f"blocks.{{i}}.attn.{x}", f"encoder/block_{{i}}/attention/{x}") for x in ("query", "key", "value")),
    Rule("blocks.{i}.attn.proj", "encoder/block_{i}/attention/out"),
    Rule("blocks.{i}.norm1", "encoder/block_{i}/attention_norm", NORM),
    Rule("blocks.{i}.norm2", "encoder/block_{i}/mlp_norm", NORM),
    Rule("blocks.{i}.mlp.fc1", "encoder/block_{i}/mlp/hidden"),
    Rule("blocks.{i}.mlp.fc2", "encoder/block_{i}/mlp/out"),
    Rule("norm", "encoder/norm", NORM),
    Rule("head", "head/logits"),
    Rule("cls_token", "positions/class_token", PLAIN),
    Rule("pos_embed", "positions/positions", PLAIN),
    Rule("patch_embed.proj", "embedding", CONVOLUTION_2D),
]
VIT_RULES = [*encoder_rules("vit"), Rule("vit.embeddings.patch_embeddings.projection", "embedding", CONVOLUTION_2D)]


@dataclasses.dataclass(frozen=True)
class ImageKind:
    """One way in which image ViTs are stored.

    Attributes:
        rules: names of its tensors.
        sign: part of a name that only it has.
        renamed: brings its tensors to the names of the rules.
        function: settings of its models that are not our defaults.
        left: patterns of tensors that a video model has no use for.
    """

    rules: Sequence[Rule]
    sign: str
    renamed: Callable[[Mapping[str, np.ndarray]], Tensors]
    function: dict[str, Any]
    left: str = r".*(head|classifier|pre_logits|pooler|fc_norm).*"

    def recognises(self, tensors: Mapping[str, np.ndarray]) -> bool:
        """Whether these are such tensors."""
        return any(self.sign in name for name in tensors)

    def leaves(self, name: str) -> bool:
        """Whether a tensor is known to have no use."""
        return re.fullmatch(self.left, name) is not None


JAX = ImageKind((), "Transformer/", dict, {"activation": "gelu_tanh", "layer_norm_eps": 1e-6})
TIMM = ImageKind(TIMM_RULES, ".attn.", qkv_apart, {"activation": "gelu", "layer_norm_eps": 1e-6})
HUGGINGFACE = ImageKind(
    VIT_RULES,
    ".layernorm_before.",
    functools.partial(renamed, model_type="vit"),
    {"activation": "gelu", "layer_norm_eps": 1e-12},
)


@dataclasses.dataclass(frozen=True)
class FromImage:
    """How an image network becomes a video model.

    Attributes:
        inflation: of the patch kernel, or of a convolution's: "central" puts it at the middle frame, zeros elsewhere;
            "average" spreads it evenly over the frames (ViViT, section 3.4, eq. 8 and 9; I3D, section 2.4.1).
        other_attention: of a Transformer's blocks with several: all but the last start as a copy of the image's
            ("copy"), or as one whose output projection is zero ("zero"), so that they start as nothing.
        grid: (rows, columns) of a ViT's patches; None takes the video's where that is square, and refuses another
            number of patches.
    """

    inflation: Inflation = "central"
    other_attention: Literal["copy", "zero"] = "copy"
    grid: tuple[int, int] | None = None


def inflated(
    image: Mapping[str, np.ndarray], model: VideoTransformer, how: FromImage
) -> tuple[Tensors, dict[str, str]]:
    """Returns (the video model's parameters as far as the image's give them, {path of each: the image's path}).

    The kernel stays as it is, of one frame: `fill` inflates it.

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
                nothing = other and how.other_attention == "zero" and rest.startswith("out/") and not norm
                ours = f"{encoder}/block_{number}/{name}{norm}/{rest}"
                found[ours], sources[ours] = np.zeros_like(tensor) if nothing else tensor, path
        elif path.startswith("encoder/"):
            ours = path.replace("encoder", encoder, 1)
            found[ours], sources[ours] = tensor, path
        elif not path.startswith(("positions/", "head/", "embedding/")):
            found[path], sources[path] = tensor, path  # of no use: it will be told
    for name in ("embedding/kernel", "embedding/bias"):
        found[name], sources[name] = image[name], name
    if getattr(model, "position_kind", "learned") == "learned":
        found[f"{positions}/positions"] = _positions(image, model, how)
        sources[f"{positions}/positions"] = "positions/positions"
    if model.prefix and "positions/class_token" in image:
        found[f"{positions}/class_token"] = image["positions/class_token"]
        sources[f"{positions}/class_token"] = "positions/class_token"
    if isinstance(model, TimeSformer):
        found["positions/time_positions"] = np.zeros((1, model.grid[0], model.hidden_size), np.float32)
    return found, sources


def _positions(image: Mapping[str, np.ndarray], model: VideoTransformer, how: FromImage) -> np.ndarray:
    table = image["positions/positions"]
    table = table.reshape(1, -1, table.shape[-1])
    t, h, w = model.grid
    rows, columns = how.grid or (h, w)
    ahead = table.shape[1] - rows * columns
    if ahead not in (0, 1) or (how.grid is None and h != w):
        raise UserError(
            f"the image model has {table.shape[1]} positions, and the video {h}x{w} patches; say which grid the "
            "image's are, for it is not guessed: from_image=FromImage(grid=(rows, columns)), or --grid on the command "
            "line"
        )
    space = resize_positions(table[:, ahead:], 0, (1, rows, columns), (1, h, w))
    if not isinstance(model, FactorisedEncoder | TimeSformer | TimeSformerSpace):
        space = np.tile(space, (1, t, 1))
    if not model.prefix:
        return space
    return np.concatenate([table[:, :1] if ahead else np.zeros_like(table[:, :1]), space], axis=1)
