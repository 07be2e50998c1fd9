"""Speed of a model on this machine: forward pass, training step, streaming latency, memory; alone or beside a peer.

Everything is measured in one process. Implementations that are compared take turns, so that a drift of the machine's
speed affects both.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from vitx.analysis import peers
from vitx.analysis.bench_programs import (
    OPTIMIZER,
    Programs,
    check_fits,
    compile_programs,
    count_macs,
    free_bytes,
    matmul_peak,
    program_bytes,
)
from vitx.analysis.peers import Peer
from vitx.console import print_message, progress_bar
from vitx.errors import RunError, UserError
from vitx.models.streaming import StreamingModel

AGREEMENT = {"float32": 1e-3, "bfloat16": 0.1}  # largest deviation of our results from the peer's, relative to them
LEAST_REPEATS = 3
MODEL_SECONDS = 170.0  # limit for a model, its compilation included, beyond LEAST_REPEATS
STREAM_SECONDS = 10.0  # limit for the frames of a stream
SWEEP_SECONDS = 180.0  # limit for a sweep over batch sizes
Call = Callable[[], Any]


def bench(
    name: str,
    model: nn.Module,
    *,
    batch: int = 2,
    repeats: int = 10,
    against: str | None = None,
    eager: bool = False,
    programs: Programs | None = None,
) -> dict[str, Any]:
    """Measures one model at its default input shape on the first device that JAX sees.

    Weights and pixels are random, dropout and stochastic depth are off. A training step is the cross-entropy (the mean
    square of outputs that are not logits), gradients, and SGD with momentum.

    Args:
        name: name of the variant.
        model: the variant, with any fields.
        batch: clips of a forward pass and of a training step; a stream is one video.
        repeats: number of timed calls, after an untimed one; fewer, but at least three, where the model would take more
            than three minutes.
        against: "huggingface", "torchvision" or "pytorchvideo": run the original with the same weights on the same
            clips, in turns with ours. Before that its logits, the losses of two training steps and the norm of the
            momentum after the first, which is that of the gradient, must match ours.
        eager: leave the original without `torch.compile`, which it gets otherwise, with convolutions channels last.
        programs: the model's programs where they are compiled already.

    Returns:
        A row of results. Milliseconds are medians, with the quartiles beside them. "forward_ratio" and
        "train_step_ratio" are medians of the original's time over ours in the same round. "forward_memory_bytes" and
        "train_step_memory_bytes" are the needs of the compiled program: arguments, results and temporaries.
        "forward_peak_fraction" and "train_step_peak_fraction" compare the model's own operations (a step has three
        times those of a forward pass) with "matmul_peak_flops", the best of three measurements on the same device:
        before, between and after the others.

    Raises:
        UserError: PyTorch is missing, the library has no such model, the model does not accept the batch size, or it
            does not fit in memory.
        RunError: the two implementations do not agree.
    """
    check_options(model, batch)
    programs = programs or compile_programs(name, model, batch, jax.devices()[0])
    check_fits(name, batch, programs.bytes_beside(against), programs.device)
    deadline = time.perf_counter() + MODEL_SECONDS - programs.seconds
    model, device = programs.model, programs.device
    clip, random = model.input_shape, np.random.default_rng(0)
    video = random.standard_normal((batch, *clip), np.float32)
    clips = jax.device_put(video, device)
    variables = random_variables(model, clips[:1])
    peer = None
    if against is not None:
        resources = {"threads": count_cores(), "cuda": device.platform == "gpu"}
        peer = peers.create_peer(against, name, model, jax.device_get(variables), video, **resources)
        if not eager:
            peer.compile()
    # The step donates its state; `variables` are needed again for the forward pass.
    state = jax.tree.map(jnp.copy, (variables, OPTIMIZER.init(variables["params"])))

    def take_step() -> jax.Array:
        nonlocal state
        state, loss = programs.step(state, clips)
        return loss.block_until_ready()

    forward: dict[str, Call] = {"forward": lambda: jax.block_until_ready(programs.forward(variables, clips))}
    steps: dict[str, Call] = {"train_step": take_step}
    results: dict[str, Any] = {}
    dtype = getattr(model, "dtype", "float32")
    if peer is not None:
        ours = {"logits": forward["forward"](), "loss": take_step()}
        ours["gradient"] = float(optax.tree.norm(optax.tree.get(state, "trace")))  # momentum after one step
        ours["next_loss"] = take_step()
        results |= {"peer_mode": peer.mode} | _check_agreement(peer, ours, dtype)
        forward["peer_forward"], steps["peer_train_step"] = peer.forward, peer.train_step
    _announce(name, programs.seconds, (forward, steps), repeats, deadline)
    peaks = [matmul_peak(device, dtype)]
    # forward passes get half of the time that is left, steps all that is left then
    for calls, num_waiting, description in ((forward, 2, "forward"), (steps, 1, "training")):
        seconds = (deadline - time.perf_counter()) / num_waiting
        results |= _time(calls, repeats, seconds, f"{name}: {description}")
        peaks.append(matmul_peak(device, dtype))
    if isinstance(model, StreamingModel):
        read_frame = _create_frame_reader(model, variables, clips)
        results |= _time({"frame": read_frame}, repeats * clip[0], STREAM_SECONDS, f"{name}: stream")
    results |= _compute_fractions(results, batch, count_macs(model), max(peaks))
    results |= {f"{call}_clips_per_second": 1e3 * batch / results[f"{call}_ms"] for call in ("forward", "train_step")}
    if any(results.get(f"{call}_peak_fraction", 0) > 1 for call in ("forward", "train_step")):
        print_message(
            f"{name}: faster than the products of its peak: other processes took part, or its convolutions of 3x3 "
            "pixels need fewer products than are counted; measure again"
        )
    return {"model": name, **_describe(programs, batch, dtype), **results, **_list_memory(programs)}


def _describe(programs: Programs, batch: int, dtype: str) -> dict[str, Any]:
    """Returns what was measured: the shape of a batch, and how it was computed."""
    shape = dict(zip(("frames", "height", "width"), programs.model.input_shape, strict=False))
    return {**shape, "batch": batch, "dtype": dtype, "implementation": getattr(programs.model, "implementation", None)}


def _list_memory(programs: Programs) -> dict[str, int]:
    named = {"forward": programs.forward, "train_step": programs.step}
    return {f"{name}_memory_bytes": program_bytes(program) for name, program in named.items()}


def sweep(name: str, model: nn.Module, *, batch: int = 1, repeats: int = 10) -> Iterator[dict[str, Any]]:
    """Yields rows of `bench` for twice as many clips each time, as long as they fit in memory and in three minutes.

    Args:
        name: name of the variant.
        model: the variant.
        batch: the first number of clips.
        repeats: number of timed calls.

    Raises:
        UserError: not even the first number of clips fits.
    """
    began, device = time.perf_counter(), jax.devices()[0]
    check_options(model, batch)
    programs = compile_programs(name, model, batch, device)
    while True:
        started = time.perf_counter()
        yield bench(name, model, batch=batch, repeats=repeats, programs=programs)
        batch, now = 2 * batch, time.perf_counter()
        if now - began + programs.seconds + 2 * (now - started) > SWEEP_SECONDS:
            print_message(f"{name}: batch {batch} would take the sweep beyond {SWEEP_SECONDS:.0f} s; stopping")
            return
        programs = compile_programs(name, model, batch, device)
        needed, free = programs.needed_bytes, free_bytes(device)
        if free is not None and needed > free:
            print_message(f"{name}: batch {batch} needs {needed:,} bytes of memory and {free:,} are free; stopping")
            return


def _announce(
    name: str, compilation: float, kinds: Sequence[Mapping[str, Call]], repeats: int, deadline: float
) -> None:
    """Calls each function once, and reports how long the timed calls will take."""
    rounds = []
    for calls in kinds:
        began = time.perf_counter()
        for call in calls.values():
            call()
        rounds.append(time.perf_counter() - began)
    left, seconds = deadline - time.perf_counter(), 0.0
    for num_waiting, took in zip(range(len(rounds), 0, -1), rounds, strict=True):
        seconds += min(repeats * took, max((left - seconds) / num_waiting, LEAST_REPEATS * took))
    print_message(f"{name}: compiled in {compilation:.0f} s; measuring takes about {seconds:.0f} s")


def _compute_fractions(results: Mapping[str, Any], batch: int, macs: int | None, peak: float) -> dict[str, Any]:
    """Returns the measured peak of matrix products, and the fraction of it that the model's own operations reach."""
    if macs is None:
        return {"matmul_peak_flops": peak}
    passes = {"forward": 1, "train_step": 3}  # the backward pass has two products for each of the forward pass
    per_second = {call: 2e3 * count * macs * batch / results[f"{call}_ms"] for call, count in passes.items()}
    return {"matmul_peak_flops": peak} | {f"{call}_peak_fraction": x / peak for call, x in per_second.items()}


