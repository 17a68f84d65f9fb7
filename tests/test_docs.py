"""The pages of docs/ run as they stand: every block of commands and of Python, in order, in one empty folder."""

from __future__ import annotations

import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
import SimpleITK as sitk
import yaml

from tests.lab.training.minuscule import recipe
from voxsam.cli import main
from voxsam.io import read_volume, write_volume
from voxsam.testing import stub_network
from voxsam.weights.checkpoint import save_model

DOCS = Path(__file__).resolve().parents[1] / "docs"
USAGE, TRAINING = DOCS / "usage.md", DOCS / "training.md"
BLOCKS = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _what_the_reader_brings() -> None:
    """A scribble, a DICOM series of the demo's scan, and models: what the page says that one has."""
    scan = read_volume("demo/scan.nii.gz")
    truth = read_volume("demo/truth.nii.gz", labels=True)
    write_volume(truth, Path("scribble.nrrd"))
    save_model(stub_network(automatic=True), Path("auto.safetensors"))
    save_model(stub_network(), Path("base.safetensors"))
    _write_series(Path("demo/scan.nii.gz"), Path("series"))
    with zipfile.ZipFile("series.zip", "w") as archive:
        for file in Path("series").iterdir():
            archive.write(file)
    assert read_volume("series").grid.shape == scan.grid.shape


def _write_series(scan: Path, folder: Path) -> None:
    image = sitk.Cast(sitk.ReadImage(str(scan)), sitk.sitkInt16)
    direction = image.GetDirection()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    folder.mkdir()
    for k in range(image.GetDepth()):
        piece = image[:, :, k]
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|0037": "\\".join(str(direction[3 * row + column]) for column in (0, 1) for row in range(3)),
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, k)))),
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.1.{k + 1}",
            "0020|0013": str(k),
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(piece)


@pytest.mark.slow
def test_every_block_of_the_usage_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCKS.findall(USAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 10
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(USAGE), "exec"), {})
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words:
                assert words[0] == "voxsam", line
                assert main(words[1:]) == 0, line
        if not Path("series").exists():
            _what_the_reader_brings()
    assert {"tumour.nii.gz", "automatic.nii.gz", "from_zip.nii.gz", "both.nii.gz"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_the_training_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a minuscule recipe of three steps, which leaves its preprocessing and validation to the data set."""
    monkeypatch.chdir(tmp_path)
    kept = recipe(phantoms=0, validate_every=2).model_dump(mode="json", exclude_none=True)
    Path("recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in kept.items() if k not in DATA_SAYS}))
    blocks = BLOCKS.findall(TRAINING.read_text(encoding="utf-8"))
    commands = [line for _, text in blocks for line in text.splitlines() if line]
    assert len(commands) == 11
    shutil.copytree(DOCS.parent / "recipes", "recipes")
    for line in commands:
        words = shlex.split(line, comments=True)
        assert words[0] == "voxsam", line
        assert main(words[1:]) == 0, line
        if words[1] == "phantoms":
            shutil.copy(next(Path("raw/imagesTr").iterdir()), "scan.nii.gz")
    assert {"tumour.nii.gz", "prepared", "run", "other", "tuned", "found.nii.gz"} <= {
        path.name for path in Path().iterdir()
    }


DATA_SAYS = ("preprocessing", "validation", "held_out")
