"""Files that appear whole or not at all: written beside the target, flushed to disk, then renamed over it."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from voxsam.errors import FileError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new, empty file in the target's folder, with the target's suffix, to write into.

    When the block ends, it is flushed to disk and takes the target's name, replacing an existing file. If the block
    raises, it is removed and the target is left as it was. Raises FileError if the folder is missing, or if the file
    cannot be written there (any OSError of the block).
    """
    with _beside(target) as (path, temporary):
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)


@contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new, empty folder beside `target`; it replaces `target` when the block ends and is removed if it raises.

    Raises FileError if the files cannot be written there (any OSError of the block), and before the block for a target
    that could not be replaced: a link to itself, the root of a disk, a folder without write permission.
    """
    path = Path(os.path.realpath(target))
    made, old = (path.with_name(f".{secrets.token_hex(4)}-{path.name}") for _ in range(2))
    try:
        # what would fail only when everything else is done
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if path.is_mount():
            raise OSError(errno.EBUSY, "it is the root of a disk")
        if path.exists() and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        made.mkdir(parents=True)
        yield made
        for file in made.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        if path.exists():
            path.rename(old)
        made.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise _unwritten(path, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_writable(target: str | os.PathLike[str]) -> None:
    """Raises FileError, as `atomic_path` would, if `target` cannot be written; tries it and leaves nothing behind."""
    with _beside(target):
        pass


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers left in a folder, for the output `name` or for any (None).

    No other process may be writing there at the time.
    """
    for path in folder.glob(f".{'[0-9a-f]' * 8}-{'*' if name is None else glob.escape(name)}"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def make_folder(folder: Path) -> None:
    """Make the folder of an output, and its parents, unless it exists. Raises FileError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        given = f"{folder} ({error.strerror})"
        raise FileError(given, "a folder that can be made", "choose another with -o") from error


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path], remedy: str) -> None:
    """Raises FileError, with `remedy`, if an output would replace an input, under whatever name or link."""
    taken = {identity for path in inputs for identity in _identities(path)}
    for path in outputs:
        if not taken.isdisjoint(_identities(path)):
            raise FileError(f"{path} is an input itself", "another file for the output", remedy)


def _identities(path: Path) -> list[object]:
    """What all names of a file have in common: its path with links resolved, and its inode if it exists."""
    place = Path(os.path.realpath(path))
    try:
        stat = place.stat()
    except OSError:
        return [place]
    return [place, (stat.st_dev, stat.st_ino)]


@contextmanager
def _beside(target: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the file that `target` names, and a new, empty one beside it that is gone when the block ends."""
    path = Path(os.path.realpath(target))  # through a link, so that the link stays a link
    if not path.parent.is_dir():
        raise FileError(f"the output folder {path.parent} does not exist", "an existing folder", "create it first")
    if path.is_dir():
        raise FileError(f"the output {path} is a folder", "the name of a file", "add a file name")
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        # Not mkstemp, whose files are private (0600): results should be as readable as any other new file.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield path, temporary
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with suppress(OSError):  # where the disk is, or has become, read-only
            temporary.unlink()


def _unwritten(path: Path, error: OSError) -> FileError:
    given = f"{path} could not be written ({error.strerror or error})"
    return FileError(given, "a folder that takes files", "check its permissions and free space")


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
