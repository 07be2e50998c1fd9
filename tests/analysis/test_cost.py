"""Cost: exact counts of published rows, loops, convolutions, and growth with the number of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import vitx
from vitx.analysis import growth
from vitx.analysis.cost import count_cost, macs_of

# multiply-accumulates counted on other implementations (PyTorch's operation counter, and by hand), in units of 10⁹
COUNTED = [
    ("vivit_b_16x2", {}, 88_954_000, 451.525),
    ("vivit_b_16x2_fe", {}, 115_062_928, 283.3),
    ("vivit_b_16x2_fsa", {}, 117_319_312, 371.1),
    ("vivit_b_16x2_fdp", {}, 88_952_464, 276.2),
    ("vivit_b_16x2_avg", {}, 86_696_080, 282.9),
    ("vivit_l_16x2", {}, 307_508_624, 1436.0),
    ("vivit_l_16x2_fe", {"num_temporal_layers": 24}, 606_827_920, 992.5),
    ("vivit_l_16x2_fe", {}, 354_903_440, 988.2),
    ("timesformer_hr", {}, 122_024_080, 1702.686),
    ("timesformer_b_16_joint", {}, 86_112_400, 179.563),
    ("timesformer_b_16_space", {}, 86_106_256, 140.507),
]


@pytest.mark.parametrize(("name", "fields", "params", "gmacs"), COUNTED)
def test_parameters_are_exact_and_macs_within_a_thousandth(name, fields, params, gmacs):
    model = vitx.create_model(name, **fields)
    cost = count_cost(model, model.input_shape)
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_divided_attention_differs_from_the_original_by_the_class_token_alone():
    """The original projects the class token once for every frame, here it is projected once: 0.1 % less."""
    model = vitx.create_model("timesformer_b_16_divided")
    cost = count_cost(model, model.input_shape)
    assert cost.params == 121_566_352
    difference = (model.num_frames - 1) * 4 * model.hidden_size**2 * model.num_layers
    assert (cost.macs + difference) / 1e9 == pytest.approx(195.830, rel=3e-6)


def test_flops_of_xla_are_twice_the_macs_plus_elementwise_operations():
    model = vitx.create_model("vivit_ti_16x2_fe", num_frames=8, image_size=64)
    cost = count_cost(model, (8, 64, 64, 3))
    assert 2 * cost.macs < cost.flops_xla < 2.1 * cost.macs


def test_factorised_attention_grows_linearly_in_frames_and_joint_does_not():
    names = ["vivit_ti_16x2", "vivit_ti_16x2_fe", "vivit_ti_16x2_fsa", "vivit_ti_16x2_fdp"]
    names += [name for name in vitx.list_models("timesformer_b_16_*") if not name.endswith("joint")]
    # large images keep the spatial part dominant, as in real models
    models = {name: vitx.create_model(name, image_size=112, num_layers=1) for name in names}
    rows = growth.count_growth(models, frames=(16, 32))
    ratio = {name: np.divide(*[row["macs"] for row in rows if row["model"] == name][::-1]) for name in names}
    assert ratio.pop("vivit_ti_16x2") > 2.2
    # only temporal attention is quadratic, a small part at these lengths
    assert all(1.98 < value < 2.03 for name, value in ratio.items() if "local_global" not in name), ratio
    assert ratio["timesformer_b_16_local_global"] > 2.0


@pytest.mark.smoke
def test_macs_of_scans_grouped_convolutions_and_inner_functions_are_exact():
    def looped(x, w):
        def body(x, _):
            return jax.checkpoint(lambda x: nn.relu(x @ w))(x), None

        return jax.lax.scan(body, x, length=3)[0]

    x, w = jnp.zeros((2, 5)), jnp.zeros((5, 5))
    assert macs_of(jax.make_jaxpr(jax.jit(looped))(x, w).jaxpr) == 3 * 2 * 5 * 5
    video, kernel = jnp.zeros((2, 4, 8, 8, 6)), jnp.zeros((3, 1, 1, 2, 9))

    def grouped(video, kernel):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(
            video, kernel, (1, 2, 2), "VALID", dimension_numbers=numbers, feature_group_count=3
        )

    assert macs_of(jax.make_jaxpr(grouped)(video, kernel).jaxpr) == (2 * 2 * 4 * 4 * 9) * (3 * 2)


@pytest.mark.parametrize("primitive", ["while", "cond"])
def test_a_loop_of_unknown_length_is_an_error_that_names_it(primitive):
    def loop(x):
        if primitive == "while":
            return jax.lax.while_loop(lambda x: x.sum() < 3, lambda x: x + 1, x)
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x)

    with pytest.raises(ValueError, match=f"primitive {primitive}"):
        macs_of(jax.make_jaxpr(loop)(jnp.zeros((2, 2))).jaxpr)


def test_cost_does_not_depend_on_scanning_and_memory_falls_with_rematerialisation():
    fields = {"num_frames": 8, "image_size": 64, "num_layers": 4}
    plain = count_cost(vitx.create_model("vivit_ti_16x2", **fields), (8, 64, 64, 3))
    residuals = {}
    for policy in ("dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable"):
        for scan in (False, True):
            model = vitx.create_model("vivit_ti_16x2", remat_policy=policy, scan_layers=scan, **fields)
            cost = count_cost(model, (8, 64, 64, 3))
            assert (cost.params, cost.macs) == (plain.params, plain.macs)
            residuals[policy, scan] = cost.activation_bytes
    assert (
        plain.activation_bytes
        > residuals["dots_saveable", False]
        > residuals["dots_with_no_batch_dims_saveable", False]
    )
    # a scan also keeps the stacked parameters of the blocks
    assert (
        residuals["dots_with_no_batch_dims_saveable", False]
        > residuals["nothing_saveable", False]
        < residuals["nothing_saveable", True]
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("r3d_18", {"clip": (16, 32, 48), "width": 8}),
        ("convlstm_small", {"clip": (16, 16, 8), "widths": (4,)}),
    ],
)
def test_cost_of_a_model_for_any_clip_grows_with_its_default_clip(name, fields):
    model = vitx.create_model(name, **fields)
    rows = growth.count_growth({"small": model}, frames=(16, 32))
    assert rows[1]["macs"] == pytest.approx(2 * rows[0]["macs"], rel=1e-3)
    assert count_cost(model.copy(implementation="cpu"), model.input_shape).macs == rows[0]["macs"]


def test_a_clip_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="16"):
        count_cost(vitx.create_model("vivit_ti_16x2"), (16, 224, 224, 3))
