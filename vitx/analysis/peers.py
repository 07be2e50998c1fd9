"""PyTorch originals of our models with the same weights, for `vitx bench --against`."""

import dataclasses
import functools
import importlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float

from vitx.analysis.composed_peer import compose
from vitx.errors import UserError
from vitx.interop import cnn, huggingface
from vitx.interop.fill import flatten_variables
from vitx.interop.names import to_theirs
from vitx.models.slowfast import SlowFast, slow_frames
from vitx.models.timesformer import TimeSformerSpace
from vitx.models.transformer import VideoTransformer
from vitx.models.vivit import FactorisedEncoder

# low enough that losses after a step from random weights can be compared
LEARNING_RATE, MOMENTUM = 1e-6, 0.9
TORCHVISION = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d")
# module and name of PyTorchVideo's function, and settings that differ from its defaults
PYTORCHVIDEO: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{name: ("hub", name, {}) for name in ("c2d_r50", "i3d_r50", "slow_r50", "csn_r101", "r2plus1d_r50")},
    **{name: ("hub", name, {}) for name in ("x3d_xs", "x3d_s", "x3d_m", "x3d_l")},
    "slowfast_r50_8x8": ("hub", "slowfast_r50", {}),
    "slowfast_r101_8x8": ("hub", "slowfast_r101", {}),
    "slowfast_r50_4x16": (
        "slowfast",
        "create_slowfast",
        {"slowfast_fusion_conv_kernel_size": (5, 1, 1), "slowfast_fusion_conv_stride": (8, 1, 1)},
    ),
}


