"""The loop: results that depend on the seed alone, resuming, and what stops a run."""

import ctypes
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from typing import Literal

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitx.checkpoints import Checkpoints
from vitx.configuration import register
from vitx.data.sources import MovingDigits, Source
from vitx.errors import RunError, UserError
from vitx.run import load_run, train
from vitx.training import trainer
from vitx.training.faults import LossSpikeDetector
from vitx.training.logs import read_metrics
from vitx.training.optimizers import Optax
from vitx.training.setup import compile_step, create_state, set_up
from vitx.training.validation import ValidationSet


@register
@dataclasses.dataclass(frozen=True)
class Spoiled:
    """A dataset whose validation videos cannot be read (all, or those with an odd number) or have no labels."""

    dataset: MovingDigits
    how: Literal["all", "odd", "unlabelled"] = "all"

    def open(self, split):
        source = self.dataset.open(split)
        return source if split != "validation" else SpoiledSource(source, self.how)


@dataclasses.dataclass(frozen=True)
class SpoiledSource:
    whole: Source
    how: str

    @property
    def label_names(self):
        return self.whole.label_names

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        example = self.whole[index]
        if self.how == "unlabelled":
            return example | {"labels": dict.fromkeys(example["labels"], -1)}
        return example | ({"video": b"no video"} if self.how == "all" or index % 2 else {})


def test_runs_that_differ_in_their_seeds_alone_share_one_compiled_program(small, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered: lowered.as_text)  # nothing is compiled
    sources = {split: small.data.dataset.open(split) for split in ("train", "validation")}
    setups = [set_up(small.override({"training.seed": seed}), sources) for seed in (0, 2**32 - 1)]
    steps = [compile_step(setup) for setup in setups]
    assert steps[0].func() == steps[1].func()
    assert [int(step.keywords["seed"]) for step in steps] == [0, 2**32 - 1]


def test_validation_without_videos_or_monitored_metric_stops_the_run(small, digits, tmp_path):
    settings = {"training.monitor": "motion/top1"}
    for how, error, message in (
        ("all", RunError, r"21 .*validation.*Invalid data"),
        ("unlabelled", UserError, r"training.monitor is 'motion/top1'.*examples, unreadable"),
    ):
        with pytest.raises(error, match=message):
            train(small.override(settings | {"data.dataset": Spoiled(digits, how)}), tmp_path / how)
    unlabelled = small.override({"data.dataset": Spoiled(digits, "unlabelled"), "training.monitor": "loss"})
    with pytest.raises(UserError, match=r"training\.monitor is 'loss'"):  # no loss at all, rather than a loss of 0
        train(unlabelled, tmp_path / "loss")


def test_validation_reports_its_number_of_videos_and_each_unreadable_one_once(small, digits, tmp_path, capsys):
    train(small.override({"data.dataset": Spoiled(digits, "odd"), "training.steps": 8}), tmp_path)
    printed = capsys.readouterr().err
    assert printed.count("validation (1x1 views, 11 of 21 videos)") == 2
    assert len(re.findall(r"10 videos cannot be read.*\n  example 1: ", printed)) == 1
    assert "0 clips of 0 unreadable videos" in (tmp_path / "report.md").read_text()


def test_run_folder_holds_the_promised_files(undisturbed):
    assert {path.name for path in undisturbed.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "report.md",
        "curves.png",
        "test_confusion_motion.png",
        "test_confusion_appearance.png",
        "test_predictions.png",
    }
    assert all(picture.stat().st_size > 5000 for picture in undisturbed.glob("*.png"))
    assert len(list(undisturbed.glob("events.out.tfevents.*"))) == 1
    rows = read_metrics(undisturbed)
    assert [(row["step"], row["split"]) for row in rows if row["split"] != "test"] == [
        (step, split) for step in (4, 8, 12) for split in ("train", "validation")
    ]
    (test,) = [row for row in rows if row["split"] == "test"]
    assert test["examples"] == 19 and 0 <= test["motion/top1"] <= 100
    assert json.loads((undisturbed / "config.json").read_text())["format"] == 1


