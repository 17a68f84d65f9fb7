"""What comes in by entry points: the laboratory's commands and networks; and what to say where an extra is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from voxsam.errors import UnsupportedError

COMMANDS = "voxsam.commands"  # name of a command -> its function
SYSTEMS = "voxsam.systems"  # any name -> a module that, imported, adds to the networks and adapters of model files


def commands() -> list[EntryPoint]:
    """The commands that were installed beside the product's own, by name; none is loaded yet."""
    return sorted(entry_points(group=COMMANDS), key=lambda entry: entry.name)


def load_systems() -> None:
    """Make known to `load_model` every network and adapter that was installed beside VoxSAM's own."""
    with needs_extra("lab", "a model of the laboratory"):
        for entry in entry_points(group=SYSTEMS):
            entry.load()


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn a library that is not installed into an UnsupportedError with the line that installs `extra`."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "voxsam").partition(".")[0] == "voxsam":
            raise
        raise UnsupportedError(
            f"{what} without {error.name}, which is not installed",
            f"the extra `{extra}`",
            f'run: pip install "voxsam[{extra}]"',
        ) from error
