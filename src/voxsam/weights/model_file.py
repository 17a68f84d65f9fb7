"""One VoxSAM model file, read: a .safetensors file whose metadata is the Card, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from voxsam.errors import CheckpointError
from voxsam.network.card import FORMAT_VERSION, Card
from voxsam.weights.files import first_bytes

METADATA_KEY = "voxsam"
WANTED = "a VoxSAM model (.safetensors)"
IMPORT = "`voxsam weights import FILE --kind released|sam --profile kits|lits|pancreas|colon -o MODEL.safetensors`"


def read_card(path: Path) -> Card:
    """The card alone; the tensors are not touched. Raises as `read_model`."""
    return _read(path, with_tensors=False)[0]


def read_model(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """The card and the tensors, which are views of the file (a private map: changing them leaves the file alone).

    So do not change a file in place while it is in use; replacing it (what `save_model` does) is safe. Raises FileError
    if it cannot be read, CheckpointError if it is of another kind, truncated, damaged, or of a newer format.
    """
    return _read(path, with_tensors=True)


def open_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any .safetensors file. Raises CheckpointError if it is truncated or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def is_safetensors(start: bytes) -> bool:
    """Whether a file that starts with these nine bytes or more is .safetensors: a length, then a JSON object."""
    return start[8:9] == b"{"


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts like this was written by torch.save: a zip archive, or in old files a bare pickle."""
    return start.startswith((b"PK\x03\x04", b"\x80"))


def _read(path: Path, with_tensors: bool) -> tuple[Card, dict[str, Tensor]]:
    start = first_bytes(path, 16, WANTED)
    if is_pickle(start) and not is_safetensors(start):  # a length may begin with a pickle's first byte
        raise CheckpointError(f"{path} is a PyTorch file (a pickle), not opened", WANTED, f"convert it with {IMPORT}")
    if not is_safetensors(start):
        kind = "is not a model file" if start else "is empty"
        raise CheckpointError(f"{path} {kind}", WANTED, "give a model's file, or a name of `voxsam weights list`")
    if with_tensors:
        metadata, tensors = open_safetensors(path)
        return _card(path, metadata), tensors
    try:
        with safe_open(path, "pt") as file:
            return _card(path, file.metadata() or {}), {}
    except SafetensorError as error:
        raise _damaged(path, str(error)) from error


def _card(path: Path, metadata: dict[str, str]) -> Card:
    if METADATA_KEY not in metadata:
        remedy = f"if it is a SAM file, convert it with {IMPORT}"
        raise CheckpointError(f"{path} is a .safetensors file without VoxSAM's metadata", WANTED, remedy)
    try:
        fields = json.loads(metadata[METADATA_KEY])
    except json.JSONDecodeError as error:
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
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(
            f"{path}: its metadata do not fit, {where}: {first['msg']}", "the fields of a VoxSAM card", "get it again"
        ) from error


def _damaged(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(f"{path} is truncated or damaged ({detail})", "a complete file", "copy or download it again")
