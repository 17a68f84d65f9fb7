"""A folder belongs to its recipe and data: what may change, what may not; a refusal changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.lab.training.minuscule import recipe, write, write_cases
from voxsam.cli import main
from voxsam.errors import InputError
from voxsam.lab.data.sampling import fingerprint
from voxsam.lab.training.keep import check_identity, identity, write_identity

pytestmark = pytest.mark.filterwarnings("ignore")


def begun(out: Path, **changes: object) -> Path:
    """A folder as a run of the recipe leaves it."""
    write_identity(identity(recipe(**changes), None), out)
    (out / "last.ckpt").write_bytes(b"tensors")
    return out


def check(out: Path, **changes: object) -> None:
    check_identity(identity(recipe(**changes), None), out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 500},
        {"precision": "bf16-mixed", "recompute": True, "workers": 3},
        {"checkpoint_every": 7, "log_every": 7, "validate_every": 7, "pictures": 7},
        {"batch": 1, "accumulate": 4},
        {"batch": 1, "devices": 2, "nodes": 2, "strategy": "ddp"},
    ],
)
def test_length_and_machine_may_change(tmp_path: Path, changes: dict) -> None:
    check(begun(tmp_path, batch=4), **{"batch": 4, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.002}, "its learning_rate is 0.001, and now 0.002"),
        ({"seed": 2}, "its seed is 1, and now 2"),
        ({"augmentation": {"flip": 0}}, "its augmentation.flip is 0.5, and now 0.0"),
        ({"prompts": "none"}, "its prompts is clicks, and now none"),
        ({"batch": 4}, "its crops a step is 2, and now 4"),
        ({"epochs": 3}, "its length is counted in steps, and now counted in epochs"),
        ({"conditioning": {"reach": 2, "likeness": 0.7, "margin": 5}}, 'its conditioning is null, and now {"reach"'),
    ],
)
def test_another_recipe_is_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(InputError) as error:
        check(begun(tmp_path), **changes)
    assert f"{tmp_path} holds another run: {words}" in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("choose another folder with -o, or give what the run began with")


def test_a_folder_without_anything_to_lose_is_free(tmp_path: Path) -> None:
    (begun(tmp_path) / "last.ckpt").unlink()  # it failed before its first checkpoint: the recipe may be mended
    check(tmp_path, seed=2)
    (tmp_path / "model.safetensors").write_bytes(b"a finished model")
    with pytest.raises(InputError, match="holds another run"):
        check(tmp_path, seed=2)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run.json cannot be read \('recipe'\); expected what `voxsam train` wrote"):
        check(tmp_path)
    (tmp_path / "run.json").unlink()
    check(tmp_path, seed=2)  # begun before there was a run.json


def test_keys_that_came_later_have_their_defaults(tmp_path: Path) -> None:
    path = begun(tmp_path) / "run.json"
    path.write_text(path.read_text().replace('"ema": 0.95,', ""))
    check(tmp_path)
    with pytest.raises(InputError, match=r"its ema is 0.95, and now 0.5"):
        check(tmp_path, ema=0.5)


def test_data_are_known_by_their_files_wherever_they_lie(tmp_path: Path) -> None:
    first = fingerprint(write_cases(tmp_path / "a", p1=1, p2=2))
    assert fingerprint(write_cases(tmp_path / "b", p2=2, p1=1)) == first
    assert fingerprint(write_cases(tmp_path / "c", p1=1, p3=3)) != first
    words = ["prepare", str(tmp_path / "a"), "-o", str(tmp_path / "prepared"), "--workers", "1"]
    assert main(words) == 0
    prepared = fingerprint(tmp_path / "prepared")
    (tmp_path / "prepared").rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == prepared != first
    write_cases(tmp_path / "a", p4=4)
    assert main(words) == 0
    assert fingerprint(tmp_path / "prepared") != prepared


def test_the_command_line_refuses_another_run_and_changes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "recipe.yaml", steps=1), tmp_path / "out"
    assert main(["train", str(path), "-o", str(out)]) == 0
    assert yaml.safe_load((out / "run.json").read_text())["data"] is None
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}
    capsys.readouterr()
    data = write_cases(tmp_path / "data", p1=1)
    for words, expected in (
        (["--learning_rate", "0.5"], "its learning_rate is 0.001, and now 0.5"),
        (["--data", str(data)], f"its data is null, and now {fingerprint(data)}"),
    ):
        assert main(["train", str(path), "-o", str(out), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"voxsam: error: {out} holds another run: {expected}")
    assert before == {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in out.rglob("*") if file.is_file()}
    assert main(["train", str(path), "-o", str(out), "--steps", "2", "--batch=1", "--accumulate=2"]) == 0
