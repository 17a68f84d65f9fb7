"""The exceptions of VoxSAM, drawn as a tree.

    VoxSAMError
    ├── InputError                 what the user gave is wrong: exit status 2, one line, no traceback
    │   ├── FileError              a file or folder is missing, unreadable, truncated or not writable
    │   │   └── SeriesError        a folder holds several DICOM series, any of which could be meant
    │   ├── ImageError             the file was read, but its voxels are not a scan that can be segmented
    │   │   └── OverlapError       segments of a mask share voxels, which no label map can hold
    │   ├── GeometryError          spacing, affine or slice positions make no sense, or two grids do not match
    │   ├── PromptError            a click, box, scribble or hint is malformed or lies where it cannot be used
    │   ├── CheckpointError        a model file is of another kind, truncated, or does not fit
    │   └── UnsupportedError       the loaded model, or this installation, cannot do what was asked
    └── InternalError              a broken promise inside VoxSAM: please report it

Every InputError says three things: what was given, what was expected, what to do.
"""

from __future__ import annotations

from typing import Any


class VoxSAMError(Exception):
    """Base of everything that VoxSAM raises on purpose."""


class InputError(VoxSAMError):
    """The user's input is wrong. `given`, `expected` and `remedy` are kept for programs; str() is one line."""

    def __init__(self, given: str, expected: str, remedy: str) -> None:
        self.given, self.expected, self.remedy = map(one_line, (given, expected, remedy))
        super().__init__(f"{self.given}; expected {self.expected}; {self.remedy}")


def one_line(text: str) -> str:
    """The text in one line that can be printed: names of files are bytes, and headers hold anything."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


class FileError(InputError):
    """A file or folder is missing, unreadable, truncated or not writable."""


class SeriesError(FileError):
    """A folder holds several DICOM series that could be meant; `series` says what each is, in JSON's types."""

    series: tuple[dict[str, Any], ...] = ()


class ImageError(InputError):
    """The voxels of a file are not a scan that can be segmented."""


class OverlapError(ImageError):
    """Segments of one file share voxels, which no label map can hold; `numbers` are those of all its segments."""

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
    """A promise inside VoxSAM was broken; the user did nothing wrong."""
