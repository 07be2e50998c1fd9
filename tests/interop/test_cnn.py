"""Convolutional networks against torchvision and PyTorchVideo: live on random weights (peers), and on golden files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vitx
from vitx.interop import cnn
from vitx.interop.fill import flattened
from vitx.interop.names import PLAIN, Rule, to_ours

GOLDEN = Path(__file__).parent / "golden" / "cnn"
LABELS = np.array([1, 3])


def torchvision_model(name, window=None, **settings):
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        # torchvision's operators are not built for every torch that it is installed beside; none is used here
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_model.library = library  # operators live as long as it does
    from torchvision.models import video

    model = getattr(video, name)(num_classes=5, **settings)
    if window:
        model.avgpool = torch.nn.AvgPool3d(window, stride=1)
    return model


def pytorchvideo_model(name, window, **settings):
    import torch

    torchvision_model("r3d_18")  # PyTorchVideo imports torchvision
    from pytorchvideo.models import hub

    model = getattr(hub, name)(model_num_class=5, **settings)
    pool = torch.nn.AvgPool3d(window, stride=1)
    if name.startswith("slowfast"):
        fast = torch.nn.AvgPool3d((window[0] * alpha_of(model), *window[1:]), stride=1)
        model.blocks[5].pool = torch.nn.ModuleList([pool, fast])
    elif name.startswith("x3d"):
        model.blocks[5].pool.pool = pool
        model.blocks[5].activation = None  # theirs ends in a softmax
    else:
        model.blocks[-1].pool = pool
    return model


def alpha_of(model):
    return model.blocks[0].multipathway_fusion.conv_fast_to_slow.stride[0]


# (name here, fields here, name there, settings there, (frames, height, width) of clips)
ORIGINALS = [
    ("r3d_18", {}, torchvision_model, "r3d_18", {}, (8, 32, 32)),
    ("r3d_18", {}, torchvision_model, "r3d_18", {}, (9, 37, 50)),
    ("mc3_18", {}, torchvision_model, "mc3_18", {}, (5, 33, 48)),
    ("r2plus1d_18", {}, torchvision_model, "r2plus1d_18", {}, (11, 45, 35)),
    ("s3d", {"window": (2, 2, 1)}, torchvision_model, "s3d", {}, (25, 65, 50)),
    ("c2d_r50", {"window": (4, 2, 2)}, pytorchvideo_model, "c2d_r50", {}, (8, 64, 64)),
    ("i3d_r50", {"window": (4, 2, 2)}, pytorchvideo_model, "i3d_r50", {}, (11, 97, 70)),
    ("slow_r50", {"window": (4, 2, 2)}, pytorchvideo_model, "slow_r50", {}, (5, 70, 97)),
    (
        "csn_r101",
        {"window": (1, 2, 2), "width": 16},
        pytorchvideo_model,
        "csn_r101",
        {"stem_dim_out": 16},
        (13, 64, 97),
    ),
    ("slowfast_r50_8x8", {"window": (4, 2, 2)}, pytorchvideo_model, "slowfast_r50", {}, (16, 64, 97)),
    (
        "slowfast_r50_4x16",
        {"window": (2, 2, 2), "width": 16, "fusion_size": 7},
        pytorchvideo_model,
        "slowfast_r50",
        {"stem_dim_outs": (16, 2), "slowfast_fusion_conv_stride": (8, 1, 1)},
        (16, 64, 64),
    ),
    (
        "slowfast_r101_8x8",
        {"window": (2, 2, 2), "width": 16},
        pytorchvideo_model,
        "slowfast_r101",
        {"stem_dim_outs": (16, 2)},
        (8, 64, 64),
    ),
    ("x3d_xs", {"window": (4, 2, 2)}, pytorchvideo_model, "x3d_xs", {}, (4, 64, 64)),
    ("x3d_m", {"window": (4, 2, 2)}, pytorchvideo_model, "x3d_m", {}, (5, 97, 70)),
    (
        "x3d_l",
        {"window": (3, 2, 2), "width": 8, "hidden_size": 64},
        pytorchvideo_model,
        "x3d_l",
        {"stem_dim_in": 4, "head_dim_out": 64},
        (3, 64, 64),
    ),
]


def random_weights(shapes):
    """Every tensor random, and the same on every machine; activations keep their size from layer to layer.

    Args:
        shapes: {name: shape} of a state dict.
    """
    random = np.random.RandomState(0)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = np.array(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            last = 0.3 if name.endswith("norm_c.weight") else 1  # what deep networks add up stays small
            weights[name] = (last * random.uniform(0.5, 1.5, shape)).astype(np.float32)
        else:
            scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
            weights[name] = (scale * random.standard_normal(shape)).astype(np.float32)
    return weights


def random_video(shape):
    return np.random.RandomState(1).standard_normal((2, *shape, 3)).astype(np.float32)


def facts(model, shape):
    """What a model of PyTorch computes: (shapes of its weights, logits in evaluation mode, all in training mode).

    Training mode is in float64: a value that rounding takes across a rectifier's kink changes gradients by percents,
    and PyTorch's own in float32 are as far from its own in float64.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.tensor(x) for name, x in random_weights(shapes).items()})
    video = torch.tensor(random_video(shape))
    with torch.no_grad():
        evaluated = model.eval()(given(model, video))
    trained = model.double().train()(given(model, video.double()))
    torch.nn.functional.cross_entropy(trained, torch.tensor(LABELS)).backward()
    changed = {name: tensor for name, tensor in model.state_dict().items() if "running" in name}
    changed |= {name: tensor.grad for name, tensor in model.named_parameters()} | {"": trained.detach()}
    return shapes, evaluated.numpy(), {name: x.numpy() for name, x in changed.items()}


