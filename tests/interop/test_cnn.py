"""Convolutional networks against torchvision and PyTorchVideo: live on random weights (peers), and on golden files."""

import dataclasses
import functools
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vitx
from vitx.interop import cnn
from vitx.interop.fill import flatten_variables
from vitx.interop.names import to_theirs
from vitx.interop.own import save_own
from vitx.interop.tensors import write_safetensors

GOLDEN = Path(__file__).parent / "golden" / "cnn"
LABELS = np.array([1, 3])


def torchvision_models():
    """torchvision, whose operators are not built for every torch that it is installed beside; none is used here."""
    import torch

    try:
        from torchvision import models
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torchvision_models.library = library  # operators live as long as it does
        from torchvision import models
    return models


def torchvision_model(case):
    import torch

    models = torchvision_models()
    if case.theirs == "resnet50":
        return image_network(models.resnet, case)
    model = getattr(models.video, case.theirs)(num_classes=5, **case.settings)
    if case.fields.get("stages"):
        narrow_s3d(model, case.fields)
    if case.window:
        model.avgpool = torch.nn.AvgPool3d(case.window, stride=1)
    if case.depth:
        for i in range(1, 5):
            setattr(model, f"layer{i}", getattr(model, f"layer{i}")[: case.depth])
    return model


def narrow_s3d(model, fields):
    """Gives torchvision's S3D other widths and fewer blocks, which its settings do not offer."""
    import torch

    s3d = importlib.import_module("torchvision.models.video.s3d")  # the package has a function of that name
    width, layers, norm = fields["width"], list(model.features), functools.partial(torch.nn.BatchNorm3d, eps=1e-3)
    norm.keywords["momentum"] = 1e-3
    narrow = [
        s3d.TemporalSeparableConv(3, width, 7, 2, 3, norm),
        layers[1],
        torch.nn.Sequential(torch.nn.Conv3d(width, width, 1, bias=False), norm(width), torch.nn.ReLU()),
        s3d.TemporalSeparableConv(width, 3 * width, 3, 1, 1, norm),
        layers[4],
    ]
    channels, pools = 3 * width, [layers[7], layers[13]]
    for stage in fields["stages"]:
        for widths in stage:
            plain, before_1, after_1, before_2, after_2, pooled = (original * width // 64 for original in widths)
            block = s3d.SepInceptionBlock3D(channels, plain, before_1, after_1, before_2, after_2, pooled, norm)
            channels = plain + after_1 + after_2 + pooled
            narrow.append(block)
        narrow += [pools.pop(0)] if pools else []
    model.features = torch.nn.Sequential(*narrow)
    model.classifier[1] = torch.nn.Conv3d(channels, 5, 1)


def image_network(resnet, case):
    """torchvision's ResNet-50 of the case's width and depth, which its settings do not offer."""
    import torch

    model, width, block = resnet.resnet50(num_classes=5), case.fields.get("width", 64), resnet.Bottleneck
    model.inplanes = width
    model.conv1 = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
    model.bn1 = torch.nn.BatchNorm2d(width)
    for i, depth in enumerate((3, 4, 6, 3)):
        stage = model._make_layer(block, width * 2**i, case.depth or depth, stride=2 if i else 1)
        setattr(model, f"layer{i + 1}", stage)
    model.fc = torch.nn.Linear(32 * width, 5)
    return model


def pytorchvideo_model(case):
    import torch

    torchvision_models()  # PyTorchVideo imports it
    from pytorchvideo.models import hub, slowfast

    model = getattr(hub if hasattr(hub, case.theirs) else slowfast, case.theirs)(model_num_class=5, **case.settings)
    pool = torch.nn.AvgPool3d(case.window, stride=1)
    if "slowfast" in case.theirs:
        t, h, w = case.window
        fast = torch.nn.AvgPool3d((t * alpha_of(model), h, w), stride=1)
        model.blocks[5].pool = torch.nn.ModuleList([pool, fast])
    elif case.theirs.startswith("x3d"):
        model.blocks[5].pool.pool = pool
        model.blocks[5].activation = None  # theirs ends in a softmax
    else:
        model.blocks[-1].pool = pool
    return model


def alpha_of(model):
    return model.blocks[0].multipathway_fusion.conv_fast_to_slow.stride[0]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network here and its original.

    Attributes:
        name: here.
        theirs: name there.
        shape: (frames, height, width) of the clips.
        window: of the average, there and here.
        fields: here.
        settings: there.
        depth: blocks of each stage, where not all are kept.
    """

    name: str
    theirs: str
    shape: tuple[int, int, int]
    window: tuple[int, int, int] | None = None
    fields: dict = dataclasses.field(default_factory=dict)
    settings: dict = dataclasses.field(default_factory=dict)
    depth: int | None = None

    def __str__(self):
        return f"{self.name}-{'x'.join(map(str, self.shape))}"

    def here(self):
        of_trunk = "trunk." if self.name == "tsn_r50" else ""
        depths = {} if self.depth is None else {f"{of_trunk}depths": (self.depth,) * 4}
        window = {} if self.window is None else {"window": self.window}
        return window | depths | self.fields

    def original(self):
        """The original, created by its authors' code."""
        import torch

        is_torchvision = self.name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "tsn_r50")
        model = (torchvision_model if is_torchvision else pytorchvideo_model)(self)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "res_blocks"):
                module.res_blocks = module.res_blocks[: self.depth]
        return model


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


