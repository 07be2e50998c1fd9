"""Reading and writing files of named tensors. Files are not trusted: nothing is executed."""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

import flax.serialization
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict

from vitx.errors import UserError
from vitx.interop.torch_files import read_torch
from vitx.limits import check_unpacked
from vitx.plugins import Registry
from vitx.storage import atomic_path

Tensors = dict[str, np.ndarray]


def read_tensors(path: Path) -> Tensors:
    """Returns the tensors of a .safetensors, .npz, .msgpack or .pth (.pyth, .pt, .bin) file by name.

    Raises:
        UserError: another kind of file, or one that is cut short, damaged or hostile.
    """
    if path.suffix not in READERS:
        raise UserError(f"{path} ends in {path.suffix or 'nothing'}; weights are read from {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        tensors = READERS[path.suffix](path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors


def read_safetensors(path: Path) -> Tensors:
    """Returns the tensors of a .safetensors file."""
    try:
        return safetensors.numpy.load_file(path)
    except OSError:
        raise
    except Exception as error:  # damaged and hostile files surface as nearly anything
        raise UserError(f"{path} is no .safetensors file, or is damaged: {error}") from error


def read_npz(path: PurePath, content: bytes | None = None) -> Tensors:
    """Returns the arrays of an .npz file; one that would have to be unpickled is refused.

    Args:
        path: path of the file.
        content: its bytes where they were read already, as from a bucket.
    """
    source = Path(path) if content is None else io.BytesIO(content)
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            size = None if content is None else len(content)
            check_unpacked(path, sum(member.file_size for member in members), size)
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two arrays have one name")
            for member in members:
                _check_header(archive, member)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        with np.load(source, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, UserError):
        raise
    except Exception as error:  # damaged and hostile files surface as nearly anything
        raise UserError(f"{path} is no .npz file of plain arrays, or is damaged: {error}") from error


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError where an array claims more bytes than its member has: NumPy would allocate them."""
    with archive.open(member) as file:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        version = np.lib.format.read_magic(file)
        if version not in read:
            raise ValueError(f"{member.filename} is of version {version} of NumPy's format")
        shape, _, dtype = read[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, which would have to be unpickled")
        if math.prod(shape) * dtype.itemsize > member.file_size:
            raise ValueError(f"{member.filename} claims the shape {shape}, for which it has too few bytes")


def read_msgpack(path: Path) -> Tensors:
    """Returns the arrays of a tree that Flax wrote, by path: names joined by "/"."""
    try:
        tree = flax.serialization.msgpack_restore(path.read_bytes())
        leaves = flatten_dict(tree)
        flat = {"/".join(path): x for path, x in leaves.items()}
        if len(flat) < len(leaves):
            raise ValueError("two arrays have one path")
    except OSError:
        raise
    except Exception as error:  # damaged and hostile files surface as nearly anything
        raise UserError(f"{path} is no msgpack file that Flax wrote, or is damaged: {error}") from error
    return {name: np.asarray(x) for name, x in flat.items() if isinstance(x, np.ndarray | np.generic)}


# by suffix; a plug-in adds a container with READERS.add(".h5", read_h5)
READERS: Registry[Callable[[Path], Tensors]] = Registry(
    "container of tensor",
    {
        ".safetensors": read_safetensors,
        ".npz": read_npz,
        ".msgpack": read_msgpack,
        ".pth": read_torch,
        ".pyth": read_torch,
        ".pt": read_torch,
        ".bin": read_torch,
    },
)


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the text entries that a .safetensors file has beside its tensors."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except Exception as error:
        raise UserError(f"{path} is no .safetensors file, or is damaged: {error}") from error


def write_safetensors(tensors: Mapping[str, np.ndarray], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a .safetensors file atomically: a reader sees the whole file or none."""
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with atomic_path(path) as draft:
        safetensors.numpy.save_file(arrays, draft, metadata=dict(metadata))
