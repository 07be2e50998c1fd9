"""The benchmark: its results, the implementation it chooses, and that compared models agree; not speed itself."""

import functools
import itertools
import json
import sys
from unittest import mock

import jax
import numpy as np
import optax
import pytest

import vitx
from vitx import cli
from vitx.analysis import bench as benchmark
from vitx.analysis import bench_programs, first_step, peers
from vitx.models import resolve_implementation

SMALL = {"num_classes": 3, "width": 4, "clip": (2, 16, 16)}


class Echo(peers.Peer):
    """A peer that runs our model, with optional errors in logits and momentum."""

    def __init__(self, model, variables, video, more=0.0, steeper=0.0):
        self.model, self.video, self.more, self.steeper = model, jax.numpy.asarray(video), more, steeper
        self.trained = jax.jit(functools.partial(bench_programs.train_step, model))
        self.state = (variables, bench_programs.OPTIMIZER.init(variables["params"]))

    def forward(self):
        return np.asarray(jax.jit(self.model.apply)(self.state[0], self.video)) * (1 + self.more)

    def train_step(self):
        self.state, loss = self.trained(self.state, self.video)
        return float(loss)

    def momentum_norm(self):
        return float(optax.tree.norm(self.state[1])) * (1 + self.steeper)


@pytest.fixture
def echo(monkeypatch):
    def install(**how):
        def make(library, name, model, variables, video, **_):
            return Echo(model, variables, video, **how)

        monkeypatch.setattr(peers, "create_peer", make)

    return install


def test_streaming_model_is_measured_beside_a_peer_that_agrees(echo):
    echo()
    row = benchmark.bench(
        "cnn_small", vitx.create_model("cnn_small", **SMALL), batch=3, repeats=3, against="torchvision", eager=True
    )
    assert (row["model"], row["frames"], row["height"], row["batch"]) == ("cnn_small", 2, 16, 3)
    assert row["implementation"] == "cpu"
    for name in ("forward", "train_step", "peer_forward", "peer_train_step", "frame"):
        low, high = row[f"{name}_quartiles_ms"]
        assert 0 < low <= row[f"{name}_ms"] <= high
    for name in ("forward", "train_step"):
        low, high = row[f"{name}_ratio_quartiles"]
        assert 0 < low <= row[f"{name}_ratio"] <= high
        assert row[f"{name}_clips_per_second"] == pytest.approx(3e3 / row[f"{name}_ms"])
    assert row["train_step_memory_bytes"] > row["forward_memory_bytes"] > 3 * 2 * 16 * 16 * 3 * 4  # the batch
    assert max(row[f"{name}_deviation"] for name in ("logits", "loss", "gradient", "next_loss")) < 1e-5
    assert "frame_ms" in benchmark.format_row(row) and json.dumps(row)


@pytest.mark.parametrize("how", [{"more": 0.01}, {"steeper": 0.01}, {"more": np.nan}])
def test_a_peer_that_computes_another_function_is_refused(echo, how):
    echo(**how)
    with pytest.raises(vitx.errors.RunError, match="deviation"):
        benchmark.bench(
            "cnn_small", vitx.create_model("cnn_small", **SMALL), repeats=1, against="torchvision", eager=True
        )


def test_random_variables_have_no_zero_branches():
    """Branches and heads start as zero, and would hide any difference."""
    model = vitx.create_model("slow_r50", width=8, depths=(1, 1, 1, 1))
    variables = benchmark.random_variables(model, jax.numpy.zeros((1, 1, 32, 32, 3)))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(variables))
    assert all(leaf.min() > 0 for path, leaf in jax.tree.leaves_with_path(variables) if path[-1].key == "var")


@pytest.mark.parametrize(
    ("name", "platforms"),
    [("r3d_18", {"gpu": "reference", "tpu": "reference"}), ("vivit_ti_16x2", {"gpu": "gpu", "tpu": "tpu"})],
)
def test_implementation_follows_the_platform_of_the_device(name, platforms):
    model = vitx.create_model(name)
    assert model.implementation == "auto"
    assert resolve_implementation(model, jax.devices()[0]).implementation == "cpu"
    for platform, implementation in platforms.items():
        device = mock.Mock(spec=jax.Device, platform=platform, compute_capability="9.0")
        assert resolve_implementation(model, device).implementation == implementation
    chosen = model.copy(implementation="reference")
    assert resolve_implementation(chosen, jax.devices()[0]).implementation == "reference"


