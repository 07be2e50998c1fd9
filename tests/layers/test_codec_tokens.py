"""Codec tokens: against a slow loop, in models and in a whole run, and where a clip has no motion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from tests.data.test_motion import P_FRAMES, moving_square
from vitx import configuration
from vitx.analysis.cost import count_cost
from vitx.board.clips import encode_clip
from vitx.data.augmentation import Augmentation
from vitx.data.encoding import encode_video
from vitx.data.file_kinds import read_video
from vitx.data.files import Folder
from vitx.data.pipeline import Data
from vitx.data.windows import SlidingWindows
from vitx.errors import UserError
from vitx.evaluation.predictor import predict_videos
from vitx.experiment import Experiment, load_config
from vitx.interop.fill import Report
from vitx.interop.load import Pretrained
from vitx.interop.predict import check_head
from vitx.layers.codec_tokens import CodecTokens
from vitx.layers.dynamic_tokens import DynamicTokens
from vitx.models.budgets import Budget
from vitx.models.vivit import ViViT
from vitx.run import load_run, train
from vitx.tasks.classification import Classification
from vitx.tasks.mixing import Mixing
from vitx.training.loop import Training

SMALL = {"num_frames": 4, "image_size": 64, "tubelet_size": (2, 16, 16), "num_classes": 2, "pooling": "mean"}
SMALL |= {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
GRID, NUM_TOKENS = (2, 4, 4), 32


def find_slowly(tubelets, budget, num_groups):
    """Returns the tokens of one clip that move most, whose groups of times have equal parts of the budget."""
    motion, chosen = [np.float64(tubelet[:, 3]).mean() for tubelet in tubelets], []
    for tokens in np.split(np.arange(len(motion)), num_groups):
        chosen += sorted(tokens, key=lambda token: (-motion[token], token))[: budget // num_groups]
    return sorted(chosen)


@pytest.mark.parametrize(("budget", "num_groups"), [(1, 1), (7, 1), (32, 1), (6, 2)])
def test_tokens_are_those_that_move_most_in_each_group(budget, num_groups):
    tubelets = np.random.default_rng(0).normal(size=(3, NUM_TOKENS, 6, 4)) ** 2
    tubelets[1, ::3] = 0  # of equal ones, the earlier
    found = CodecTokens(budget, num_groups).observe(jnp.asarray(tubelets), GRID)
    assert found.tolist() == [find_slowly(clip, budget, num_groups) for clip in tubelets]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of two classes, whose square moves at the top or at the bottom."""
    path = tmp_path_factory.mktemp("squares")
    for name, row in (("bottom", 48), ("top", 0)):
        (path / name).mkdir()
        for number in range(8):
            video = encode_video(moving_square(16 + number, row), options=P_FRAMES)
            (path / name / f"{number}.mp4").write_bytes(video)
    return path


@pytest.fixture(scope="module")
def experiment(folder):
    augmentation = Augmentation(crop_area=(0.8, 1.0), flip=0.5, brightness=0.2, erase=0.3)
    data = Data(Folder(str(folder), validation=0.25, test=0.25), frame_stride=3, augmentation=augmentation)
    return Experiment(
        ViViT(**SMALL, reducer=CodecTokens(8)),
        data,
        Classification(mixing=Mixing(mixup=0.2, cutmix=1.0)),
        training=Training(steps=3, log_every=1, budgets=(Budget(), Budget(num_tokens=4, image_size=32))),
    ).override({"data.batch_size": 4, "data.eval_batch_size": 4, "data.eval_clips": 2})


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    return train(experiment, tmp_path_factory.mktemp("run"))


def test_the_tokens_of_a_file_are_where_its_square_moves(experiment, folder):
    (clip, _) = experiment.data.read_views({"video": read_video(str(folder / "top" / "0.mp4"))})
    model = experiment.model.copy(reducer=CodecTokens(4))
    video = experiment.task.normalise(clip[None])
    variables = model.init(jax.random.key(0), video)
    (kept,) = model.apply(variables, video, method="observe").tolist()
    assert all(token % 16 < 4 for token in kept)  # in the first of four rows


def test_all_tokens_are_the_model_without_a_reducer():
    model, video = ViViT(**SMALL), jax.random.uniform(jax.random.key(0), (2, 4, 64, 64, 4))
    variables = model.init(jax.random.key(1), video[..., :3])
    variables = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), variables)
    codec = model.copy(reducer=CodecTokens(NUM_TOKENS))
    found, expected = codec.apply(variables, video), model.apply(variables, video[..., :3])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert jnp.abs(codec.copy(reducer=CodecTokens(5)).apply(variables, video) - expected).max() > 1e-3


