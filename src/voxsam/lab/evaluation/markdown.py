"""Results as Markdown tables, and their place in a document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from voxsam.errors import FileError

NOTHING = "–"


def markdown_table(rows: Sequence[Mapping[str, object]], right: bool = False) -> str:
    """One line per row; the columns are the rows' keys in order of appearance, numbers to the right.

    `right`: every column but the first to the right, for numbers that are text already.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    numeric = [
        (right and n > 0) or any(isinstance(row.get(c), int | float) for row in rows) for n, c in enumerate(columns)
    ]
    lines = [columns, ["---:" if right else "---" for right in numeric], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    return three_digits(value) if isinstance(value, float) else str(value)


def three_digits(value: float) -> str:
    """A number with about three digits and never an exponent: 0.0123, 1.23, 12.3, 1234."""
    decimals = next((d for limit, d in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)) if abs(value) >= limit), 4)
    return f"{value:.{decimals}f}"


def write_between_markers(path: Path, marker: str, text: str) -> None:
    """Replace what stands between `<!-- marker -->` and `<!-- /marker -->` in a Markdown file.

    Raises FileError if the file or the two markers are not there.
    """
    found = require_markers(path, marker)
    document = found.string
    path.write_text(f"{document[: found.start(1)]}\n{text}\n{document[found.end(1) :]}", encoding="utf-8")


def require_markers(path: Path, marker: str) -> re.Match[str]:
    """Where the two markers stand in a Markdown file: group 1 is what lies between. Raises FileError if they do not."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if not path.is_file():
        raise FileError(f"{path}: no such file", f"a Markdown file with {start} and {end}", "create it first")
    document = path.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(start)}(.*?){re.escape(end)}", document, flags=re.DOTALL)
    if found is None:
        raise FileError(f"{path} without markers", f"{start} and {end}", "add both where the text shall stand")
    return found
