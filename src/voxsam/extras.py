"""Entry points, through which the laboratory adds commands and networks, and the errors for missing extras."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, requires, version
from typing import Any

from voxsam.errors import UnsupportedError

COMMANDS = "voxsam.commands"  # name of a command -> its function
LEARNING = "voxsam.learning"  # any name -> the function with which a project learns (voxsam.lab.learning.learn)
SYSTEMS = "voxsam.systems"  # any name -> a module that adds networks and adapters of model files when imported


def commands() -> list[EntryPoint]:
    """The commands installed besides the product's own, sorted by name; none is loaded yet."""
    return sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name)


def load_systems() -> None:
    """Let `load_model` find every network and adapter installed besides VoxSAM's own."""
    with needs_extra("lab", "a model of the laboratory"):
        for entry in entry_points(group=SYSTEMS):
            entry.load()


def load_learning() -> Callable[..., Any]:
    """The function with which a project learns. Raises UnsupportedError if the laboratory is not installed."""
    require_extra("lab", "learning")
    with needs_extra("lab", "learning"):
        for entry in entry_points(group=LEARNING):
            return entry.load()
    given = "learning with an installation of VoxSAM that does not name it"
    raise UnsupportedError(given, f"an entry point {LEARNING}", "install VoxSAM again: pip install voxsam[lab]")


def require_extra(extra: str, what: str) -> None:
    """Raises UnsupportedError, with the command that installs it, if a library of a VoxSAM extra is missing."""
    try:
        lines = requires("voxsam") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
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
    """Turn the failed import of a library into an UnsupportedError that says how to install `extra`."""
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
