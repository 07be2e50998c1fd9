"""PyTorch files, read in a separate process: a pickle from somebody else can take all memory, or never end.

The process loads the file with `weights_only=True` under limits of processor time and memory, and writes to its
standard output: a line of JSON, {"tensors": [[name, type, shape], ...]} or {"error": reason}, then the bytes of all
tensors. Its output is checked like a file, since a hostile file may control the process.
"""

import contextlib
import json
import math
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vitx import strict_json
from vitx.errors import UserError
from vitx.limits import MAX_EXCESS, check_memory, check_unpacked

CPU_SECONDS = 6  # processor time to read a file, and one second more for every 50 MB
MAX_HEADER = 2**26  # bytes of the line of JSON
TYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128")


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a PyTorch file by name; keys of nested dictionaries are joined by "/".

    Raises:
        UserError: PyTorch is missing, or the file is no dictionary of tensors, takes too much time or memory, or holds
            more than tensors.
    """
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_unpacked(path, sum(member.file_size for member in archive.infolist()))
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()", str(path), str(size)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        try:
            answer = _read_answer(child.stdout, path, size)
        finally:
            child.kill()
    if answer is None:
        raise UserError(
            f"{path} cannot be read within {_cpu_seconds(size)} seconds and {_budget(size):,} bytes of memory; "
            "it is damaged or hostile: save the weights alone, torch.save(model.state_dict(), FILE)"
        )
    if isinstance(answer, str):
        raise UserError(f"{path} {answer}")
    return answer


def _read_answer(stream: IO[bytes], path: Path, size: int) -> dict[str, np.ndarray] | str | None:
    """Returns the tensors, a reason why there are none, or None where the process ended without one."""
    try:
        header = json.loads(stream.readline(MAX_HEADER))
        if "error" in header:
            return str(header["error"])
        listed = [(str(name), str(kind), tuple(map(int, shape))) for name, kind, shape in header["tensors"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if any(kind not in TYPES or min(shape, default=0) < 0 for _, kind, shape in listed):
        return None
    needed = sum(math.prod(shape) * np.dtype(kind).itemsize for _, kind, shape in listed)
    if needed > 2 * _budget(size):  # what is stored as bfloat16 arrives as float32
        return None
    check_memory(needed, str(path))
    tensors = {}
    for name, kind, shape in listed:
        tensors[name] = np.empty(shape, kind)
        if stream.readinto(memoryview(tensors[name].reshape(-1)).cast("B")) != tensors[name].nbytes:
            return None
    return tensors


def _budget(size: int) -> int:
    """Returns the bytes that all tensors of a file may have; of tensors that share memory, each counts."""
    return 2 * size + MAX_EXCESS


def _cpu_seconds(size: int) -> int:
    return CPU_SECONDS + size // 50_000_000


def serve() -> None:
    """Runs the process: reads the file that its arguments name and answers on standard output."""
    path, size = sys.argv[1], int(sys.argv[2])
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write into the answer
    try:
        import torch

        _limit(size)
        header, tensors = _load(torch, path, size)
    except ImportError:
        header, tensors = {"error": "is a PyTorch file, which needs PyTorch to be read: pip install 'vitx[peers]'"}, []
    except MemoryError:
        header, tensors = {"error": "takes too much memory; it is damaged or hostile"}, []
    output.write(strict_json.dumps(header).encode() + b"\n")
    for tensor in tensors:
        output.write(memoryview(np.ascontiguousarray(tensor.numpy()).reshape(-1)).cast("B"))
    output.flush()
    os._exit(0)


def _limit(size: int) -> None:
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    seconds = int(used) + 1 + _cpu_seconds(size)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        mapped = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize:"))
        # the file once as it is stored, and once as it is sent
        room = mapped + 6 * size + 2 * MAX_EXCESS
        resource.setrlimit(resource.RLIMIT_AS, (room, room))


def _load(torch: Any, path: str, size: int) -> tuple[dict[str, Any], list[Any]]:
    """Returns (line of JSON, tensors to send)."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        advice = "save the weights alone, torch.save(model.state_dict(), FILE)"
        return _refuse(f"holds more than tensors, perhaps a whole model, or is damaged; nothing is unpickled: {advice}")
    except MemoryError:
        raise
    except Exception as error:  # damaged and hostile files surface as nearly anything
        reason = (str(error).strip().splitlines() or [""])[0]
        summary = f"{type(error).__name__}: {reason[:300]}"
        return _refuse(f"is no PyTorch file of plain weights, or is damaged: {summary}")
    if not isinstance(state, dict):
        return _refuse(f"holds a {type(state).__name__}; expected a dictionary of tensors by name")
    tensors = [(name, x.detach()) for name, x in join_keys(state) if isinstance(x, torch.Tensor)]
    found = dict(tensors)
    if len(found) < len(tensors):
        return _refuse("holds two tensors of one path")
    needed = sum(x.numel() * x.element_size() for x in found.values())
    if needed > _budget(size):
        return _refuse(
            f"has {size:,} bytes and claims tensors of {needed:,}; expected at most {_budget(size):,}: "
            "save its tensors dense and not expanded"
        )
    try:
        dense = {name: x.to_dense() for name, x in found.items()}
        # NumPy has no bfloat16; float32 holds every value of it exactly
        sent = {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in dense.items()}
        kinds = {name: str(x.numpy().dtype) for name, x in sent.items()}
    except (RuntimeError, TypeError) as error:
        return _refuse(f"holds tensors that cannot be read: {error}")
    return {"tensors": [[name, kinds[name], list(x.shape)] for name, x in sent.items()]}, list(sent.values())


def _refuse(reason: str) -> tuple[dict[str, Any], list[Any]]:
    return {"error": reason}, []


def join_keys(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (keys joined by "/", value) of nested dictionaries; one that holds itself is entered once."""
    stack, entered = [("", tree)], set()
    while stack:
        prefix, inner = stack.pop()
        if id(inner) in entered:
            continue
        entered.add(id(inner))
        for key, value in inner.items():
            if isinstance(value, dict):
                stack.append((f"{prefix}{key}/", value))
            else:
                yield f"{prefix}{key}", value
