"""Foreign PyTorch files, read without executing anything: only tensors, containers and numbers come out."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from voxsam.errors import CheckpointError
from voxsam.weights.files import first_bytes
from voxsam.weights.model_file import is_pickle


class _DType:
    """Stands in for numpy.dtype in a pickle: keeps the code ("f8"), takes the state, computes nothing."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and field tables: not needed."""


def _scalar(dtype: _DType, raw: bytes) -> float | None:
    """Stands in for numpy's scalar maker: a floating-point number, or None for any other type."""
    layout = {"f8": "<d", "f4": "<f"}.get(dtype.code)
    return struct.unpack(layout, raw)[0] if layout and len(raw) == struct.calcsize(layout) else None


# A released checkpoint may hold its best validation loss as a numpy scalar. torch refuses numpy's names unless they are
# given a meaning; these meanings are inert, so nothing of numpy is called by a file.
_NUMPY_NAMES: list[Any] = [
    (_DType, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def read_pickle(path: Path, expected: str) -> dict[Any, Any]:
    """The dictionary in a file of torch.save, tensors on the CPU and, where the format allows it, mapped from the file.

    Raises FileError if it cannot be read; CheckpointError if it is of another kind, truncated, or asks for anything but
    tensors, containers and numbers. `expected` says in the messages what kind of file was wanted.
    """
    start = first_bytes(path, 16, expected)
    if not is_pickle(start):
        kind = "is not a PyTorch file" if start else "is empty"
        raise CheckpointError(f"{path} {kind}", expected, "give the file as it was downloaded")
    try:
        with torch.serialization.safe_globals(_NUMPY_NAMES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old storage classes
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
    """The first sentence of an error: torch goes on with a paragraph on what may have happened."""
    sentence = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0].rstrip(".")
    return sentence or type(error).__name__