@dataclasses.dataclass
class Peer:
    """A PyTorch model and a batch for it.

    Attributes:
        module: the model, on its device.
        video: the batch in the model's layout.
        logits: function from the model's return value to logits.
        half: compute in bfloat16 under PyTorch's autocast.
        mode: how PyTorch runs the model: eager or compiled, with which attention.
    """

    module: Any
    video: Any
    logits: Callable[[Any], Any]
    half: bool
    mode: str = "eager"

    def compile(self) -> None:
        """Compiles the model with `torch.compile`, convolutions channels last; stays eager where that fails."""
        import torch

        eager, shapes = self.module, [parameter.ndim for parameter in self.module.parameters()]
        if 5 in shapes and 4 not in shapes:
            eager = eager.to(memory_format=torch.channels_last_3d)
        try:
            self.module = torch.compile(eager)
            self.forward()
            # The backward pass is compiled apart. Running averages would change in it, so these are left to the steps.
            if not any(name.endswith("running_mean") for name, _ in eager.named_buffers()):
                self._outputs(train=True).sum().backward()
                eager.zero_grad(set_to_none=True)
        except Exception as error:  # whatever its compilers raise: none is needed to measure
            self.module = eager
            self.mode += f" (torch.compile failed: {type(error).__name__})"
        else:
            self.mode = self.mode.replace("eager", "torch.compile", 1)

    def forward(self) -> np.ndarray:
        """Returns the logits in evaluation mode; waits for them."""
        import torch

        with torch.no_grad():
            return self._outputs(train=False).cpu().numpy()

    def train_step(self) -> float:
        """Takes one step of SGD with momentum; returns the loss before it."""
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        logits = self._outputs(train=True)
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def momentum_norm(self) -> float:
        """Returns the norm of the optimiser's momentum."""
        squares = [state["momentum_buffer"].double().square().sum() for state in self.optimizer.state.values()]
        return float(sum(squares)) ** 0.5

    @functools.cached_property
    def optimizer(self) -> Any:
        """The equivalent of `bench.OPTIMIZER`."""
        import torch

        return torch.optim.SGD(self.module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def _outputs(self, *, train: bool) -> Any:
        import torch

        kind = next(self.module.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.half):
            # A copy, since PyTorchVideo 0.1.5 overwrites the pathways in the list that it receives.
            video = list(self.video) if isinstance(self.video, list) else self.video
            return self.logits(self.module.train(train)(video)).float()


def create_peer(
    library: str,
    name: str,
    model: nn.Module,
    variables: Mapping[str, Any],
    video: Float[np.ndarray, "b t h w 3"],
    *,
    threads: int,
    cuda: bool = False,
) -> Peer:
    """Returns the original of a variant with the same weights, without dropout.

    Args:
        library: a key of `LIBRARIES`.
        name: name of the variant.
        model: the variant; fields that change shapes of the original's weights are not supported.
        variables: variables of the model, on the host.
        video: the batch, [batch, frames, height, width, 3].
        threads: number of threads of PyTorch.
        cuda: run on PyTorch's GPU.

    Raises:
        UserError: PyTorch or the library is not installed, has no such model, or its weights are of other shapes.
    """
    try:
        import torch

        torch.set_num_threads(threads)
        module, inputs, logits = LIBRARIES[library](name, model, variables, video)
    except ImportError as error:
        raise UserError(f"--against {library} needs PyTorch and more ({error}); pip install 'vitx[peers]'") from error
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        if isinstance(part, torch.nn.AvgPool3d):
            part.forward = functools.partial(_average_clipped, part.kernel_size)
    device = torch.device("cuda" if cuda else "cpu")
    on_device = jax.tree.map(lambda x: torch.tensor(np.ascontiguousarray(x), device=device), inputs)
    attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
    mode = "eager" + (f", {attention} attention" if attention else "")
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32, as XLA's default for products of float32 on a GPU
        mode += ", TF32 products"
    return Peer(module.to(device), on_device, logits, half=model.dtype == "bfloat16", mode=mode)


def versions(library: str) -> dict[str, str]:
    """Returns the versions of PyTorch and of the library."""
    package = {"huggingface": "transformers"}.get(library, library)
    return {name: importlib.metadata.version(name) for name in ("torch", package)}


def _average_clipped(window: Sequence[Any], x: Any) -> Any:
    """Average pooling with the window clipped to maps that are smaller than it, as in our models."""
    import torch

    sizes = [min(size, side) for size, side in zip(window, x.shape[2:], strict=True)]
    return torch.nn.functional.avg_pool3d(x, sizes, stride=1)


def _create_torchvision(
    name: str, model: nn.Module, variables: Mapping[str, Any], video: np.ndarray
) -> tuple[Any, Any, Any]:
    from torchvision.models import video as originals

    _check_name("torchvision", name, TORCHVISION)
    module = getattr(originals, name)(num_classes=model.num_classes)
    return _load_weights(module, model, variables), video.transpose(0, 4, 1, 2, 3), _identity


def _create_pytorchvideo(
    name: str, model: nn.Module, variables: Mapping[str, Any], video: np.ndarray
) -> tuple[Any, Any, Any]:
    _check_name("pytorchvideo", name, PYTORCHVIDEO)
    submodule, function, settings = PYTORCHVIDEO[name]
    create = getattr(importlib.import_module(f"pytorchvideo.models.{submodule}"), function)
    module = _load_weights(create(model_num_class=model.num_classes, **settings), model, variables)
    if hasattr(module.blocks[-1], "activation"):
        module.blocks[-1].activation = None  # PyTorchVideo's X3D and R(2+1)D end in a softmax
    planes = video.transpose(0, 4, 1, 2, 3)
    if isinstance(model, SlowFast):
        return (
            module,
            [np.asarray(slow_frames(jnp.asarray(video), model.alpha)).transpose(0, 4, 1, 2, 3), planes],
            _identity,
        )
    return module, planes, _identity


def _create_huggingface(
    name: str, model: nn.Module, variables: Mapping[str, Any], video: np.ndarray
) -> tuple[Any, Any, Any]:
    import transformers

    if not isinstance(model, VideoTransformer):
        raise UserError(f"huggingface has no {name}; name another library after --against, or leave it out")
    if isinstance(model, TimeSformerSpace):
        raise UserError(f"huggingface's {name} computes another function, logits for every frame; leave out --against")
    transformers.utils.logging.set_verbosity_error()
    if isinstance(model, FactorisedEncoder):
        return *compose(name, model, variables, video), _identity
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save_huggingface(model, variables, Path(folder) / name)
        load = transformers.AutoModelForVideoClassification.from_pretrained
        try:
            module = load(Path(folder) / name, attn_implementation="sdpa")
        except ValueError as error:
            # Timesformer has no fused attention (transformers 5.24, 2026-11)
            if "scaled_dot_product_attention" not in str(error):
                raise
            module = load(Path(folder) / name)
    return module, video.transpose(0, 1, 4, 2, 3), lambda outputs: outputs.logits


def _load_weights(module: Any, model: nn.Module, variables: Mapping[str, Any]) -> Any:
    import torch

    theirs = to_theirs(flatten_variables(variables), tuple(cnn.original_layout(model).rules(model)))
    weights = {key: torch.tensor(x) for key, x in theirs.items()}
    counters = {key: x for key, x in module.state_dict().items() if key.endswith("num_batches_tracked")}
    try:
        module.load_state_dict(weights | counters)
    except RuntimeError as error:
        raise UserError(f"the original has weights of other shapes; leave out --against, or fields: {error}") from error
    return module


def _check_name(library: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UserError(f"{library} has no {name}; it has {', '.join(known)}")


def _identity(logits: Any) -> Any:
    return logits


LIBRARIES = {
    "huggingface": _create_huggingface,
    "torchvision": _create_torchvision,
    "pytorchvideo": _create_pytorchvideo,
}
