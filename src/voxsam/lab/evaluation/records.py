"""An evaluation as a file, whole: every row with its clicks, to be read again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from voxsam.atomic import atomic_path
from voxsam.errors import FileError
from voxsam.lab.evaluation.protocol import Evaluation

_RECORD = TypeAdapter(Evaluation)


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write it as JSON, whole or not at all; infinite distances and missing numbers are Infinity and NaN.

    Raises FileError if the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(evaluation)), encoding="utf-8")


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file of `save_evaluation`. Raises FileError if it is none."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise FileError(f"{path}: no evaluation", "a file of save_evaluation", "make it again") from error