def check_options(model: nn.Module, batch: int) -> None:
    """Raises UserError where a model does not accept a batch of this size."""
    if batch % (groups := getattr(model, "norm_groups", 1)):
        raise UserError(f"--batch is {batch}; expected a multiple of norm_groups, {groups}")


def format_row(row: Mapping[str, Any]) -> str:
    """Returns the results of one model as lines: medians with their quartiles."""
    lines = [row["model"]]
    for name, value in row.items():
        if name == "model" or "_quartiles" in name:
            continue
        quartiles = row.get(quartiles_name(name))
        shown = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        lines.append(f"  {name:28} {shown}" + (" ({:.4g} to {:.4g})".format(*quartiles) if quartiles else ""))
    return "\n".join(lines)


def describe_machine(against: str | None = None) -> dict[str, Any]:
    """Returns the conditions of a measurement: device, processor, threads, load, versions and date."""
    device = jax.devices()[0]
    versions = {"python": platform.python_version(), "jax": jax.__version__}
    if against is not None:
        versions |= peers.versions(against)
    return {
        "device": " ".join(dict.fromkeys((device.platform, device.device_kind))),
        "processor": _find_processor(),
        "threads": count_cores(),
        "load": os.getloadavg()[0],  # over the last minute; much above the number of threads, other processes were busy
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def count_cores() -> int:
    """Returns the number of cores that this process may use, which is the number of threads of XLA and of the peer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_variables(model: nn.Module, video: jax.Array) -> dict[str, Any]:
    """Returns initial variables with noise on vectors and zero arrays, so that no branch and no head outputs zero."""
    variables = jax.jit(model.init)(jax.random.key(0), video)
    random = np.random.default_rng(1)

    def add_noise(x: jax.Array) -> jax.Array:
        return x if x.ndim != 1 and x.any() else x + 0.1 * random.standard_normal(x.shape, np.float32)

    return dict(jax.tree.map(add_noise, variables))


def _check_agreement(peer: Peer, ours: Mapping[str, Any], dtype: str) -> dict[str, float]:
    """Returns the deviations of ours from the peer's, after running the two training steps that ours has run."""
    expected = {
        "logits": peer.forward(),
        "loss": peer.train_step(),
        "gradient": peer.momentum_norm(),
        "next_loss": peer.train_step(),
    }
    deviations = {}
    for name in expected:
        found, reference = (np.asarray(values[name], np.float32) for values in (ours, expected))
        deviations[f"{name}_deviation"] = float(np.abs(found - reference).max() / np.abs(reference).max())
    # `not all(<=)` and not `any(>)`, so that NaN fails
    if not all(deviation <= AGREEMENT.get(dtype, AGREEMENT["float32"]) for deviation in deviations.values()):
        raise RunError(
            f"ours and the peer's results differ (relative deviations {deviations}), so their speed cannot be "
            "compared; leave out --against"
        )
    return deviations


def _time(calls: Mapping[str, Call], repeats: int, seconds: float, description: str) -> dict[str, Any]:
    """Returns median and quartiles of each call's milliseconds, of ratios to a peer's, and the number of timed calls.

    Calls take turns, in the opposite order every second round, so that none always follows the same one. From
    LEAST_REPEATS on, no round starts that would end after `seconds`.
    """
    rounds: list[dict[str, float]] = []
    started = time.perf_counter()
    for number in progress_bar(range(repeats), desc=description, unit=" rounds", leave=False):
        spent = time.perf_counter() - started
        if number >= LEAST_REPEATS and spent * (number + 1) / number > seconds:
            break
        milliseconds = {}
        for name, call in reversed(calls.items()) if number % 2 else calls.items():
            began = time.perf_counter()
            call()
            milliseconds[f"{name}_ms"] = 1e3 * (time.perf_counter() - began)
        rounds.append(milliseconds)
    first, *others = calls
    results: dict[str, Any] = {f"{first}_calls": len(rounds)}
    measured = {f"{name}_ms": [turn[f"{name}_ms"] for turn in rounds] for name in calls}
    for peer in others:
        pairs = zip(measured[f"{peer}_ms"], measured[f"{first}_ms"], strict=True)
        measured[f"{first}_ratio"] = [theirs / own for theirs, own in pairs]
    for name, values in measured.items():
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        results |= {name: median, quartiles_name(name): [low, high]}
    return results


def quartiles_name(name: str) -> str:
    """Returns the name of the quartiles of a measurement: forward_quartiles_ms, forward_ratio_quartiles."""
    return f"{name.removesuffix('_ms')}_quartiles_ms" if name.endswith("_ms") else f"{name}_quartiles"


def _create_frame_reader(model: StreamingModel, variables: Any, video: jax.Array) -> Callable[[], Any]:
    """Returns a function that reads the next frame of a stream, compiled already."""
    step = jax.jit(lambda variables, frame, state: model.apply(variables, frame, state, method="step"))
    state, frame = model.init_state(1), video[:1, 0]

    def read_next_frame() -> None:
        nonlocal state
        logits, state = step(variables, frame, state)
        jax.block_until_ready(logits)

    for _ in range(2):  # compiled in the first call, and once more for the state that it returns
        read_next_frame()
    return read_next_frame


def _find_processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
