"""The files that a command was asked for: checked before anything is computed, then written one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from voxsam.atomic import check_writable, refuse_inputs, remove_leftovers
from voxsam.errors import FileError, InputError


class Outputs:
    """Paths by option, None where the option was not given; `endings` are those that each one's name may have.

    Raises FileError for a wrong ending, for one file named twice or an input named as an output, and where no file can
    be made: then nothing has been written.
    """

    def __init__(
        self, paths: Mapping[str, Path | None], endings: Mapping[str, Sequence[str]], inputs: Sequence[Path]
    ) -> None:
        self.paths = {option: path for option, path in paths.items() if path is not None}
        self.written: list[Path] = []
        taken: dict[Path, str] = {}
        for option, path in self.paths.items():
            allowed = tuple(endings[option])
            if not path.name.lower().endswith(allowed) or path.is_dir():
                expected = f"a file whose name ends in {', '.join(allowed)}"
                raise FileError(f"{option} {path}", expected, "rename the output")
            first = taken.setdefault(path.resolve(), option)
            if first != option:
                raise FileError(f"{first} and {option} both name {path}", "a file for each", "rename one of them")
            check_writable(path)
            remove_leftovers(path.parent, path.name)
            refuse_inputs([path], inputs, f"change {option}")

    def write(self, option: str, writer: Callable[[Path], None]) -> None:
        """Let `writer` write the option's file, if it was asked for.

        What it raises as an InputError (a disk that is full by now) then also says which files are written already.
        """
        if option not in self.paths:
            return
        path = self.paths[option]
        try:
            writer(path)
        except InputError as error:
            if not self.written:
                raise
            done = ", ".join(map(str, self.written))
            raise type(error)(f"{error.given} (already written: {done})", error.expected, error.remedy) from error
        self.written.append(path)
