"""Read and write weight files: VoxSAM's .safetensors with their Card, and foreign pickles, which are never executed."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxsam.atomic import atomic_path
from voxsam.errors import CheckpointError, FileError, first_fault
from voxsam.network.card import FORMAT_VERSION, Card

METADATA_KEY = "voxsam"
WANTED = "a VoxSAM model (.safetensors)"
IMPORT = "`voxsam weights import FILE --kind released|sam --profile kits|lits|pancreas|colon -o MODEL.safetensors`"


# Paths


def first_bytes(path: Path, count: int, expected: str) -> bytes:
    """The first `count` bytes, fewer if the file is shorter. Raises FileError if it is missing, a folder or unreadable.

    `expected` says in the message what kind of file was wanted.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder", expected, "give the file itself")
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except FileNotFoundError as error:
        raise FileError(f"{path}: no such file", expected, "check the path") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})", expected, "check its permissions") from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its name when the block ends without error.

    Raises FileError as `atomic_path` does; nothing is then left behind.
    """
    try:
        with atomic_path(path) as temporary:
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors makes private files (0600); a model should be as readable as others
    except SafetensorError as error:
        given = f"{path} could not be written ({error})"
        raise FileError(given, "a folder that takes files", "check its permissions and free space") from error


# VoxSAM's files


def read_card(path: Path) -> Card:
    """The card alone; the tensors are not touched. Raises as `read_model`."""
    return _read(path, with_tensors=False)[0]


def read_model(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """The card and the tensors, which are views of the file (mapped privately: changing them does not change the file).

    Do not change a file in place while it is in use; replacing it, as `save_model` does, is safe. Raises FileError
    if it cannot be read, CheckpointError if it is of another kind, truncated, damaged, or of a newer format.
    """
    return _read(path, with_tensors=True)


def open_safetensors(path: Path, with_tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any .safetensors file. Raises CheckpointError if it is truncated or damaged."""
    try:
        with safe_open(path, "pt") as file:
            names = file.keys() if with_tensors else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts with these nine bytes or more is .safetensors: a length, then a JSON object."""
    return start[8:9] == b"{"


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts like this is from torch.save: a zip archive, or in old files a bare pickle."""
    return start.startswith((b"PK\x03\x04", b"\x80"))


def _read(path: Path, with_tensors: bool) -> tuple[Card, dict[str, Tensor]]:
    start = first_bytes(path, 16, WANTED)
    if is_pickle(start) and not is_safetensors(start):  # a length may begin with a pickle's first byte
        raise CheckpointError(f"{path} is a PyTorch file (a pickle), not opened", WANTED, f"convert it with {IMPORT}")
    if not is_safetensors(start):
        kind = "is not a model file" if start else "is empty"
        raise CheckpointError(f"{path} {kind}", WANTED, "give a model's file, or a name of `voxsam weights list`")
    metadata, tensors = open_safetensors(path, with_tensors)
    return _card(path, metadata), tensors


def _card(path: Path, metadata: dict[str, str]) -> Card:
    if METADATA_KEY not in metadata:
        remedy = f"if it is a SAM file, convert it with {IMPORT}"
        raise CheckpointError(f"{path} is a .safetensors file without VoxSAM's metadata", WANTED, remedy)
    try:
        fields = from_json(metadata[METADATA_KEY])
    except ValueError as error:
        raise _damaged(path, f"its metadata are not JSON: {error}") from error
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} was written by a newer VoxSAM (format version {version})",
            f"format version {FORMAT_VERSION} or older",
            "upgrade with `pip install -U voxsam`",
        )
    try:
        return Card.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        given = f"{path}: its metadata do not fit, {first_fault(error, 'the whole')}"
        raise CheckpointError(given, "the fields of a VoxSAM card", "get it again") from error


def _damaged(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged ({detail})", "a complete file", "copy or download it again")


# Foreign PyTorch files


class _DType:
    """Stands in for numpy.dtype in a pickle: keeps the code ("f8"), accepts the state, computes nothing."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and field tables, which are not needed."""


def _scalar(dtype: _DType, raw: bytes) -> float | None:
    """Stands in for numpy's scalar constructor: a floating-point number, or None for any other type."""
    layout = {"f8": "<d", "f4": "<f"}.get(dtype.code)
    return struct.unpack(layout, raw)[0] if layout and len(raw) == struct.calcsize(layout) else None


# A released checkpoint may hold its best validation loss as a numpy scalar. torch refuses numpy's names unless they are
# mapped to something; these stand-ins are inert, so that a file can call nothing of numpy.
_NUMPY_NAMES: list[Any] = [
    (_DType, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def read_pickle(path: Path, expected: str) -> dict[Any, Any]:
    """The dictionary in a torch.save file, tensors on the CPU and, where the format allows it, mapped from the file.

    Raises FileError if it cannot be read; CheckpointError if it is of another kind, truncated, or asks for anything but
    tensors, containers and numbers. `expected` says in the messages what kind of file was wanted.
    """
    start = first_bytes(path, 16, expected)
    if not is_pickle(start):
        kind = "is not a PyTorch file" if start else "is empty"
        raise CheckpointError(f"{path} {kind}", expected, "give the file as it was downloaded")
    try:
        # The warnings are about old storage classes.
        with torch.serialization.safe_globals(_NUMPY_NAMES), warnings.catch_warnings(action="ignore"):
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=start.startswith(b"PK"))
    except pickle.UnpicklingError as error:
        foreign = re.search(r"(?:GLOBAL|class|function|import) `?([\w.]+\.[\w.]+)", str(error))
        what = f" ({foreign[1]})" if foreign else ""
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors and numbers{what}; nothing of it was executed",
            expected,
            "use the file as its authors published it",
        ) from error
    except Exception as error:  # a broken file can fail in the reader in any way
        raise CheckpointError(
            f"{path} is truncated or damaged ({_reason(error)})", "a complete file", "copy or download it again"
        ) from error
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path} holds a {type(contents).__name__}", expected, "give a checkpoint's file")
    return contents


def _reason(error: Exception) -> str:
    """The first sentence of an error, after which torch adds a paragraph on what may have happened."""
    sentence = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0].rstrip(".")
    return sentence or type(error).__name__