def test_patience_ends_a_run_and_survives_a_restart(small, tmp_path, monkeypatch, capsys):
    """With a learning rate of zero the first evaluation stays the best; a restart keeps the count of the others.

    A set that is evaluated when training ends is evaluated then, too.
    """
    to_devices, num_batches = trainer.to_devices, 0

    def fail_at_sixth_batch(batch, sharding):
        nonlocal num_batches
        num_batches += 1
        if num_batches == 6:
            raise RuntimeError
        return to_devices(batch, sharding)

    settings = {"optimizer.peak_lr": 0.0, "training.patience": 2, "training.evaluate_every": 2}
    settings["training.validation_sets"] = (ValidationSet("held_out"),)
    patient = small.override(settings)
    monkeypatch.setattr(trainer, "to_devices", fail_at_sixth_batch)
    with pytest.raises(RuntimeError):
        train(patient, tmp_path)
    train(patient, tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path) if row["split"] == "validation"] == [2, 4, 6]
    assert [row["step"] for row in read_metrics(tmp_path) if row["split"] == "held_out"] == [6]
    assert load_run(tmp_path).step == 2 and load_run(tmp_path, "last").step == 6
    assert re.search("2 evaluations .* step 2", capsys.readouterr().err)
    train(patient, tmp_path)
    assert "is finished" in capsys.readouterr().err
    train(patient.override({"training.patience": 3}), tmp_path)
    assert [row["step"] for row in read_metrics(tmp_path) if row["split"] == "validation"] == [2, 4, 6, 8]


WATCHED = """
import ctypes, gc, sys
from vitx.cli import main
from vitx.training import trainer

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo
place, taken = trainer.to_devices, 0

def watched(batch, sharding):
    global taken
    taken += 1
    if taken % 100 == 0:
        gc.collect()
        held = mallinfo()
        (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
        print((held.uordblks + held.hblkhd) / 2**20, int(line.split()[1]) / 1024, flush=True)
    return place(batch, sharding)

trainer.to_devices = watched
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="counts what glibc has given out")
def test_memory_does_not_grow_over_ten_thousand_steps(small_file, tmp_path):
    """Medians over 2,000 steps of the bytes in use, Python's included, and of the process's own pages.

    Fails in about half of its runs since 2026-11-28: see note 41 of experiments/benchmarks/by_hand.md.

    Pages grow a little longer than bytes: each arena of the allocator keeps the most that it ever held, and it takes
    long until every arena has reached its maximum. The process has none of the tests' type checks, which themselves
    keep 16 KiB a step.
    """
    often = "--training.log_every 10 --training.checkpoint_every 500 --training.evaluate_every 500"
    words = ["train", small_file, "--workdir", str(tmp_path), "--training.steps", "10000", "--data.batch_size", "2"]
    words = [sys.executable, "-c", WATCHED, *words, *often.split()]
    environment = os.environ | {"PYTHONMALLOC": "malloc"}
    printed = subprocess.run(words, check=True, stdout=subprocess.PIPE, env=environment).stdout
    read = np.array(printed.split(), float).reshape(5, 20, 2)  # parts, readings, (in use, pages)
    used, pages = np.median(read, axis=1).T
    print("MiB in use:", used.round(2), "pages:", pages.round(1))
    assert used[-1] < 1.005 * used[1]
    assert pages[-1] < 1.05 * pages[1]


@pytest.mark.slow
def test_compilation_cache_is_reused(tmp_path, train_command):
    cache, programs = tmp_path / "compiled", []
    for name in ("first", "second"):
        subprocess.run(train_command(tmp_path / name, "--training.compilation_cache", str(cache)), check=True)
        programs.append({path.name for path in cache.rglob("*-cache")})
    assert programs[0] and programs[0] == programs[1]


TRAIN_AND_MEASURE = """
import sys
import jax
from vitx.cli import main
from vitx.run import load_run
from vitx.training.sharding import bytes_per_device

