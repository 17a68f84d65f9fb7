"""examples/one_click.ipynb runs as it is, and its stored output is what it gives."""

from __future__ import annotations

import ast
import base64
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "one_click.ipynb"
MAX_BYTES = 200_000
TOLERANCE_ML = 5.0  # the mask may change a little from one processor to the next


def _run(source: str, names: dict) -> object:
    """The output of a notebook cell: the value of its last line, if that is an expression."""
    lines = ast.parse(source).body
    last = lines.pop() if isinstance(lines[-1], ast.Expr) else None
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.slow
def test_every_cell_runs_and_gives_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    values = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            value = _run("".join(cell["source"]), names)
            assert (value is not None) == bool(cell["outputs"])
            values += [(value, cell["outputs"][0]["data"])] if cell["outputs"] else []
    (grid, said), (shown, picture), (volumes, listed), (score, _) = values
    assert [repr(grid)] == said["text/plain"]
    assert shown._repr_png_().startswith(b"\x89PNG") and base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    for now, then in zip(volumes, ast.literal_eval(listed["text/plain"][0]), strict=True):
        assert float(now.split()[0]) == pytest.approx(float(then.split()[0]), abs=TOLERANCE_ML)
    assert volumes[0] == volumes[2] != volumes[1]  # the negative click took something out, undo put it back
    assert float(score.split()[1]) > 0.8
    assert {"tumour.nii.gz", "tumour.png"} == {path.name for path in tmp_path.iterdir()}


def test_it_is_small_and_names_no_folder():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert "/home" not in text and "/work" not in text and "/tmp" not in text
