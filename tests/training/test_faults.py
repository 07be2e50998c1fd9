"""Requests to stop, loss spikes, hanging steps, progress, and the speed of devices at their peak."""

import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vitx
from vitx.analysis import devices
from vitx.analysis.cost import count_cost
from vitx.errors import Preempted
from vitx.tasks.classification import Classification
from vitx.training.faults import LossSpikeDetector, PreemptionGuard
from vitx.training.progress import Progress, peak_steps_per_second


def test_guard_raises_at_once_and_defers_requests_during_training(interruptible):
    with PreemptionGuard() as guard, pytest.raises(Preempted):
        signal.raise_signal(signal.SIGTERM)
    with PreemptionGuard() as guard, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    done = []
    with PreemptionGuard() as guard, pytest.raises(Preempted), guard.defer():
        assert not guard.requested(1)
        signal.raise_signal(signal.SIGINT)
        assert guard.requested(1)
        with pytest.raises(Preempted), guard.allow():
            done.append("allowed block ran")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        done.append("deferred block ended")
    assert done == ["deferred block ended"]
    for number in (signal.SIGTERM, signal.SIGINT):  # in an evaluation
        with PreemptionGuard() as guard, pytest.raises(Preempted), guard.defer():
            with pytest.raises(Preempted), guard.allow():
                signal.raise_signal(number)
            assert guard.requested(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with PreemptionGuard() as guard, guard.defer():
        signal.raise_signal(signal.SIGINT)
        assert not guard.requested(1)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_spikes_exceed_the_recent_losses():
    rng, spikes = np.random.default_rng(0), LossSpikeDetector(10.0)
    losses = 2 + 0.1 * rng.standard_normal(400)
    losses[[10, 150, 300]] = 9.0  # the first before there is enough history
    found = {i: median for i, loss in enumerate(losses.tolist()) if (median := spikes.update(loss)) is not None}
    assert list(found) == [150, 300]
    assert found[150] == np.median(losses[50:150])
    assert list(spikes.losses) == losses[-100:].tolist()


def test_flat_and_falling_losses_are_no_spikes():
    flat, falling, off = LossSpikeDetector(10.0), LossSpikeDetector(10.0), LossSpikeDetector(None)
    assert not any(flat.update(2 + 1e-6 * (i % 2)) for i in range(200))
    assert not any(falling.update(5 * 0.98**i) for i in range(200))
    assert not any(off.update(float(i == 150)) for i in range(200))


def test_hard_examples_of_a_run_that_has_learnt_are_no_spikes():
    losses = [2.0] * 30 + [0.01] * 120 + [0.15, 0.3]
    spikes = LossSpikeDetector(10.0)
    found = [i for i, loss in enumerate(losses) if spikes.update(loss) is not None]
    assert found == [151]
    resumed = LossSpikeDetector(10.0, spikes.losses, spikes.first)
    assert resumed.update(0.15) is None and resumed.update(0.3) == 0.01


def test_hanging_step_ends_the_process_with_its_stack():
    code = "import time; from vitx.training.faults import exit_after\nwith exit_after(0.002): time.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 1 and "Timeout" in ended.stderr and "most recent call first" in ended.stderr


@pytest.mark.smoke
def test_progress_survives_a_checkpoint():
    progress = Progress.from_record({}, 10.0)
    progress.meter.add({"loss": 2.0, "gradient_norm": 1.0, "parameter_norm": 3.0, "weight": 4.0, "motion/top1": 200.0})
    progress.meter.add_time(2.0, 0.5, 0.1)
    progress.spikes.update(2.0)
    assert progress.best.update(3, "loss", 2.0, lambda _, new, old: new < old)
    assert not progress.best.update(6, "loss", 3.0, lambda _, new, old: new < old) and progress.best.num_since == 1
    progress.productive_seconds, progress.began = 2.0, time.time() - 8.0
    again = Progress.from_record(progress.to_record(), 10.0)
    assert again.to_record() == progress.to_record() and (again.best.step, again.best.num_since) == (3, 1)
    row = progress.next_row(16, peak_steps=2.0)
    assert row["clips_per_second"] == 8 and row["mfu_percent"] == 25 and row["motion/top1"] == 50
    assert row["goodput_percent"] == pytest.approx(25, rel=0.01)
    assert not progress.meter.sums and "mfu_percent" not in progress.next_row(16, None)


def test_peak_counts_six_operations_for_each_multiply_accumulate(monkeypatch):
    model, task = vitx.create_model("vivit_ti_16x2_fe", num_frames=8, image_size=32, num_classes=3), Classification()
    clip = (8, 32, 32, 3)
    batch = {
        "video": jax.ShapeDtypeStruct((5, *clip), jnp.uint8),
        "labels": {"action": jax.ShapeDtypeStruct((5,), jnp.int32)},
        "weight": jax.ShapeDtypeStruct((5,), jnp.float32),
    }
    variables = jax.eval_shape(lambda: dict(task.init(model, jax.random.key(0), batch)))
    asked = (task, variables, batch, 4 * jax.devices())
    assert peak_steps_per_second(model, *asked) is None  # of a CPU
    monkeypatch.setattr(devices, "PEAKS", (("cpu", 1e12),))
    expected = 4 * 1e12 / (6 * 5 * count_cost(model, clip).macs)
    assert peak_steps_per_second(model, *asked) == pytest.approx(expected)
    assert peak_steps_per_second(
        model.copy(remat_policy="nothing_saveable", scan_layers=True), *asked
    ) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("NVIDIA L40", None),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_device_names(kind, tera):
    assert devices.peak_flops(kind) == (tera and tera * 1e12)
