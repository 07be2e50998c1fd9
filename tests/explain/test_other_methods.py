"""Explanations that need no attention, against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import vitx
from tests.explain.conftest import TARGET, exact_parts
from vitx.errors import UserError
from vitx.explain.grad_cam import find_feature_map, grad_cam
from vitx.explain.methods import METHODS, methods_for, relevance, spread
from vitx.explain.perturbation import integrated_gradients, occlusion
from vitx.explain.score import class_score


@pytest.mark.parametrize("tubelet", [(2, 8, 8), (3, 10, 7)])
def test_occlusion_of_a_linear_model_is_the_part_of_each_tubelet(linear, video, tubelet):
    found = np.asarray(occlusion(*linear, video, TARGET, tubelet=tubelet, baseline=0.5))
    parts, (t, h, w) = exact_parts(linear, video, 0.5), tubelet
    expected = np.zeros_like(parts)
    for i, j, k in np.ndindex(*(-(-size // part) for size, part in zip(parts.shape, tubelet, strict=True))):
        place = np.s_[i * t : (i + 1) * t, j * h : (j + 1) * h, k * w : (k + 1) * w]
        expected[place] = parts[place].sum()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_integrated_gradients_of_a_linear_model_are_the_part_of_each_pixel(linear, video):
    found = integrated_gradients(*linear, video, TARGET, baseline=0.5, steps=2)
    np.testing.assert_allclose(found, exact_parts(linear, video, 0.5), atol=1e-5)


@pytest.mark.parametrize(("name", "steps"), [("vivit_ti_16x2", 256), ("cnn", 32)])
def test_integrated_gradients_sum_to_the_difference_of_the_logit(name, steps, transformer, cnn, video):
    model, variables = cnn if name == "cnn" else transformer(name)
    found = integrated_gradients(model, variables, video, TARGET, steps=steps)
    clip = jnp.stack([jnp.asarray(video), jnp.zeros_like(video)])
    logit, empty = class_score(model, variables, clip, TARGET)
    assert float(jnp.sum(found)) == pytest.approx(float(logit - empty), rel=0.02, abs=0.01)


def test_grad_cam_weighs_the_last_maps_by_their_mean_gradients(cnn, video):
    model, variables = cnn
    found = find_feature_map(model, video)
    assert found.path == ("stage_3",) and found.side == "output"
    maps = {}

    def keep(call, args, kwargs, context):
        maps[context.module.path] = result = call(*args, **kwargs)
        return result

    with nn.intercept_methods(keep):
        model.apply(variables, video[None])
    # after the last maps: 2x2 max pooling and a mean, whose gradient goes to the greatest of four
    last = np.asarray(maps[found.path])[0]
    t, h, w = last.shape[:3]
    kernel = np.asarray(variables["params"]["head"]["logits"]["kernel"])[:, TARGET.index]
    per_place = kernel / (t * (h // 2) * (w // 2))
    channel_weights = per_place * (h // 2) * (w // 2) / (h * w)
    np.testing.assert_allclose(
        grad_cam(model, variables, video, TARGET), np.maximum(last @ channel_weights, 0), rtol=1e-3, atol=1e-7
    )


@pytest.mark.parametrize("name", ["vivit_ti_16x2", "vivit_ti_16x2_fe", "timesformer_b_16_space"])
def test_grad_cam_of_a_transformer_lies_on_its_tokens(name, transformer, video):
    model, variables = transformer(name)
    found = np.asarray(grad_cam(model, variables, video, TARGET))
    assert found.shape == model.grid and found.max() > 0


def test_grad_cam_weighs_each_time_index_by_itself_where_each_is_encoded_alone(transformer, video):
    model, variables = transformer("vivit_ti_16x2_fe")
    last, kept = find_feature_map(model, video).path, {}

    def logit(shift):  # of every channel, for each time index
        def observe(call, args, kwargs, context):
            if context.module.path != last or context.method_name != "__call__":
                return call(*args, **kwargs)
            kept["tokens"] = args[0]
            is_place = jnp.arange(args[0].shape[2])[:, None] >= model.num_prefix
            return call(args[0] + shift[:, None] * is_place, *args[1:], **kwargs)

        with nn.intercept_methods(observe):
            return model.apply(variables, video[None])[0, TARGET.index]

    t, h, w = model.grid
    zeros = np.zeros((t, model.hidden_size), np.float32)
    weights = jax.jacfwd(logit)(zeros) / (h * w)
    logit(zeros)
    tokens = np.asarray(kept["tokens"]).reshape(t, -1, model.hidden_size)[:, model.num_prefix :]
    expected = np.maximum(np.einsum("tc,tnc->tn", weights, tokens), 0).reshape(t, h, w)
    np.testing.assert_allclose(grad_cam(model, variables, video, TARGET), expected, rtol=1e-3, atol=1e-7)


def test_grad_cam_of_a_named_layer(cnn, video):
    assert grad_cam(*cnn, video, TARGET, layer="stage_1").shape == (4, 24, 32)
    with pytest.raises(UserError, match=r"(?s)stage_9.*stage_2"):
        grad_cam(*cnn, video, TARGET, layer="stage_9")


@pytest.mark.parametrize("name", ["slowfast_r50_8x8", "x3d_s", "s3d", "r2plus1d_18", "lrcn_gru_small", "tsn_r50"])
def test_every_convolutional_family_has_feature_maps(name):
    assert find_feature_map(vitx.create_model(name), jnp.zeros((8, 64, 64, 3))).grid[1] >= 2


def test_methods_are_offered_by_what_a_model_has(cnn, linear, transformer, video):
    assert methods_for(linear[0], video) == ["occlusion", "integrated_gradients", "kernel_shap", "lime"]
    assert methods_for(cnn[0], video)[0] == "grad_cam" and "attention_rollout" not in methods_for(cnn[0], video)
    assert methods_for(transformer("vivit_ti_16x2")[0], video) == list(METHODS)
    assert relevance(*linear, video, TARGET)[0] == "occlusion"


def test_a_method_that_does_not_work_names_those_that_do(cnn, video):
    with pytest.raises(UserError, match=r"(?s)attention_rollout.*FrameCNN.*grad_cam, occlusion"):
        relevance(*cnn, video, TARGET, "attention_rollout")
    with pytest.raises(UserError, match=r"(?s)gradcam.*grad_cam"):
        relevance(*cnn, video, TARGET, "gradcam")


def test_an_option_that_a_method_lacks_is_refused_with_those_it_has(linear, cnn, transformer, video):
    with pytest.raises(UserError, match=r"(?s)tubelets.*occlusion.*batch_size.*tubelet\?"):
        relevance(*linear, video, TARGET, "occlusion", tubelets=(2, 8, 8))
    with pytest.raises(UserError, match=r"steps.*attention_rollout.*none"):
        relevance(*transformer("vivit_ti_16x2"), video, TARGET, "attention_rollout", steps=3)
    for options, message in ({"steps": 0}, r"steps.*0.*1"), ({"baseline": "black"}, r"baseline.*black.*0\.0"):
        with pytest.raises(UserError, match=message):
            relevance(*linear, video, TARGET, "integrated_gradients", **options)


def test_spread_gives_a_pixel_the_value_of_its_tubelet():
    grid = np.arange(12.0, dtype=np.float32).reshape(2, 2, 3)
    np.testing.assert_array_equal(spread(grid, (4, 6, 9)), grid.repeat(2, 0).repeat(3, 1).repeat(3, 2))


def test_relevance_that_is_not_finite_is_refused(linear, video):
    model, variables = linear
    damaged = jax.tree.map(lambda x: x.at[0].set(jnp.nan), variables)
    with pytest.raises(UserError, match=r"integrated_gradients\b.*finite"):
        relevance(model, damaged, video, TARGET, "integrated_gradients")


def test_options_are_numbers_of_python_or_numpy(linear, video):
    expected = relevance(*linear, video, TARGET, "integrated_gradients", steps=2, baseline=0.5)[1]
    found = relevance(*linear, video, TARGET, "integrated_gradients", steps=np.int64(2), baseline=np.float32(0.5))[1]
    np.testing.assert_array_equal(found, expected)
    for wrong in ({"steps": True}, {"baseline": False}, {"baseline": "0"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            relevance(*linear, video, TARGET, "integrated_gradients", **wrong)
    with pytest.raises(UserError, match="seed"):
        relevance(*linear, video, TARGET, "lime", seed=-(10**400))
