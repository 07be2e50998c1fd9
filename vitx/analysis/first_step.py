"""Time from the start of a process to the end of its first training step, with an empty and a filled cache.

`python -m vitx.analysis.first_step` reads a model as JSON from standard input and takes that step.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from vitx import configuration, strict_json
from vitx.console import print_json
from vitx.errors import RunError, UserError


def time_first_step(name: str, model: Any, batch: int) -> dict[str, float]:
    """Returns {"first_step_cold_seconds", "first_step_warm_seconds"} of a training step in a process of its own.

    The first process finds an empty cache of compiled programs, the second one what the first has left. To be called
    before this process uses its devices: two cannot share an accelerator.

    Args:
        name: the model's name, for errors.
        model: the model.
        batch: clips of the step.

    Raises:
        UserError: the model does not accept the batch, or does not fit in memory.
        RunError: the process failed.
    """
    words, seconds = [sys.executable, "-m", "vitx.analysis.first_step"], {}
    case = {"name": name, "model": configuration.to_dict(model), "batch": batch}
    with tempfile.TemporaryDirectory(prefix="vitx_programs_") as folder:
        for cache in ("cold", "warm"):
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": folder}
            sent = strict_json.dumps(case | {"began": time.time()})
            done = subprocess.run(words, input=sent, env=environment, capture_output=True, text=True)
            if done.returncode:
                last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
                raise RunError(f"the first step of {name} failed with status {done.returncode}: {last}")
            answer = json.loads(done.stdout)
            if "error" in answer:
                raise UserError(answer["error"])
            seconds[f"first_step_{cache}_seconds"] = answer["seconds"]
    return seconds


def take_first_step(name: str, model: Any, batch: int) -> None:
    """Takes one training step, and waits for it."""
    import jax

    from vitx.analysis.bench_programs import OPTIMIZER, check_fits, compile_step, program_bytes, without_dropout

    device = jax.devices()[0]
    model = without_dropout(model, device)
    step = compile_step(name, model, batch, device)
    check_fits(name, batch, program_bytes(step), device)
    clips = jax.numpy.zeros((batch, *model.input_shape))
    variables = jax.jit(model.init)(jax.random.key(0), clips[:1])
    step((variables, OPTIMIZER.init(variables["params"])), clips)[1].block_until_ready()


def main() -> None:
    """Reads {"name", "model", "batch", "began"} from standard input; writes {"seconds"} since then, or {"error"}."""
    import vitx.models  # noqa: F401  registers the models

    read = json.load(sys.stdin)
    try:
        take_first_step(read["name"], configuration.from_dict(read["model"], "model"), read["batch"])
    except UserError as error:
        print_json({"error": str(error)})
        return
    print_json({"seconds": time.time() - read["began"]})


if __name__ == "__main__":
    main()
