"""Speed of a model on this machine: forward pass, training step, streaming latency, memory; alone or beside a peer.

Everything is measured in one process. Implementations that are compared take turns, so that a drift of the machine's
speed affects both.
"""

import functools
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from vitx.analysis import peers
from vitx.analysis.peers import Peer
from vitx.console import progress_bar
from vitx.errors import RunError, UserError, as_user_error
from vitx.models import resolve_implementation
from vitx.models.streaming import StreamingModel

WARM_UP = 2  # untimed calls before the first timed one
AGREEMENT = {"float32": 1e-3, "bfloat16": 0.1}  # between ours and the peer's, relative to the peer's
OPTIMIZER = optax.sgd(peers.LEARNING_RATE, peers.MOMENTUM)


def bench(
    name: str,
    model: nn.Module,
    *,
    batch: int = 2,
    repeats: int = 10,
    against: str | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Measures one model at its default input shape on the first device that JAX sees.

    Weights and pixels are random, dropout and stochastic depth are off. A training step is the cross-entropy (the mean
    square of outputs that are not logits), gradients, and SGD with momentum.

    Args:
        name: name of the variant.
        model: the variant, with any fields.
        batch: clips of a forward pass and of a training step; a stream is one video.
        repeats: number of timed calls, after two untimed ones.
        against: "huggingface", "torchvision" or "pytorchvideo": run the original with the same weights on the same
            clips, in turns with ours. Before that its logits, the losses of two training steps and the norm of the
            momentum after them must match ours.
        compiled: compile the original with `torch.compile`, channels last.

    Returns:
        A row of results. Milliseconds are medians, with the quartiles beside them. "forward_ratio" and
        "train_step_ratio" are the original's time over ours. "forward_memory_bytes" and "train_step_memory_bytes" are
        the needs of the compiled program: arguments, results and temporaries.

    Raises:
        UserError: PyTorch is missing, the library has no such model, or the model does not accept the batch size.
        RunError: the two implementations do not agree.
    """
    _check_options(model, batch, against, compiled)
    device = jax.devices()[0]
    quiet = {field: 0.0 for field in ("dropout_rate", "drop_path_rate") if hasattr(model, field)}
    model = resolve_implementation(model.copy(**quiet), device)
    clip, random = model.input_shape, np.random.default_rng(0)
    video = random.standard_normal((batch, *clip), np.float32)
    clips = jax.device_put(video, device)
    variables = random_variables(model, clips[:1])

    peer = None
    if against is not None:
        resources = {"threads": cores(), "cuda": device.platform == "gpu"}
        peer = peers.make_peer(against, name, model, jax.device_get(variables), video, **resources)
        if compiled:
            peer.compile()
    forward = jax.jit(model.apply).lower(variables, clips).compile()
    # The step donates its state; `variables` are needed again for the forward pass.
    state = jax.tree.map(jnp.copy, (variables, OPTIMIZER.init(variables["params"])))
    with as_user_error(of=name):
        step = jax.jit(functools.partial(train_step, model), donate_argnums=0).lower(state, clips).compile()

    def one_step() -> jax.Array:
        nonlocal state
        state, loss = step(state, clips)
        return loss.block_until_ready()

    calls: dict[str, Callable[[], Any]] = {"forward": lambda: jax.block_until_ready(forward(variables, clips))}
    results: dict[str, Any] = {}
    if peer is not None:
        trained = one_step(), one_step()
        gradient_norm = float(optax.tree.norm(optax.tree.get(state, "trace")))
        ours = {"logits": forward(variables, clips), "loss": trained, "gradient": gradient_norm}
        results |= _check_agreement(peer, ours, getattr(model, "dtype", "float32"))
        calls["peer_forward"] = peer.forward
    _time(calls, repeats, f"{name}: forward", results)
    calls = {"train_step": one_step} | ({} if peer is None else {"peer_train_step": peer.train_step})
    _time(calls, repeats, f"{name}: training", results)
    if isinstance(model, StreamingModel):
        _time({"frame": _stream(model, variables, clips)}, repeats * clip[0], f"{name}: stream", results)
    results |= _ratios(results, batch)
    shape = dict(zip(("frames", "height", "width"), clip, strict=False))
    settings = {"dtype": getattr(model, "dtype", "float32"), "implementation": getattr(model, "implementation", None)}
    memory = {"forward_memory_bytes": _memory(forward), "train_step_memory_bytes": _memory(step)}
    return {"model": name, **shape, "batch": batch, **settings, **results, **memory}


def _ratios(results: Mapping[str, Any], batch: int) -> dict[str, float]:
    """Returns clips per second, and the peer's time over ours where there is a peer."""
    ratios = {}
    for call in ("forward", "train_step"):
        if f"peer_{call}_ms" in results:
            ratios[f"{call}_ratio"] = results[f"peer_{call}_ms"] / results[f"{call}_ms"]
        ratios[f"{call}_clips_per_second"] = 1e3 * batch / results[f"{call}_ms"]
    return ratios


def _check_options(model: nn.Module, batch: int, against: str | None, compiled: bool) -> None:
    if compiled and against is None:
        raise UserError("--compiled compiles the original named by --against; add --against, or leave --compiled out")
    if batch % (groups := getattr(model, "norm_groups", 1)):
        raise UserError(f"--batch is {batch}; expected a multiple of norm_groups, {groups}")


def format_row(row: Mapping[str, Any]) -> str:
    """Returns the results of one model as lines: medians with their quartiles."""
    lines = [row["model"]]
    for name, value in row.items():
        if name == "model" or name.endswith("_quartiles_ms"):
            continue
        quartiles = row.get(name.removesuffix("_ms") + "_quartiles_ms")
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
        "processor": _processor(),
        "threads": cores(),
        "load": os.getloadavg()[0],  # over the last minute; much above the number of threads, other processes were busy
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def cores() -> int:
    """Returns the number of cores that this process may use, which is the number of threads of XLA and of the peer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def random_variables(model: nn.Module, video: jax.Array) -> dict[str, Any]:
    """Returns initial variables with noise on vectors and zero arrays, so that no branch and no head outputs zero."""
    variables = jax.jit(model.init)(jax.random.key(0), video)
    random = np.random.default_rng(1)

    def noisy(x: jax.Array) -> jax.Array:
        return x if x.ndim != 1 and x.any() else x + 0.1 * random.standard_normal(x.shape, np.float32)

    return dict(jax.tree.map(noisy, variables))


def train_step(model: nn.Module, state: Any, video: jax.Array) -> tuple[Any, jax.Array]:
    """Returns ((variables, optimiser state) after a step, loss before it). The labels are 0, 1, 2, ..."""
    variables, optimizer_state = state
    collections = {name: value for name, value in variables.items() if name != "params"}

    def loss(params: Any) -> tuple[jax.Array, Any]:
        outputs, after = model.apply({"params": params, **collections}, video, train=True, mutable=list(collections))
        return sum(map(_loss, jax.tree.leaves(outputs))), after

    (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    updates, optimizer_state = OPTIMIZER.update(gradient, optimizer_state)
    params = optax.apply_updates(variables["params"], updates)
    return ({"params": params, **collections, **after}, optimizer_state), value


def _loss(outputs: jax.Array) -> jax.Array:
    if outputs.ndim != 2:
        return jnp.square(outputs).mean()
    labels = jnp.arange(len(outputs)) % outputs.shape[-1]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def _check_agreement(peer: Peer, ours: Mapping[str, Any], dtype: str) -> dict[str, float]:
    """Returns the deviations of ours from the peer's, after running the two training steps that ours has run."""
    theirs = {
        "logits": peer.forward(),
        "loss": (peer.train_step(), peer.train_step()),
        "gradient": peer.momentum_norm(),
    }
    deviations = {}
    for name, value in ours.items():
        ours_, peers_ = np.asarray(value, np.float32), np.asarray(theirs[name], np.float32)
        deviations[f"{name}_deviation"] = float(np.abs(ours_ - peers_).max() / np.abs(peers_).max())
    # `not all(<=)` and not `any(>)`, so that NaN fails
    if not all(deviation <= AGREEMENT.get(dtype, AGREEMENT["float32"]) for deviation in deviations.values()):
        raise RunError(
            f"ours and the peer's results differ (relative deviations {deviations}), so their speed cannot be "
            "compared; leave out --against"
        )
    return deviations


def _time(calls: dict[str, Callable[[], Any]], repeats: int, description: str, results: dict[str, Any]) -> None:
    """Adds the median and the quartiles of each call's milliseconds to the results; calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in progress_bar(range(WARM_UP + repeats), desc=description, unit=" rounds", leave=False):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - began)
    for name, times in seconds.items():
        low, median, high = np.percentile(1e3 * np.array(times), (25, 50, 75)).tolist()
        results |= {f"{name}_ms": median, f"{name}_quartiles_ms": [low, high]}


def _stream(model: StreamingModel, variables: Any, video: jax.Array) -> Callable[[], Any]:
    step = jax.jit(lambda variables, frame, state: model.apply(variables, frame, state, method="step"))
    state, frame = model.init_state(1), video[:1, 0]

    def one_frame() -> None:
        nonlocal state
        logits, state = step(variables, frame, state)
        jax.block_until_ready(logits)

    return one_frame


def _memory(program: jax.stages.Compiled) -> int:
    needs = program.memory_analysis()
    # donated arguments are counted among the outputs, too
    arrays = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    return int(needs.temp_size_in_bytes + arrays)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