def test_a_model_costs_what_it_costs_with_dynamic_tokens():
    dynamic, codec = (ViViT(**SMALL, reducer=reducer(6)) for reducer in (DynamicTokens, CodecTokens))
    assert codec.input_shape == (4, 64, 64, 4)
    assert count_cost(codec, codec.input_shape).macs == count_cost(dynamic, dynamic.input_shape).macs


def test_data_follow_the_reducer(experiment):
    assert experiment.data.motion is True
    for model in ({"model.reducer": None}, {"model.reducer": DynamicTokens(3)}, {"model": "cnn_small"}):
        assert experiment.override(model).data.motion is False
    plain = experiment.override({"model.reducer": None})
    assert plain.override({"data.frame_stride": 1}).data.motion is False
    changes = {"model.reducer": CodecTokens(3), "data.image_size": (32, 32)}
    assert plain.override(changes).data.motion is plain.for_evaluation(changes).data.motion is True
    assert configuration.from_dict(configuration.to_dict(experiment), "here") == experiment


@pytest.mark.parametrize(("reducer", "motion", "channels"), [(CodecTokens(3), False, 4), (None, True, 3)])
def test_data_that_do_not_fit_the_reducer_are_refused(experiment, reducer, motion, channels):
    with pytest.raises(UserError, match=rf"data\.motion is {motion}.*{channels} channels.*None.*model\.reducer"):
        experiment.override({"model.reducer": reducer, "data.motion": motion})


def test_clips_without_motion_are_refused():
    model = ViViT(**SMALL, reducer=CodecTokens(3))
    with pytest.raises(ValueError, match=r"RGB alone.*data\.motion True.*model\.reducer"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 64, 64, 3)))


@pytest.mark.parametrize(
    ("name", "words"), [("vivit_b_16x2_fe", "CodecTokens.*alone.*joint"), ("vivit_b_16x2", r"reducer\.budget is 40")]
)
def test_models_that_cannot_have_it_are_refused_when_they_are_created(name, words):
    with pytest.raises(UserError, match=words):
        vitx.create_model(name, **SMALL, reducer=CodecTokens(40))


def test_pretrained_weights_predict_files_without_motion():
    model = ViViT(**SMALL, reducer=CodecTokens(3))
    with pytest.raises(UserError, match=r"CodecTokens.*codec's motion.*another reducer"):
        check_head(Pretrained(model, {}, Report({}, {}, (), {}, (), ())))


def test_a_run_trains_evaluates_and_resumes_from_its_folder(run, experiment):
    assert run.experiment.data.motion and load_config(run.workdir).data.motion
    assert run.evaluate()["examples"] == 4
    rows = run.evaluate_budgets((2, 8))
    assert [(row["reducer"], row["num_tokens"]) for row in rows] == [("CodecTokens", 2), ("CodecTokens", 8)]
    other = load_run(run.workdir, settings={"model.reducer": DynamicTokens(8)})
    assert other.experiment.data.motion is False and other.evaluate()["examples"] == 4


def test_a_run_predicts_files_windows_and_clips(run, folder):
    file = str(folder / "top" / "7.mp4")
    answer = run.predict(file)
    (whole,) = predict_videos(run.predictor(), [file])
    (windows,) = predict_videos(run.predictor(), [file], SlidingWindows(11.0, 6.0, "frames"))
    assert whole.error is windows.error is None and len(windows.windows) == 3
    clip = run.experiment.data.read_views({"video": read_video(file)})[0]
    (axes,) = answer.figure().axes
    assert axes.images[0].get_array().shape[2] == 3  # RGB alone
    assert run.predict(clip).figure() and run.features(file).shape == (16,)
    assert encode_clip(clip)[4:8] == b"ftyp"
    explanation = run.explain(file)
    assert explanation.frames.shape == (4, 64, 64, 3) and explanation.overlay().shape == (4, 64, 64, 3)


def test_an_array_without_motion_is_refused(run):
    with pytest.raises(UserError, match=r"\[4, 64, 64, 3\].*codec's motion.*path of a file"):
        run.predict(np.zeros((4, 64, 64, 3), np.uint8))


def test_a_run_on_videos_without_motion_names_them_and_what_to_do(experiment, tmp_path):
    for name, row in (("bottom", 48), ("top", 0)):
        (tmp_path / name).mkdir()
        for number in range(3):
            video = encode_video(moving_square(8 + number, row), options={"x264-params": "keyint=1"})
            (tmp_path / name / f"{number}.mp4").write_bytes(video)
    data = {"data.dataset": Folder(str(tmp_path), validation=0.2, test=0.2)}
    # a batch carries the first and the last bytes of a message: what is between depends on the length of the path
    with pytest.raises(UserError, match=r"clips in a row.*vitx data prepare"):
        train(experiment.override(data), tmp_path / "run")