def summarise(model, shape):
    """What a model of PyTorch computes: (shapes of its weights, logits in evaluation mode, all in training mode).

    Training mode is in float64: a value that rounding takes across a rectifier's kink changes gradients by percents,
    and PyTorch's own in float32 are as far from its own in float64.
    """
    import torch

    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.tensor(x) for name, x in random_weights(shapes).items()})
    video = torch.tensor(random_video(shape))
    with torch.no_grad():
        evaluated = logits_of(model.eval(), video)
    trained = logits_of(model.double().train(), video.double())
    torch.nn.functional.cross_entropy(trained, torch.tensor(LABELS)).backward()
    changed = {name: tensor for name, tensor in model.state_dict().items() if "running" in name}
    changed |= {name: tensor.grad for name, tensor in model.named_parameters()} | {"logits": trained.detach()}
    return shapes, evaluated.numpy(), {name: x.numpy() for name, x in changed.items()}


def logits_of(model, video):
    """The original's logits of a video, given as it takes it; an image network's are averaged over frames."""
    import torch

    if hasattr(model, "conv1"):
        return model(video.flatten(0, 1).permute(0, 3, 1, 2)).unflatten(0, video.shape[:2]).mean(1)
    video = video.permute(0, 4, 1, 2, 3)
    if not hasattr(model, "blocks") or not hasattr(model.blocks[0], "multipathway_fusion"):
        return model(video)
    frames = video.shape[2]
    indices = torch.linspace(0, frames - 1, frames // alpha_of(model)).long()  # as PyTorchVideo's examples pack them
    return model([video[:, :, indices], video])


def check(path, name, fields, shape, evaluated, changed, project=np.asarray):
    """Logits within 1e-4 relative; while training, statistics and gradients by every parameter within 1e-5.

    Args:
        project: returns what is compared of each array of the training step.
    """
    fields = {"num_classes": 5, "dropout_rate": 0.0} | fields
    model, variables = vitx.load_pretrained(path, name, **fields)
    video = jnp.asarray(random_video(shape))
    error = relative_error(jax.jit(model.apply)(variables, video), evaluated)

    @jax.jit
    def training(variables, video):
        def loss(params):
            logits, after = double.apply(variables | {"params": params}, video, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), (logits, after)

        (_, (logits, after)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return logits, flatten_variables({"params": gradient, **after})

    with jax.enable_x64(True):
        double = model.copy(dtype="float64")
        logits, ours = jax.device_get(training(*jax.tree.map(lambda x: x.astype("float64"), (variables, video))))
    ours = to_theirs(ours, tuple(cnn.original_layout(model).rules(model))) | {"logits": logits}
    assert set(ours) == set(changed)
    errors = {name: relative_error(project(ours[name]), change) for name, change in changed.items()}
    worst = max(errors, key=errors.get)
    print(f"{name} {video.shape}: evaluation {error:.1e}, training {errors[worst]:.1e} ({worst})")
    assert error <= 1e-4 and all(value <= 1e-5 for value in errors.values()), errors  # so that no NaN passes


def relative_error(ours, theirs):
    return np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)


def project_gradient(x):
    """Four random projections of an array: small to keep, and no error that matters escapes them."""
    return np.random.RandomState(2).standard_normal((4, x.size)) @ np.ravel(x).astype(np.float64)


NARROW, NARROW_X3D = {"width": 16}, {"width": 8, "hidden_size": 64}
NARROW_S3D = {
    "width": 32,
    "stages": (((64, 96, 128, 16, 32, 32),), ((192, 96, 208, 16, 48, 64),), ((256, 160, 320, 32, 128, 128),)),
}
NARROW_THERE = {"stem_dim_out": 16}
NARROW_FACTORISED_THERE = NARROW_THERE | {"head_activation": None}  # theirs ends in a softmax
NARROW_X3D_THERE = {"stem_dim_in": 4, "head_dim_out": 64}
LIVE = [
    Case("r3d_18", "r3d_18", (8, 32, 32)),
    Case("r3d_18", "r3d_18", (9, 37, 50)),
    Case("mc3_18", "mc3_18", (5, 33, 48)),
    Case("r2plus1d_18", "r2plus1d_18", (11, 45, 35)),
    Case("s3d", "s3d", (25, 65, 50), (2, 2, 1)),
    Case("c2d_r50", "c2d_r50", (8, 64, 64), (4, 2, 2)),
    Case("i3d_r50", "i3d_r50", (11, 97, 70), (4, 2, 2)),
    Case("slow_r50", "slow_r50", (5, 70, 97), (4, 2, 2)),
    Case("csn_r101", "csn_r101", (13, 64, 97), (1, 2, 2), NARROW, NARROW_THERE),
    Case("r2plus1d_r50", "r2plus1d_r50", (16, 64, 64), (2, 2, 2), NARROW, NARROW_FACTORISED_THERE),
    Case("r2plus1d_r50", "r2plus1d_r50", (11, 70, 97), (2, 2, 2), NARROW, NARROW_FACTORISED_THERE),
    Case("slowfast_r50_8x8", "slowfast_r50", (16, 64, 97), (4, 2, 2)),
    Case(
        "slowfast_r50_4x16",
        "create_slowfast",
        (16, 64, 64),
        (2, 2, 2),
        NARROW,
        {
            "stem_dim_outs": (16, 2),
            "slowfast_fusion_conv_stride": (8, 1, 1),
            "slowfast_fusion_conv_kernel_size": (5, 1, 1),
        },
    ),
    Case("slowfast_r101_8x8", "slowfast_r101", (8, 64, 64), (2, 2, 2), NARROW, {"stem_dim_outs": (16, 2)}),
    Case("x3d_xs", "x3d_xs", (4, 64, 64), (4, 2, 2)),
    Case("x3d_s", "x3d_s", (13, 70, 64), (13, 2, 2)),
    Case("x3d_m", "x3d_m", (5, 97, 70), (4, 2, 2)),
    Case("x3d_l", "x3d_l", (3, 64, 64), (3, 2, 2), NARROW_X3D, NARROW_X3D_THERE),
    Case("tsn_r50", "resnet50", (3, 70, 97)),
]
# small, for the files that keep the check where PyTorch is not
KEPT = [
    Case("mc3_18", "mc3_18", (3, 17, 32), depth=1),
    Case("s3d", "s3d", (9, 65, 66), (1, 2, 2), NARROW_S3D),
    Case("r2plus1d_18", "r2plus1d_18", (8, 16, 17), depth=1),
    Case("i3d_r50", "i3d_r50", (5, 64, 33), (2, 1, 2), NARROW, NARROW_THERE, depth=1),
    Case("csn_r101", "csn_r101", (9, 33, 64), (2, 2, 1), NARROW, NARROW_THERE, depth=1),
    Case("r2plus1d_r50", "r2plus1d_r50", (9, 33, 64), (2, 2, 1), NARROW, NARROW_FACTORISED_THERE, depth=1),
    Case("slowfast_r50_8x8", "slowfast_r50", (8, 33, 64), (2, 1, 1), NARROW, {"stem_dim_outs": (16, 2)}, depth=1),
    Case("x3d_xs", "x3d_xs", (3, 33, 64), (2, 2, 2), NARROW_X3D, NARROW_X3D_THERE, depth=2),
    Case("tsn_r50", "resnet50", (2, 33, 64), fields=NARROW, depth=1),
]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorchVideo is older than the torch that it runs with
@pytest.mark.filterwarnings("ignore::FutureWarning")  # likewise: it scripts functions
@pytest.mark.parametrize("case", LIVE, ids=str)
def test_results_statistics_and_gradients_are_those_of_the_original(case, tmp_path):
    import torch

    shapes, evaluated, changed = summarise(case.original(), case.shape)
    weights = {name: torch.tensor(x) for name, x in random_weights(shapes).items()}
    torch.save({"model_state": weights}, tmp_path / "weights.pyth")
    check(tmp_path / "weights.pyth", case.name, case.here() | {"implementation": "cpu"}, case.shape, evaluated, changed)


# the two that take longest are run by hand
WIDE = ("s3d", "r2plus1d_18")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case.name in WIDE else case for case in KEPT],
    ids=str,
)
def test_golden_files_of_the_originals_equal_our_outputs(case, tmp_path):
    golden = json.loads((GOLDEN / f"{case.name}.json").read_text())
    write_safetensors(random_weights(golden["shapes"]), tmp_path / "weights.safetensors", {})
    found = (golden["evaluated"], golden["changed"])
    fields = case.here() | {"implementation": "cpu"}  # convolutions of float64 are slow elsewhere
    check(tmp_path / "weights.safetensors", case.name, fields, case.shape, *found, project=project_gradient)


