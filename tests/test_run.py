"""A run in memory and on disk: what training returns, and what its folder gives back."""

import jax
import numpy as np
import pytest

import vitx
from vitx.data.encoding import encode_video
from vitx.errors import UserError
from vitx.run import load_run, train


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    return train(small, tmp_path_factory.mktemp("run"))


@pytest.mark.smoke
def test_training_returns_the_run_that_its_folder_holds(run):
    loaded = load_run(run.workdir)
    assert (loaded.step, loaded.outputs) == (run.step, run.outputs)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, run.variables)
    assert loaded.experiment.task == run.experiment.task


def test_best_and_last_checkpoint_are_loaded_by_name(run):
    rows = [row for row in run.metrics() if row["split"] == "validation"]
    best = min(rows, key=lambda row: row["loss"])["step"]
    assert load_run(run.workdir).step == best == run.step and load_run(run.workdir, "last").step == 12


def test_repr_of_a_run_is_one_short_line(run):
    assert str(run.workdir) in repr(run) and len(repr(run)) < 200 and "\n" not in repr(run)


def test_predictions_are_probabilities_of_every_head(run, tmp_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(encode_video(np.zeros((9, 32, 32, 3), np.uint8)))
    (answer,) = run.predict([clip], top=100).values()
    assert {label: len(classes) for label, classes in answer.items()} == {"appearance": 10, "motion": 8}
    assert all(sum(classes.values()) == pytest.approx(1, abs=1e-5) for classes in answer.values())
    with pytest.raises(UserError, match=r"no\.mp4"):
        run.predict([tmp_path / "no.mp4"])


def test_public_names_are_importable_and_lazy():
    for name in vitx.__all__:
        assert getattr(vitx, name) is not None
    assert {"train", "load_run", "create_model", "load_pretrained", "count_cost"} <= set(dir(vitx))
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = vitx.nothing_of_this_name
