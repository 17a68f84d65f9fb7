"""The pages of docs/ run as they are: every block of commands or Python, in order, in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from tests.lab.training.minuscule import recipe
from voxsam.cli import main
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.project import Project
from voxsam.testing import stub_network, stub_scan
from voxsam.weights.checkpoint import save_model

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DATA_SAYS = ("preprocessing", "validation", "held_out")


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Kind and text of each block."""
    return BLOCKS.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))


def run(kind: str, text: str, names: dict[str, Any]) -> None:
    """Run a block of commands, or one of Python with the names known so far."""
    if kind == "python":
        exec(compile(text, "docs", "exec"), names)
    for line in text.splitlines() if kind == "sh" else ():
        words = shlex.split(re.sub(r"(^|\s)#.*", "", line))  # plan.dcm#2 has no comment
        if words:
            assert words[0] == "voxsam" and main(words[1:]) == 0, line


def _what_the_reader_brings() -> None:
    """Make what the page assumes: a scribble, a DICOM series of the demo's scan, and models."""
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
    blocks = blocks_of("usage")
    assert len(blocks) > 10
    for block in blocks:
        run(*block, {})
        if not Path("series").exists():
            _what_the_reader_brings()
    assert {"tumour.nii.gz", "automatic.nii.gz", "from_zip.nii.gz", "both.nii.gz"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_block_of_the_training_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a minuscule recipe of three steps, whose preprocessing and validation come from the data set."""
    monkeypatch.chdir(tmp_path)
    kept = recipe(phantoms=0, validate_every=2).model_dump(mode="json", exclude_none=True)
    Path("recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in kept.items() if k not in DATA_SAYS}))
    commands = [line for _, text in blocks_of("training") for line in text.splitlines() if line]
    assert len(commands) == 11
    shutil.copytree(DOCS.parent / "recipes", "recipes")
    for line in commands:
        run("sh", line, {})
        if line.startswith("voxsam phantoms"):
            shutil.copy(next(Path("raw/imagesTr").iterdir()), "scan.nii.gz")
    assert {"tumour.nii.gz", "prepared", "run", "other", "tuned", "found.nii.gz"} <= {
        path.name for path in Path().iterdir()
    }


@pytest.mark.slow
def test_every_block_of_the_cohorts_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given, blocks = stub_scan(), blocks_of("cohorts")
    Path("scans").mkdir()
    write_volume(given.scan, Path("scans/a.nii.gz"))
    save_model(stub_network(automatic=True), Path("auto.safetensors"))
    (header,) = [text.splitlines()[0] for kind, text in blocks if kind == "csv"]
    click = ",".join(map(str, given.click))
    Path("clicks.csv").write_text(f"{header}\nscans/a.nii.gz,{click},1\nscans/a.nii.gz,1,1,1,0\n")
    for block in blocks:
        run(*block, {})
    for mask in ("masks/scans/a.nii.gz", "automatic/a.nii.gz", "from_python/first.nii.gz"):
        assert Path(mask).is_file(), mask


@pytest.mark.slow
def test_every_block_of_the_project_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scans").mkdir()
    Path("elsewhere").mkdir()
    for seed, case in enumerate("abcd"):
        write_volume(stub_scan(seed).scan, Path("scans") / f"{case}.nii.gz")
    write_mask(stub_scan(0).truth, Path("elsewhere/a.nii.gz"))
    write_mask(stub_scan(2).truth, Path("elsewhere/c_seg.nii.gz"))
    for block in blocks_of("project"):
        run(*block, {})
    project = Project("sarcomas")
    assert {case: reading.reader for case, reading in project.done_cases().items()} == {"c": "ben", "d": "anna"}
    assert Path("nnunet/labelsTr/a.nii.gz").is_file() and Path("msd/dataset.json").is_file()


@pytest.mark.slow
def test_every_block_of_the_dicom_page_runs(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real series, with the masks that the page assumes."""
    pytest.importorskip("highdicom")
    monkeypatch.chdir(tmp_path)
    Path("SERIES").symlink_to(shared_data / "dicom/sts_003_ct_rtstruct", target_is_directory=True)
    scan = read_volume("SERIES")
    array = np.zeros(scan.grid.shape, np.uint8)
    array[60:90, 60:90, 20:30], array[100:120, 60:90, 20:30] = 1, 2
    for name in ("other.seg.dcm", "plan.rtstruct.dcm"):
        write_mask(scan.with_array(array, "SEG"), name)
    names: dict[str, Any] = {}
    blocks = [block for block in blocks_of("dicom") if "//HOST/" not in block[1]]  # an archive: test_dicomweb.py
    assert len(blocks) == 5
    for block in blocks:
        run(*block, names)
    assert np.array_equal(names["mask"].array, array) and np.array_equal(names["tumour"].array, array == 2)
    assert {"tumour.seg.dcm", "tumour.rtstruct.dcm", "refined.seg.dcm"} <= {path.name for path in Path().iterdir()}


def test_every_file_of_the_repository_that_a_page_names_is_there() -> None:
    root = DOCS.parent
    named = [
        (page.name, path)
        for page in (*DOCS.glob("*.md"), *root.glob("*.md"))
        for path in re.findall(
            r"`((?:src|tests|benchmarks|recipes|plans|docs|milestones)/[\w./-]+\.\w+)`",
            page.read_text(encoding="utf-8"),
        )
        if page.name not in ("CHANGELOG.md", "log.md")  # they tell of what was
    ]
    assert len(named) > 30
    assert [(page, path) for page, path in named if not (root / path).is_file()] == []