@pytest.fixture
def weights():
    golden = json.loads((GOLDEN / "mc3_18.json").read_text())
    return random_weights(golden["shapes"])


def load(weights, tmp_path, name="mc3_18", **fields):
    write_safetensors(weights, tmp_path / "weights.safetensors", {})
    return vitx.load_pretrained(tmp_path / "weights.safetensors", name, **{"depths": (1, 1, 1, 1)} | fields)


def test_a_head_of_other_classes_is_fresh_and_counters_of_batches_are_ignored(weights, tmp_path):
    loaded = load(weights, tmp_path, num_classes=(("verb", 3), ("noun", 4)))
    assert set(loaded.report.left_over) == {"fc.weight", "fc.bias"}
    assert {path.split("/")[1] for path in loaded.report.fresh} == {"verb", "noun"}
    assert (loaded.preprocessing.num_frames, loaded.preprocessing.size) == (16, (112, 112))
    _, variables = loaded
    found = variables["batch_stats"]["stage_2"]["block_0"]["shortcut"]["norm"]["var"]
    np.testing.assert_array_equal(found, weights["layer2.0.downsample.1.running_var"])


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (
            lambda w: w,
            "slow_r50",
            "holds torchvision's r3d_18, mc3_18 or r2plus1d_18 .* BottleneckResNet is read from",
        ),
        (
            lambda w: w,
            "r3d_18",
            r"layer2.0.conv1.0.weight has shape \[1, 3, 3, 64, 128\], expected \[3, 3, 3, 64, 128\]",
        ),
        (lambda w: w, "r2plus1d_18", "does not fit ResNet3D:.*missing"),
        (lambda w: w, "convlstm_small", "ConvLSTM is read from runs of vitx"),
        (lambda w: {n: x for n, x in w.items() if "running" not in n}, "mc3_18", "no statistics of batch normalis"),
        (
            lambda w: {n: x for n, x in w.items() if n != "stem.1.running_var"},
            "mc3_18",
            r"missing stem_a/norm/var \(statistics of",
        ),
        (lambda w: {n.replace(".", "_"): x for n, x in w.items()}, "mc3_18", r"no weights.* ResNet3D is read from"),
        (lambda w: w | {"extra.weight": w["fc.weight"]}, "mc3_18", "unexpected extra.weight"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, name, message, weights, tmp_path):
    depths = {"slow_r50": {"depths": (3, 4, 6, 3)}, "convlstm_small": {}}.get(name, {"depths": (1, 1, 1, 1)})
    with pytest.raises(vitx.UserError, match=f"(?s){message}"):
        load(change(weights), tmp_path, name, **depths, num_classes=5)


