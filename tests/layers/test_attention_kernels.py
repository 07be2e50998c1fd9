"""Attention on GPUs and TPUs: which kernel computes it, what it is lowered to, and that it equals the reference.

No GPU or TPU is needed: cuDNN's call is looked for in the lowered program, and splash attention is interpreted.
"""

import dataclasses
import functools
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import vitx
from vitx.errors import UserError
from vitx.layers import attention_gpu, attention_kernel
from vitx.layers.attention import IMPLEMENTATIONS, choose_implementation, core
from vitx.layers.attention_tpu import attend_by_splash, choose_block
from vitx.models import resolve_implementation

CUDNN, SPLASH = "__cudnn$fmhaSoftmax(", "tpu_custom_call"


def device(**attributes):
    return mock.Mock(spec=jax.Device, **{"compute_capability": None} | attributes)


# a data-centre GPU of 2020, one of 2017, one of AMD, a TPU
AMPERE = device(platform="gpu", device_kind="A100", compute_capability="8.0")
VOLTA = device(platform="gpu", device_kind="V100", compute_capability="7.0")
AMD = device(platform="gpu", device_kind="MI300X", compute_capability="gfx942")
TPU = device(platform="tpu", device_kind="TPU v5 lite")
CPU = device(platform="cpu", device_kind="cpu")


