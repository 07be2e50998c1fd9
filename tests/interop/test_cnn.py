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


def torchvision_model(name, **settings):
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        # torchvision's operators are not built for every torch that it is installed beside; none is used here
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_model.library = library  # operators live as long as it does
    from torchvision.models import video

    return getattr(video, name)(num_classes=5, **settings)


# (model, its fields here, its maker there, the shape [frames, height, width] of clips)
LIVE = [
    ("r3d_18", {}, torchvision_model, (8, 32, 32)),
    ("r3d_18", {}, torchvision_model, (9, 37, 50)),
    ("mc3_18", {}, torchvision_model, (5, 33, 48)),
    ("r2plus1d_18", {}, torchvision_model, (8, 32, 32)),
    ("r2plus1d_18", {}, torchvision_model, (11, 45, 35)),
]


def randomise(model):
    """Every tensor random; activations keep their size from layer to layer."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (name.endswith("weight") and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.1)


def facts(model, shape):
    """What a model of PyTorch computes: (its weights, logits in evaluation mode, and in training mode everything).

    Training mode is in float64: a value that rounding takes across a rectifier's kink changes gradients by percents,
    and PyTorch's own in float32 are as far from its own in float64.
    """
    import torch

    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    video = torch.randn(2, *shape, 3)
    with torch.no_grad():
        evaluated = model.eval()(given(model, video))
    trained = model.double().train()(given(model, video.double()))
    torch.nn.functional.cross_entropy(trained, torch.tensor(LABELS)).backward()
    changed = {name: tensor for name, tensor in model.state_dict().items() if "running" in name}
    changed |= {name: tensor.grad for name, tensor in model.named_parameters()}
    changed = {name: x.numpy() for name, x in changed.items()}
    return weights, {"video": video.numpy(), "evaluated": evaluated.numpy()}, changed | {"": trained.detach().numpy()}


def given(model, video):
    """The video as the original takes it."""
    return video.permute(0, 4, 1, 2, 3)


def check(path, name, fields, found, changed):
    """Logits within 1e-4 relative; while training, statistics and gradients by every parameter within 1e-5."""
    model, variables = vitx.load_pretrained(path, name, num_classes=5, dropout_rate=0.0, **fields)
    video = jnp.asarray(found["video"])
    error = apart(jax.jit(model.apply)(variables, video), found["evaluated"])

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
@pytest.mark.parametrize(("name", "fields", "make", "shape"), LIVE)
def test_results_statistics_and_gradients_are_those_of_the_original(name, fields, make, shape, tmp_path):
    import torch

    weights, found, changed = facts(make(name), shape)
    torch.save(weights, tmp_path / "weights.pth")
    check(tmp_path / "weights.pth", name, fields | {"implementation": "cpu"}, found, changed)