@pytest.mark.parametrize("library", ["torchvision", "pytorchvideo", "huggingface"])
def test_missing_pytorch_is_an_error_that_names_the_extra(library, monkeypatch, capsys):
    for name in ("torch", "torchvision", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    small = ["--clip", "2", "16", "16", "--width", "4"]
    assert cli.main(["bench", "cnn_small", "--against", library, *small]) == 2
    assert f"--against {library} needs PyTorch" in (err := capsys.readouterr().err) and "vitx[peers]" in err


def test_bench_command_prints_one_json_object(capsys):
    small = ["--clip", "1", "16", "16", "--width", "4", "--batch", "1", "--repeats", "1"]
    assert cli.main(["bench", "cnn_small", "--json", *small]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["machine"]["threads"] >= 1 and output["machine"]["versions"]["jax"] == jax.__version__
    assert [row["frames"] for row in output["models"]] == [1]
    assert cli.main(["bench", "cnn_small", "--repeats", "0"]) == 2
    assert "--repeats is 0" in capsys.readouterr().err
    assert cli.main(["bench", "r3d_18", "--norm_groups", "3", "--width", "4", "--clip", "8", "16", "16"]) == 2
    assert "--batch is 2" in capsys.readouterr().err


def test_the_fraction_of_the_matrix_product_peak_counts_the_models_own_operations():
    row = benchmark.bench("cnn_small", vitx.create_model("cnn_small", **SMALL), batch=2, repeats=2)
    macs = vitx.count_cost(vitx.create_model("cnn_small", **SMALL), (2, 16, 16, 3)).macs
    peak = row["matmul_peak_flops"]
    assert row["forward_peak_fraction"] == pytest.approx(2 * 2 * macs / (row["forward_ms"] / 1e3) / peak)
    assert row["train_step_peak_fraction"] == pytest.approx(3 * 2 * 2 * macs / (row["train_step_ms"] / 1e3) / peak)
    assert peak > 1e8


def test_three_calls_are_timed_where_more_would_take_too_long(monkeypatch):
    calls = itertools.count()
    assert benchmark._time({"forward": lambda: next(calls)}, 5, 60.0, "")["forward_calls"] == 5 and next(calls) == 5
    results = benchmark._time({"forward": lambda: None, "peer_forward": lambda: None}, 5, 0.0, "")
    assert results["forward_calls"] == 3 and "peer_forward_calls" not in results
    monkeypatch.setattr(benchmark, "MODEL_SECONDS", 0.0)
    row = benchmark.bench("cnn_small", vitx.create_model("cnn_small", **SMALL), repeats=5)
    assert row["forward_calls"] == 3 and row["train_step_calls"] == 3


def test_calls_take_turns_and_ratios_are_those_of_a_round(monkeypatch):
    """The machine is half as fast in the second of three rounds; the peer takes three times as long in each."""
    now, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds * (2 if len(order) in (3, 4) else 1)

        return run

    results = benchmark._time({"forward": call("own", 1.0), "peer_forward": call("peer", 3.0)}, 3, 60.0, "")
    assert order == ["own", "peer", "peer", "own", "own", "peer"]
    assert results["forward_ratio"] == 3.0 and results["forward_ratio_quartiles"] == [3.0, 3.0]
    assert results["forward_ms"] == 1000 and results["forward_quartiles_ms"] == [1000, 1500]


def test_a_benchmark_that_does_not_fit_is_refused_before_it_starts(monkeypatch, capsys):
    monkeypatch.setattr(bench_programs, "available_memory", lambda: 10_000)
    monkeypatch.setattr(benchmark, "random_variables", mock.Mock(side_effect=AssertionError))
    small = ["--clip", "2", "16", "16", "--width", "4"]
    assert cli.main(["bench", "cnn_small", "--batch", "3", *small]) == 2
    error = capsys.readouterr().err
    assert "--batch 3" in error and "10,000" in error


def test_of_several_models_none_is_measured_where_one_does_not_fit(monkeypatch, capsys):
    small = ["--clip", "2", "16", "16", "--width", "4"]
    model = vitx.create_model("cnn_small", **SMALL)
    needed = bench_programs.compile_programs("cnn_small", model, 2, jax.devices()[0]).needed_bytes
    monkeypatch.setattr(bench_programs, "available_memory", lambda: 4 * needed)
    monkeypatch.setattr(benchmark, "random_variables", mock.Mock(side_effect=AssertionError))
    assert cli.main(["bench", "cnn_small", "lrcn_small", "--hidden_size", "512", *small]) == 2
    assert "lrcn_small" in capsys.readouterr().err


def test_an_original_counts_with_its_weights_gradients_and_momentum():
    model = vitx.create_model("cnn_small", **SMALL)
    programs = bench_programs.compile_programs("cnn_small", model, 2, jax.devices()[0])
    assert programs.bytes_beside(None) == programs.needed_bytes
    weights = 4 * vitx.count_cost(model, model.input_shape).params
    assert programs.bytes_beside("torchvision") - programs.needed_bytes >= 3 * weights


@pytest.mark.smoke
def test_memory_of_a_training_step_is_linear_in_tokens():
    """Of ViViT-B/16x2 model 1's 1,569 and 3,137 tokens; one narrow block, so that scores would outweigh all else."""
    small = {"hidden_size": 24, "num_heads": 2, "mlp_dim": 24, "num_layers": 1, "num_classes": 2}

    def needed_bytes(num_frames, implementation):
        model = vitx.create_model("vivit_b_16x2", **small).with_input_shape(num_frames, implementation=implementation)
        step = bench_programs.compile_step("vivit_b_16x2", model, 1, jax.devices()[0])
        return bench_programs.program_bytes(step)

    small_bytes, large_bytes = needed_bytes(16, "cpu"), needed_bytes(32, "cpu")
    assert large_bytes < 2.1 * small_bytes
    assert large_bytes < needed_bytes(32, "reference") / 3


def test_a_sweep_doubles_the_batch_until_memory_or_time_ends(monkeypatch, capsys):
    model, device = vitx.create_model("cnn_small", **SMALL), jax.devices()[0]
    needs = [bench_programs.compile_programs("cnn_small", model, batch, device).needed_bytes for batch in (2, 4)]
    assert needs[0] < needs[1]
    monkeypatch.setattr(bench_programs, "available_memory", lambda: (needs[0] + needs[1]) // 2)
    rows = list(benchmark.sweep("cnn_small", model, batch=1, repeats=1))
    assert [row["batch"] for row in rows] == [1, 2]
    assert f"{needs[1]:,} bytes" in capsys.readouterr().err
    monkeypatch.setattr(benchmark, "SWEEP_SECONDS", 0.0)
    assert [row["batch"] for row in benchmark.sweep("cnn_small", model, batch=2, repeats=1)] == [2]
    assert cli.main(["bench", "cnn_small", "--sweep", "--against", "torchvision"]) == 2


def test_how_long_it_will_take_is_reported_before_the_timed_calls(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "_time", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.bench("cnn_small", vitx.create_model("cnn_small", **SMALL), repeats=2)
    assert "cnn_small: compiled in" in (error := capsys.readouterr().err) and "about" in error


@pytest.mark.slow  # two processes that import and compile
def test_a_first_step_is_faster_with_a_filled_cache(capsys):
    small = ["--clip", "2", "64", "64", "--batch", "1", "--repeats", "1"]
    assert cli.main(["bench", "cnn_small", "--first_step", "--json", *small]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert 0 < row["first_step_warm_seconds"] < row["first_step_cold_seconds"]


def test_a_first_step_reports_what_the_model_refuses(monkeypatch):
    done = mock.Mock(returncode=0, stdout=json.dumps({"error": "cnn_small: no such clip"}))
    monkeypatch.setattr(first_step.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(vitx.UserError, match="no such clip"):
        first_step.time_first_step("cnn_small", vitx.create_model("cnn_small", **SMALL), 1)


ORIGINALS = [("torchvision", name) for name in peers.TORCHVISION]
ORIGINALS += [("pytorchvideo", name) for name in peers.PYTORCHVIDEO]


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorchVideo and PyTorch
@pytest.mark.parametrize(("library", "name"), ORIGINALS)
def test_every_original_computes_our_logits(library, name):
    frames = 32 if name.startswith("slowfast") else 16
    model = vitx.create_model(name, num_classes=5, dropout_rate=0.0, clip=(frames, 64, 64), implementation="cpu")
    video = np.random.default_rng(0).standard_normal((2, frames, 64, 64, 3), np.float32)
    variables = benchmark.random_variables(model, jax.numpy.asarray(video[:1]))
    ours = jax.jit(model.apply)(variables, jax.numpy.asarray(video))
    peer = peers.create_peer(library, name, model, jax.device_get(variables), video, threads=2)
    for theirs in (peer.forward(), peer.forward()):
        assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_models_that_a_library_lacks_are_an_error():
    model, video = vitx.create_model("cnn_small", **SMALL), np.zeros((1, 2, 16, 16, 3), np.float32)
    variables = benchmark.random_variables(model, jax.numpy.asarray(video))
    with pytest.raises(vitx.UserError, match="torchvision has no cnn_small; it has r3d_18"):
        peers.create_peer("torchvision", "cnn_small", model, jax.device_get(variables), video, threads=2)
    model, video = vitx.create_model("mc3_18", width=8), np.zeros((1, 8, 16, 16, 3), np.float32)
    variables = benchmark.random_variables(model, jax.numpy.asarray(video))
    with pytest.raises(vitx.UserError, match="the original has weights of other shapes"):
        peers.create_peer("torchvision", "mc3_18", model, jax.device_get(variables), video, threads=2)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *((name, "sdpa") for name in ("vivit_ti_16x2", "vivit_ti_16x2_fe", "vivit_ti_16x2_avg", "videomae_s_16x2")),
        *((f"timesformer_b_16_{layout}", "eager") for layout in ("divided", "joint")),
    ],
)
def test_hugging_face_computes_our_logits(name, attention):
    small = {"num_frames": 4, "image_size": 32, "num_layers": 2, "hidden_size": 24, "num_heads": 2, "mlp_dim": 32}
    if name.endswith("_fe"):
        small |= {"num_temporal_layers": 2, "image_size": (32, 48)}
    row = benchmark.bench(
        name, vitx.create_model(name, num_classes=5, **small), repeats=1, against="huggingface", eager=True
    )
    assert row["logits_deviation"] < 1e-3 and row["forward_ratio"] > 0
    assert row["peer_mode"] == f"eager, {attention} attention"


@pytest.mark.peers
def test_space_attention_of_hugging_face_is_another_function():
    small = {"num_frames": 2, "image_size": 32, "num_layers": 1, "hidden_size": 24, "num_heads": 2, "mlp_dim": 32}
    model = vitx.create_model("timesformer_b_16_space", **small)
    with pytest.raises(vitx.UserError, match=r"timesformer_b_16_space.*logits for every frame.*--against"):
        benchmark.bench("timesformer_b_16_space", model, repeats=1, against="huggingface", eager=True)


@pytest.mark.peers
def test_models_that_cannot_be_composed_are_an_error():
    model = vitx.create_model("vivit_ti_16x2_fe", num_frames=4, image_size=32, num_layers=1, pooling="mean")
    with pytest.raises(vitx.UserError, match="vivit_ti_16x2_fe cannot be composed"):
        benchmark.bench("vivit_ti_16x2_fe", model, repeats=1, against="huggingface")


@pytest.mark.peers
def test_an_original_that_cannot_be_compiled_stays_eager_and_says_so(monkeypatch):
    import torch

    def fail(module):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fail)
    small = {"num_frames": 2, "image_size": 32, "num_layers": 1, "hidden_size": 24, "num_heads": 2, "mlp_dim": 32}
    model = vitx.create_model("vivit_ti_16x2", num_classes=5, **small)
    row = benchmark.bench("vivit_ti_16x2", model, repeats=1, against="huggingface")
    assert row["peer_mode"] == "eager, sdpa attention (torch.compile failed: RuntimeError)"


@pytest.mark.peers
@pytest.mark.parametrize(
    ("library", "name", "small", "mode"),
    [
        ("huggingface", "timesformer_b_16_divided", {"image_size": 32}, "torch.compile, eager attention"),
        ("torchvision", "r3d_18", {"clip": (8, 32, 32)}, "torch.compile"),
    ],
)
def test_an_original_is_compiled_where_it_can_be(library, name, small, mode):
    if library == "huggingface":
        small |= {"num_frames": 2, "num_layers": 1, "hidden_size": 24, "num_heads": 2, "mlp_dim": 32}
    row = benchmark.bench(name, vitx.create_model(name, num_classes=5, **small), repeats=1, against=library)
    assert row["peer_mode"] == mode
