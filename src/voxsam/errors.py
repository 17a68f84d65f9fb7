"""The exceptions of VoxSAM, as a tree.

    VoxSAMError
    ├── InputError                 the user's input is wrong: exit status 2, one line, no traceback
    │   ├── FileError              a file or folder is missing, unreadable, truncated or not writable
    │   │   └── SeriesError        a folder holds several DICOM series, any of which could be meant
    │   ├── ImageError             the file was read, but its voxels are not a scan that can be segmented
    │   │   └── OverlapError       segments of a mask share voxels, which no label map can hold
    │   ├── GeometryError          spacing, affine or slice positions make no sense, or two grids do not match
    │   ├── PromptError            a click, box, scribble or hint is malformed or lies where it cannot be used
    │   ├── CheckpointError        a model file is of another kind, truncated, or does not fit
    │   └── UnsupportedError       the loaded model, or this installation, cannot do what was asked
    └── InternalError              an invariant of VoxSAM does not hold: please report it

Every InputError says three things: what was given, what was expected, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class VoxSAMError(Exception):
    """Base class of everything that VoxSAM raises on purpose."""


class InputError(VoxSAMError):
    """The user's input is wrong. Programs can read `given`, `expected` and `remedy`; str() is one line."""

    def __init__(self, given: str, expected: str, remedy: str) -> None:
        self.given, self.expected, self.remedy = map(one_line, (given, expected, remedy))
        super().__init__(f"{self.given}; expected {self.expected}; {self.remedy}")


def one_line(text: str) -> str:
    """The text as one printable line: file names are arbitrary bytes, and headers may hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


class Faults(Protocol):
    """What pydantic raises: ValidationError, and FastAPI's RequestValidationError."""

    def errors(self) -> Sequence[Any]: ...


def first_fault(error: Faults, whole: str = "") -> str:
    """The first fault that pydantic found, as "where: what"; a fault without a place is one of the `whole`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or whole
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


class FileError(InputError):
    """A file or folder is missing, unreadable, truncated or not writable."""


class SeriesError(FileError):
    """A folder holds several DICOM series that could be meant; `series` describes each, in JSON types."""

    series: tuple[dict[str, Any], ...] = ()


class ImageError(InputError):
    """The voxels of a file are not a scan that can be segmented."""


class OverlapError(ImageError):
    """Segments of one file share voxels, which no label map can hold; `numbers` lists all segments of the file."""

    numbers: tuple[int, ...] = ()


class GeometryError(InputError):
    """Spacing, affine or slice positions make no sense, or two grids do not match."""


class PromptError(InputError):
    """A prompt is malformed or lies where it cannot be used."""


class CheckpointError(InputError):
    """A model file is of another kind, truncated, or does not fit."""


class UnsupportedError(InputError):
    """The loaded model, or this installation, cannot do what was asked."""


class InternalError(VoxSAMError):
    """An invariant of VoxSAM does not hold; the user did nothing wrong."""