@pytest.fixture(autouse=True)
def installed_cudnn(monkeypatch):
    """JAX asks for cuDNN's version while it lowers, and none is installed beside JAX for CPUs."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    attention_kernel.log_once.cache_clear()


def shapes(tokens, dtype="bfloat16", head_dim=64, batch=2, heads=4):
    return [jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), dtype)] * 3


def lower(function, *arguments, platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def gradients(function):
    return jax.grad(lambda *x: (function(*x).astype("float32") ** 2).sum(), argnums=(0, 1, 2))


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", CPU, "cpu"),
        ("auto", AMPERE, "gpu"),
        ("auto", VOLTA, "reference"),
        ("auto", AMD, "reference"),
        ("auto", TPU, "tpu"),
        ("cudnn", AMPERE, "cudnn"),
        ("splash", TPU, "splash"),
        ("reference", TPU, "reference"),
    ],
)
def test_the_implementation_follows_from_the_device(capsys, name, device, expected):
    assert choose_implementation(name, device) == expected
    assert (device.device_kind in capsys.readouterr().err) is (device in (VOLTA, AMD))
    model = vitx.create_model("vivit_b_16x2", implementation=name)
    assert resolve_implementation(model, device).implementation == expected
    assert resolve_implementation(vitx.create_model("cnn_small"), AMPERE).implementation == "reference"


@pytest.mark.parametrize(
    ("name", "device"), [("cudnn", CPU), ("cudnn", VOLTA), ("gpu", AMD), ("splash", AMPERE), ("tpu", CPU)]
)
def test_an_implementation_forced_on_another_platform_names_both(name, device):
    with pytest.raises(UserError) as error:
        resolve_implementation(vitx.create_model("vivit_b_16x2", implementation=name), device)
    for found in (name, device.device_kind, IMPLEMENTATIONS[name].needs, "auto"):
        assert found in str(error.value)


@pytest.mark.smoke
@pytest.mark.parametrize("tokens", [196, 197])  # without and with a class token
def test_cudnn_computes_attention_and_its_gradients(tokens):
    program = lower(IMPLEMENTATIONS["gpu"].core, *shapes(tokens), platform="cuda")
    assert CUDNN in program and not any(f"4x{n}x{n}x" in program for n in (tokens, tokens + tokens % 2))
    program = lower(gradients(IMPLEMENTATIONS["gpu"].core), *shapes(tokens), platform="cuda")
    assert CUDNN in program and "__cudnn$fmhaSoftmaxBackward(" in program


def test_padding_for_cudnn_is_masked(monkeypatch):
    """With XLA in the place of cuDNN, the padded call equals the reference."""
    attend = jax.nn.dot_product_attention

    def by_xla(*heads, implementation, **lengths):
        assert implementation == "cudnn" and heads[0].shape[1] % 2 == 0
        return attend(*heads, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    heads = jax.random.normal(jax.random.key(0), (3, 2, 7, 2, 8))
    found, expected = (jax.jit(gradients(f))(*heads) for f in (attention_gpu.attend_by_cudnn, core))
    for gradient, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-6)


@pytest.mark.parametrize(
    ("platform", "options", "extra", "found"),
    [
        ("gpu", {"dtype": "float32"}, {}, "dtype float32"),
        ("gpu", {"head_dim": 136}, {}, "head size 136"),
        ("gpu", {"head_dim": 60}, {}, "head size 60"),
        ("gpu", {}, {"bias": (1, 4, 1024, 1024)}, "a bias"),
        ("gpu", {}, {"mask": (2, 1, 1, 1024)}, "a mask"),
        ("tpu", {"dtype": "float16"}, {}, "dtype float16"),
        ("tpu", {}, {"bias": (1, 4, 1024, 1024)}, "a bias"),
        ("tpu", {}, {"mask": (1, 1, 1024, 1024)}, "a mask [1, 1, 1024, 1024]"),
    ],
)
def test_a_kernel_that_cannot_run_falls_back_and_logs_why_or_is_an_error(capsys, platform, options, extra, found):
    heads = shapes(1024, **options)
    extra = {
        name: jax.ShapeDtypeStruct(shape, "float32" if name == "bias" else "bool") for name, shape in extra.items()
    }
    attend = IMPLEMENTATIONS[platform].core
    results = [jax.make_jaxpr(f)(*heads, **extra) for f in (attend, attend, core)]
    assert str(results[0]) == str(results[1]) == str(results[2])
    log = capsys.readouterr().err
    assert log.count("\n") == 1 and f"found {found}" in log
    with pytest.raises(UserError, match=re.escape(found)):
        jax.eval_shape(IMPLEMENTATIONS[{"gpu": "cudnn", "tpu": "splash"}[platform]].core, *heads, **extra)


def test_every_model_in_the_index_has_heads_for_cudnn():
    for name in vitx.list_models():
        model = vitx.create_model(name)
        if hasattr(model, "implementation_for"):
            q = jnp.zeros((1, 2, model.num_heads, model.hidden_size // model.num_heads), "bfloat16")
            assert attention_gpu.find_obstacle(q, q) is None, name


@pytest.mark.parametrize(("platform", "tokens"), [("gpu", 16), ("tpu", 197)])
def test_short_sequences_are_computed_by_xla_without_a_log(capsys, platform, tokens):
    attend = IMPLEMENTATIONS[platform].core
    assert str(jax.make_jaxpr(attend)(*shapes(tokens))) == str(jax.make_jaxpr(core)(*shapes(tokens)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_splash_attention_computes_long_sequences_and_their_gradients(dtype):
    heads = shapes(1569, dtype)
    program = lower(IMPLEMENTATIONS["tpu"].core, *heads, platform="tpu")
    assert program.count(SPLASH) == 1 and "1569x1569" not in program
    # forward, gradients of queries, gradients of keys and values
    assert lower(gradients(IMPLEMENTATIONS["tpu"].core), *heads, platform="tpu").count(SPLASH) == 3


def test_blocks_of_splash_attention_pad_least():
    assert {n: choose_block(n) for n in (1024, 1152, 1569, 3137)} == {1024: 512, 1152: 384, 1569: 256, 3137: 256}


@pytest.mark.parametrize("masked", [False, True])
def test_splash_attention_equals_the_reference(masked):
    """Tokens do not divide by the block, and with a mask some keys are padding."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 260, 2, 8))
    q = q[:, :250]
    mask = (jnp.arange(260) < jnp.array([190, 259])[:, None])[:, None, None] if masked else None

    def by_splash(*heads):
        return attend_by_splash(*heads, mask=mask, interpret=True)

    def by_reference(*heads):
        return core(*heads, mask=mask)

    expected, pull_back = jax.vjp(jax.jit(by_reference), q, k, v)
    found, pull_back_splash = jax.vjp(jax.jit(by_splash), q, k, v)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for gradient, reference in zip(pull_back_splash(expected), pull_back(expected), strict=True):
        np.testing.assert_allclose(gradient, reference, atol=2e-6)


