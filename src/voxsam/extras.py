"""What comes in by entry points: the laboratory's commands and networks; and what to say where an extra is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from typing import Any

from voxsam.errors import UnsupportedError

COMMANDS = "voxsam.commands"  # name of a command -> its function
LEARNING = "voxsam.learning"  # any name -> the function by which a project learns (voxsam.lab.learning.learn)
SYSTEMS = "voxsam.systems"  # any name -> a module that, imported, adds to the networks and adapters of model files


def commands() -> list[EntryPoint]:
    """The commands that were installed beside the product's own, by name; none is loaded yet."""
    return sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name)


def load_systems() -> None:
    """Make known to `load_model` every network and adapter that was installed beside VoxSAM's own."""
    with needs_extra("lab", "a model of the laboratory"):
        for entry in entry_points(group=SYSTEMS):
            entry.load()


def load_learning() -> Callable[..., Any]:
    """The function by which a project learns. Raises UnsupportedError where the laboratory is not installed."""
    require_extra("lab", "learning")
    with needs_extra("lab", "learning"):
        for entry in entry_points(group=LEARNING):
            return entry.load()
    given = "learning with an installation of VoxSAM that does not name it"
    raise UnsupportedError(given, f"an entry point {LEARNING}", "install VoxSAM again: pip install voxsam[lab]")


def require_extra(extra: str, what: str) -> None:
    """Raises UnsupportedError, with the line that installs it, if a library of an extra of VoxSAM is not installed."""
    try:
        lines = requires("voxsam") or []
    except PackageNotFoundError:  # run from a source tree that nobody installed
        return
    for line in lines:
        name, _, condition = line.partition(";")
        if re.search(rf"extra == ['\"]{extra}['\"]", condition) and not name.startswith("voxsam"):
            library = re.split(r"[^\w.-]", name, maxsplit=1)[0]
            try:
                version(library)
            except PackageNotFoundError as error:
                raise _missing(extra, what, library) from error


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn the import of a library that is not installed into an UnsupportedError: the line that installs `extra`."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "voxsam").partition(".")[0]
        if library == "voxsam":
            raise
        raise _missing(extra, what, library) from error


def _missing(extra: str, what: str, library: str) -> UnsupportedError:
    given = f"{what} without {library}, which is not installed"
    return UnsupportedError(given, f"the extra `{extra}`", f'run: pip install "voxsam[{extra}]"')
