"""The protocol of video models: every variant offers it, whatever its settings are called."""

import re

import pytest

import vitx
from vitx.models import VARIANTS, TokenModel, VideoModel
from vitx.models.streaming import StreamingModel
from vitx.models.transformer import VideoEncoder


@pytest.mark.smoke
def test_every_variant_is_a_video_model():
    assert all(isinstance(model, VideoModel) for model in VARIANTS.values())
    transformers = {name for name, model in VARIANTS.items() if isinstance(model, VideoEncoder)}
    assert {name for name, model in VARIANTS.items() if isinstance(model, TokenModel)} == transformers
    assert {name for name, model in VARIANTS.items() if model.needs_input_shape} == transformers
    assert not transformers & {name for name, model in VARIANTS.items() if isinstance(model, StreamingModel)}


@pytest.mark.parametrize(
    ("name", "channels"),
    [("vivit_b_16x2", 3), ("r3d_18", 3), ("convlstm_small", 3), ("convlstm_forecaster_5x5_256", 1)],
)
def test_input_shape_is_set_by_one_method(name, channels):
    model = VARIANTS[name]
    assert model.with_input_shape(16, (32, 64)).input_shape == (16, 32, 64, channels)
    assert model.with_input_shape(8).input_shape == (8, *model.input_shape[1:])
    assert model.with_input_shape(size=(64, 32)).input_shape == (model.input_shape[0], 64, 32, channels)
    assert model.with_input_shape() == model


@pytest.mark.parametrize("name", ["vivit_b_16x2", "r3d_18", "convlstm_forecaster_5x5_256"])
def test_a_notebook_shows_the_parameters_of_a_model(name):
    model = VARIANTS[name]
    shown = model._repr_html_()
    assert f"{vitx.count_cost(model, model.input_shape).params:,} parameters" in shown
    counts = [int(count.replace(",", "")) for count in re.findall(r"<td>([\d,]+)</td></tr>", shown)]
    by_module = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+)</summary>", shown)]
    assert sum(counts) == sum(by_module) == vitx.count_cost(model, model.input_shape).params


def test_input_shape_changes_together_with_other_settings():
    model = VARIANTS["vivit_b_16x2"].with_input_shape(9, (30, 30), tubelet_size=(3, 10, 10))
    assert model.grid == (3, 3, 3)
    with pytest.raises(vitx.UserError, match=r"\(2, 16, 16\) .* \(9, 30, 30\)"):
        VARIANTS["vivit_b_16x2"].with_input_shape(9, (30, 30))
    with pytest.raises(vitx.UserError, match="clip"):
        VARIANTS["r3d_18"].with_input_shape(0)
    with pytest.raises(vitx.UserError, match="clip"):
        VARIANTS["r3d_18"].with_input_shape(-1)