assert main(sys.argv[2:]) == 0
run = load_run(sys.argv[1])
print(jax.device_count(), bytes_per_device(run.variables) / sum(leaf.nbytes for leaf in jax.tree.leaves(run.variables)))
"""


def test_eight_devices_give_the_losses_of_one(tmp_path, train_command):
    settings = "--training.steps 20 --training.log_every 1 --training.evaluate_every 0 --training.checkpoint_every 20"
    losses, tested, fraction = {}, {}, {}
    for name, devices, mesh in (("one", 1, ""), ("fsdp", 8, "--training.mesh.fsdp 4")):
        workdir = tmp_path / name
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        words = train_command(workdir, *settings.split(), *mesh.split())
        words = [sys.executable, "-c", TRAIN_AND_MEASURE, str(workdir), *words[words.index("train") :]]
        printed = subprocess.run(words, check=True, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE)
        used, fraction[name] = map(float, printed.stdout.split())
        assert used == devices
        rows = read_metrics(workdir)
        losses[name] = [row["loss"] for row in rows if row["split"] == "train"]
        (tested[name],) = [row["loss"] for row in rows if row["split"] == "test"]
        assert len(losses[name]) == 20
    assert losses["one"][-1] != losses["one"][0]
    np.testing.assert_allclose(losses["fsdp"], losses["one"], rtol=2e-4)
    # evaluated where it was trained: no device need hold all parameters
    np.testing.assert_allclose(tested["fsdp"], tested["one"], rtol=2e-4)
    assert fraction["one"] == 1 and fraction["fsdp"] < 0.4
    # a checkpoint written on eight devices is read on one
    assert load_run(tmp_path / "fsdp").step == 20


def test_seed_determines_the_run(small, tmp_path, final_digests):
    short = small.override({"training.steps": 3, "training.evaluate_every": 0})
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(short.override({"training.seed": seed}), tmp_path / name)
    assert final_digests(tmp_path / "a") == final_digests(tmp_path / "b")
    assert final_digests(tmp_path / "a") != final_digests(tmp_path / "c")


def test_finished_run_trains_on_only_with_extend(small, finished, capsys, final_digests):
    experiment = small.override({"training.ema_decay": 0.9})
    before = final_digests(finished)
    capsys.readouterr()
    train(experiment, finished)
    assert re.search("is finished.* 12 steps", capsys.readouterr().err)
    assert final_digests(finished) == before
    longer = experiment.override({"training.steps": 16})
    with pytest.raises(UserError, match=r"(?s)--extend.*training\.steps: 12 before, 16 now"):
        train(longer, finished)
    train(longer, finished, extend=True)
    assert [row["step"] for row in read_metrics(finished) if row["split"] == "validation"] == [4, 8, 12, 16]


def test_only_mutable_settings_may_change_on_resume(small, finished):
    experiment = small.override({"training.ema_decay": 0.9})
    train(experiment.override({"training.log_every": 1, "data.num_threads": 1}), finished)
    for path, old, new in (("optimizer.peak_lr", 0.001, 1.0), ("data.batch_size", 8, 4)):
        with pytest.raises(UserError) as error:
            train(experiment.override({path: new, "training.log_every": 2}), finished)
        found = str(error.value)
        assert f"{path}: {old} before, {new} now" in found and "log_every" not in found


@pytest.mark.parametrize(("allowed", "reason"), [(2, "loss nan, .*3 steps were skipped"), (9, "outputs of the model")])
def test_diverged_run_stops_and_keeps_earlier_checkpoints(allowed, reason, small, tmp_path):
    diverging = small.override({"optimizer.peak_lr": 1e15, "optimizer.clip_norm": None, "training.checkpoint_every": 1})
    with pytest.raises(RunError, match=rf"step 4: .*{reason}.*checkpoints/1\. .*initialise_from"):
        train(diverging.override({"training.max_skipped": allowed}), tmp_path)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    with pytest.raises(RunError, match=r"before the first checkpoint.*optimizer\.peak_lr"):
        train(diverging.override({"training.checkpoint_every": 50, "training.max_skipped": allowed}), tmp_path / "new")


def test_skipped_steps_are_counted_and_loss_spikes_logged_with_examples(small, tmp_path, monkeypatch, capsys):
    """Weights of steps 5 and 6 are NaN; with 0 deviations, every loss above the median of those before is a spike."""
    to_devices, examples = trainer.to_devices, []

    def spoil_weights(batch, sharding):
        examples.append(batch["index"].tolist())
        if len(examples) in (5, 6):
            batch = batch | {"weight": np.full_like(batch["weight"], np.nan)}
        return to_devices(batch, sharding)

    monkeypatch.setattr(trainer, "to_devices", spoil_weights)
    monkeypatch.setattr(LossSpikeDetector, "MIN_HISTORY", 3)
    settings = {"training.evaluate_every": 0, "training.log_every": 1, "training.checkpoint_every": 50}
    train(small.override({**settings, "training.spike_deviations": 0.0}), tmp_path)
    rows = read_metrics(tmp_path)
    trained = {row["step"]: row for row in rows if row["split"] == "train"}
    assert [trained[step]["skipped"] for step in (4, 5, 6, 12)] == [0, 1, 2, 2]
    assert "loss" not in trained[5] and "loss" not in trained[6]
    assert "skipped step 5: loss nan" in capsys.readouterr().err
    losses = {step: row["loss"] for step, row in trained.items() if "loss" in row}
    medians = {step: np.median([losses[earlier] for earlier in losses if earlier < step]) for step in list(losses)[3:]}
    found = [(row["step"], row["median"], row["examples"]) for row in rows if row["split"] == "spike"]
    assert found == [(step, m, examples[step - 1]) for step, m in medians.items() if losses[step] > m]
    assert 0 < len(found) < len(medians)


def test_initialise_from_takes_parameters_and_nothing_else(small, undisturbed, tmp_path):
    start = small.override(
        {"training.initialise_from": str(undisturbed), "training.steps": 1, "optimizer.peak_lr": 0.0}
    )
    train(start, tmp_path)
    started = load_run(tmp_path, "last").variables
    jax.tree.map(np.testing.assert_array_equal, started, load_run(undisturbed, "best").variables)
    assert [row["step"] for row in read_metrics(tmp_path) if row["split"] == "validation"] == [1]
    train(start.override({"training.ema_decay": 0.999}), tmp_path / "averaged")
    averaged = load_run(tmp_path / "averaged").variables
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), averaged, started)
    with pytest.raises(UserError, match=r"training\.initialise_from: .*/no"):
        train(start.override({"training.initialise_from": str(tmp_path / "no")}), tmp_path / "other")


def test_a_run_that_was_killed_in_its_first_save_starts_from_its_weights_again(
    small, undisturbed, tmp_path, monkeypatch
):
    start = small.override(
        {"training.initialise_from": str(undisturbed), "training.steps": 1, "optimizer.peak_lr": 0.0}
    )
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(trainer, "to_devices", lambda *_: (_ for _ in ()).throw(RuntimeError))
        train(start, tmp_path)
    (tmp_path / "checkpoints" / "1.orbax-checkpoint-tmp").mkdir(parents=True, exist_ok=True)
    train(start, tmp_path)
    found = load_run(tmp_path, "last").variables
    jax.tree.map(np.testing.assert_array_equal, found, load_run(undisturbed, "best").variables)


def test_an_optimizer_that_keeps_its_first_parameters_gets_those_that_the_run_starts_from(small, digits):
    experiment = small.override({"optimizer": Optax(name="contrib.prodigy")})
    experiment = experiment.for_labels(digits.open("train").label_names)
    setup = set_up(experiment, {"train": digits.open("train")})
    given = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), setup.abstract.variables)
    state = create_state(setup, lambda abstract: given)
    kept = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer) if "params0" in str(path)]
    assert len(kept) == len(jax.tree.leaves(given)) and all(bool((leaf == 1).all()) for leaf in kept)


def test_evaluation_counts_every_example_once_for_any_batch_size(small, finished):
    reference = load_run(finished).evaluate("validation")
    assert reference["examples"] == 21
    config = finished / "config.json"
    before = config.read_text()
    for size in (1, 5, 64):
        config.write_text(before.replace('"eval_batch_size": 8', f'"eval_batch_size": {size}'))
        other = load_run(finished).evaluate("validation")
        assert other.keys() == reference.keys()
        for name, value in reference.items():
            if isinstance(value, int | float):
                assert other[name] == pytest.approx(value, rel=1e-5), (size, name)
        assert other["confusion"] == reference["confusion"]
    rows = [(row["step"], row["split"]) for row in read_metrics(finished)]
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.mesh.data": 3}, "a mesh of data=3, fsdp=1, tensor=1, frames=1 does not cover"),
        ({"training.monitor": "los"}, "did you mean loss?"),
        ({"model.num_classes": 7}, "task.label"),
        ({"model.num_classes": 7, "task.label": "motion"}, "motion"),
    ],
)
def test_inconsistent_settings_are_refused(changes, message, small, tmp_path):
    with pytest.raises(UserError) as error:
        train(small.override(changes), tmp_path)
    assert message in str(error.value)


def test_foreign_folder_is_left_untouched(small, tmp_path):
    (tmp_path / "events.out.tfevents.1").write_text("somebody's")
    with pytest.raises(UserError, match=r"events\.out\.tfevents\.1"):
        train(small, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["events.out.tfevents.1"]


def test_locked_run_is_refused(small, finished):
    with filelock.FileLock(finished / ".lock"), pytest.raises(UserError, match="is in use"):
        load_run(finished).evaluate()


def test_clips_of_another_shape_than_the_model_are_refused(small):
    with pytest.raises(UserError, match=r"the data gives clips of \(4, 24, 24\).*the model takes \(8, 24, 24\)"):
        small.override({"model.num_frames": 8, "data.num_frames": 4})
    with pytest.raises(ValueError, match="the model takes"):
        dataclasses.replace(small, model=small.model.clone(image_size=48))
