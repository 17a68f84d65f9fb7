"""Paths of model files: can one be read, and a new one that appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from voxsam.errors import FileError


def first_bytes(path: Path, count: int, expected: str) -> bytes:
    """The first `count` bytes, fewer if the file is shorter. Raises FileError: missing, a folder, or unreadable.

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


def check_new(path: Path) -> None:
    """Raises FileError if no file can be made at `path`: its folder is missing or takes no files, or it is a folder."""
    if not path.parent.is_dir():
        raise FileError(f"the output folder {path.parent} does not exist", "an existing folder", "create it first")
    if path.is_dir():
        raise FileError(f"the output {path} is a folder", "the name of a file", "add a file name")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise FileError(f"the output folder {path.parent} is not writable", "one that takes files", "choose another")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its name when the block ends without error.

    Raises FileError as `check_new`, and if the disk does not take the file; then nothing is left behind.
    """
    check_new(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        yield temporary
        os.chmod(temporary, mode)  # safetensors makes private files (0600); a model is as readable as any new file
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileError(
            f"{path} could not be written ({reason})", "a folder that takes files", "check permissions and free space"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