def test_prefixes_of_wrappers_around_a_state_dict_are_removed(weights, tmp_path):
    fields = {"depths": (1, 1, 1, 1), "num_classes": 5}
    plain = load(weights, tmp_path, "mc3_18", **fields)
    wrapped = load({f"module._orig_mod.{n}": x for n, x in weights.items()}, tmp_path, "mc3_18", **fields)
    jax.tree.map(np.testing.assert_array_equal, wrapped.variables, plain.variables)
    assert "'module._orig_mod.'" in "".join(wrapped.report.notes)


def test_a_state_dict_of_another_variant_is_refused_with_its_name_and_its_number_of_classes(tmp_path):
    model = vitx.create_model("r3d_18", num_classes=8)
    shapes = flatten_variables(jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.input_shape))))
    zeros = {path: np.zeros(x.shape, np.float32) for path, x in shapes.items()}
    write_safetensors(to_theirs(zeros, tuple(cnn.resnet3d_rules(model))), tmp_path / "weights.safetensors", {})
    with pytest.raises(vitx.UserError) as caught:
        vitx.load_pretrained(tmp_path / "weights.safetensors", "mc3_18")
    assert "these are the weights of r3d_18" in str(caught.value)
    with pytest.raises(
        vitx.UserError, match=r"(?s)fc.weight has shape.* of head/logits/kernel\n.*num_classes 8 keeps [^\n]*$"
    ):
        vitx.load_pretrained(tmp_path / "weights.safetensors", "r3d_18")
    assert not vitx.load_pretrained(tmp_path / "weights.safetensors", "r3d_18", num_classes=8).report.fresh


def test_files_and_variables_without_batch_statistics_are_refused(tmp_path):
    model = vitx.create_model("mc3_18", width=4, num_classes=3)
    video = jnp.zeros((1, *model.input_shape))
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)
    params = {"params": jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["params"])}
    save_own(model, params, tmp_path / "own.safetensors", preprocessing=None, labels=None)
    with pytest.raises(vitx.UserError, match=r"missing .*norm/mean.*statistics of batch normalisation, without which"):
        vitx.load_pretrained(tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="no statistics of batch normalisation"):
        jax.eval_shape(model.apply, params, video)


def test_hugging_face_has_no_convolutional_networks(weights, tmp_path):
    with pytest.raises(vitx.UserError, match=r"Hugging Face has no ResNet3D; write one \.safetensors file instead"):
        vitx.save_huggingface(*load(weights, tmp_path, num_classes=5), tmp_path / "new")