def given(model, video):
    """The video as the original takes it."""
    import torch

    video = video.permute(0, 4, 1, 2, 3)
    if not hasattr(model, "blocks") or not hasattr(model.blocks[0], "multipathway_fusion"):
        return video
    frames = video.shape[2]
    indices = torch.linspace(0, frames - 1, frames // alpha_of(model)).long()  # as PyTorchVideo's examples pack them
    return [video[:, :, indices], video]


def check(path, name, fields, shape, evaluated, changed):
    """Logits within 1e-4 relative; while training, statistics and gradients by every parameter within 1e-5."""
    model, variables = vitx.load_pretrained(path, name, num_classes=5, dropout_rate=0.0, **fields)
    video = jnp.asarray(random_video(shape))
    error = apart(jax.jit(model.apply)(variables, video), evaluated)

    @jax.jit
    def training(variables, video):
        def loss(params):
            logits, after = double.apply(variables | {"params": params}, video, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), (logits, after)

        (_, (logits, after)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return {"": logits, **flattened({"params": gradient, **after})}

    with jax.enable_x64(True):
        double = model.copy(dtype="float64")
        ours = training(*jax.tree.map(lambda x: x.astype("float64"), (variables, video)))
    expected, _, unknown = to_ours(changed, (Rule("", "", PLAIN), *cnn.LAYOUTS[type(model)].rules(model)))
    assert not unknown and set(ours) == set(expected)
    errors = {path: apart(ours[path], each) for path, each in expected.items()}
    worst = max(errors, key=errors.get)
    print(f"{name} {video.shape}: evaluation {error:.1e}, training {errors[worst]:.1e} ({worst or 'logits'})")
    assert error <= 1e-4 and errors[worst] <= 1e-5


def apart(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorchVideo is older than the torch that it runs with
@pytest.mark.parametrize(("name", "fields", "make", "theirs", "settings", "shape"), ORIGINALS)
def test_results_statistics_and_gradients_are_those_of_the_original(
    name, fields, make, theirs, settings, shape, tmp_path
):
    import torch

    model = make(theirs, fields.get("window"), **settings)
    shapes, evaluated, changed = facts(model, shape)
    weights = {name: torch.tensor(x) for name, x in random_weights(shapes).items()}
    torch.save(weights, tmp_path / "weights.pth")
    check(tmp_path / "weights.pth", name, fields | {"implementation": "cpu"}, shape, evaluated, changed)