@pytest.mark.parametrize("attend", [functools.partial(attend_by_splash, interpret=True), attention_gpu.attend_by_cudnn])
def test_half_precision_is_as_exact_as_the_reference(monkeypatch, attend):
    """Errors against float32 are about those of the reference, at most half as large again; 251 tokens are padded."""
    by_xla = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *heads, implementation, **lengths: by_xla(*heads, **lengths)
    )
    halves = list(jax.random.normal(jax.random.key(0), (3, 2, 251, 2, 8), "bfloat16"))

    def call(function, *heads):
        out, pull_back = jax.vjp(jax.jit(function), *heads)
        return [np.asarray(x, np.float32) for x in (out, *pull_back(jnp.cos(out)))]

    exact = call(core, *(x.astype("float32") for x in halves))
    for target, expected, found in zip(exact, call(core, *halves), call(attend, *halves), strict=True):
        error, permitted = np.linalg.norm(found - target), np.linalg.norm(expected - target)
        assert 0 < error < 1.5 * permitted + 1e-3 * np.linalg.norm(target)


@pytest.fixture
def one_device():
    axes = ("data", "fsdp", "tensor", "frames")
    return jax.make_mesh((1,) * 4, axes, axis_types=(jax.sharding.AxisType.Auto,) * 4)


@pytest.mark.parametrize(
    ("name", "platform", "call"), [("gpu", "cuda", "__cudnn$fmhaSoftmaxBackward("), ("tpu", "tpu", SPLASH)]
)
@pytest.mark.parametrize("model", ["vivit_b_16x2", "vivit_b_16x2_fdp"])
def test_a_model_on_a_mesh_trains_with_the_kernel(one_device, name, platform, call, model):
    sizes = {"num_layers": 1, "hidden_size": 64, "num_heads": 4, "mlp_dim": 32, "num_classes": 3}
    # 4 x 16 x 16 tokens together, or 32 x 32 of a frame for half of the heads
    frames, size = (8, 256) if model == "vivit_b_16x2" else (2, 512)
    model = vitx.create_model(
        model, num_frames=frames, image_size=size, dtype="bfloat16", implementation=name, scan_layers=True, **sizes
    )
    video = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    with jax.set_mesh(one_device):
        variables = jax.eval_shape(model.init, jax.random.key(0), video)
        step = jax.grad(lambda variables, video: model.apply(variables, video, train=True).sum())
        assert call in lower(step, variables, video, platform=platform)


def test_a_model_with_interpreted_splash_attention_equals_the_reference(one_device, monkeypatch):
    def interpreted(*heads, bias=None, mask=None):
        assert bias is None
        return attend_by_splash(*heads, mask=mask, interpret=True)

    monkeypatch.setitem(IMPLEMENTATIONS, "tpu", dataclasses.replace(IMPLEMENTATIONS["tpu"], core=interpreted))
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "mlp_dim": 16, "num_classes": 3}
    model = vitx.create_model("vivit_b_16x2", num_frames=4, image_size=48, **sizes)
    video = jax.random.normal(jax.random.key(0), (1, 4, 48, 48, 3))
    variables = model.init(jax.random.key(1), video)
    with jax.set_mesh(one_device):
        found, expected = (
            jax.jit(jax.value_and_grad(lambda x, m=m: (m.apply(x, video) ** 2).sum()))(variables)
            for m in (model.copy(implementation="tpu"), model.copy(implementation="reference"))
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4), found, expected)


@pytest.mark.slow
def test_attention_compiles_for_tpus_with_linear_memory():
    pytest.importorskip("libtpu", reason="needs the extra `plan`")
    script = Path(__file__).with_name("attention_on_topology.py")
    subprocess.run([sys.executable, str(script)], check=True)
