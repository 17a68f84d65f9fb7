"""A project's export to other programs and import from them, and the comparison of two readers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.project.conftest import CASES
from voxsam.errors import FileError, GeometryError, ImageError, InputError, PromptError
from voxsam.geometry import Grid
from voxsam.io import read_volume, write_mask, write_volume
from voxsam.lab.data.cases import find_cases
from voxsam.project import Project
from voxsam.project.agreement import compare
from voxsam.project.exchange import export, import_masks, read_clicks
from voxsam.volume import Volume


@pytest.fixture
def masks(given, tmp_path: Path) -> Path:
    """Labels from elsewhere: differing file names, values 2 and 3, and a file that belongs to no scan."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for case, name in zip(CASES, ("A_seg.nii.gz", "b.nrrd", "deep__c.mha"), strict=True):
        truth = given[case].truth
        write_mask(truth.with_array(truth.array * 2), folder / name)
    write_mask(given["a"].truth, folder / "other.nii.gz")
    return folder


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_what_was_imported_is_exported_and_read_by_the_laboratory(project, masks, given, tmp_path, layout):
    taken, others = import_masks(project, masks, reader="ben")
    assert (sorted(taken), others) == (list(CASES), ("other.nii.gz",))
    assert {reading.source for reading in project.done_cases().values()} == {"import"}
    count, left_out = export(project, tmp_path / "out", layout)
    assert (count, left_out) == (3, {})
    cases = find_cases(tmp_path / "out")
    assert [case.name for case in cases] == list(CASES)
    for case in cases:
        image, label = read_volume(case.image), read_volume(case.label, labels=True)
        assert np.array_equal(image.array, given[case.name].scan.array)
        assert np.array_equal(label.array, given[case.name].truth.array)
        assert label.grid.close_to(image.grid)
    described = json.loads((tmp_path / "out/dataset.json").read_text())
    assert described["numTraining"] == 3
    assert described["labels"] == (
        {"background": 0, "tumour": 1} if layout == "nnunet" else {"0": "background", "1": "tumour"}
    )


def test_an_export_is_whole_or_not_there(project, masks, tmp_path):
    with pytest.raises(InputError, match="without a scan that is done"):
        export(project, tmp_path / "out")
    import_masks(project, masks)
    with pytest.raises(InputError, match=r"no case that can be written as dicom-seg \(a: .*not read from DICOM"):
        export(project, tmp_path / "out", "dicom-seg")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileError, match="is there already"):
        export(project, masks)
    with pytest.raises(InputError, match="the layout coco; expected one of nnunet, msd, dicom-seg"):
        export(project, tmp_path / "out", "coco")  # type: ignore[arg-type]


@pytest.mark.slow
def test_dicom_scans_are_exported_as_dicom_seg(shared_data: Path, tmp_path: Path):
    series = shared_data / "dicom" / "sts_003_ct_rtstruct"
    project = Project.new(tmp_path / "project", series)
    (scan,) = project.scans
    read = project.read(scan.name)
    mask = np.zeros(read.grid.shape, np.uint8)
    mask[60:70, 40:55, 10:14] = 1
    project.done(scan.name, Volume(mask, read.grid, "SEG"), scan=read)
    assert export(project, tmp_path / "out", "dicom-seg") == (1, {})
    found = read_volume(tmp_path / "out" / f"{scan.name}.seg.dcm", labels=True, scan=read)
    assert int((found.array > 0).sum()) == int(mask.sum())


def test_masks_that_do_not_fit_are_refused_and_nothing_is_kept(project, masks, given, tmp_path):
    grid = given["deep__c"].truth.grid
    write_mask(Volume(given["deep__c"].truth.array, Grid(grid.shape, np.diag([1, 1, 1, 1]))), masks / "deep__c.mha")
    with pytest.raises(GeometryError, match=r"deep__c\.mha on .* its scan's"):
        import_masks(project, masks)
    assert not project.done_cases()
    (masks / "deep__c.mha").unlink()
    with pytest.raises(ImageError, match="without a voxel of its tumour"):
        import_masks(project, masks, labels=[3])
    assert len(import_masks(project, masks, labels=[2])[0]) == 2
    (tmp_path / "none").mkdir()
    with pytest.raises(FileError, match=r"no mask with the name of a scan; expected CASE\.nii\.gz, such as a\.nii\.gz"):
        import_masks(project, tmp_path / "none")


def test_clicks_come_from_reports_and_readings(given, tmp_path):
    grid, path = given["a"].scan.grid, tmp_path / "clicks.json"
    world = grid.index_to_world((3, 4, 5)).tolist()
    path.write_text(json.dumps({"clicks": [{"index": [3, 4, 5]}, {"world_mm": world, "positive": False}]}))
    first, second = read_clicks(path, grid)
    np.testing.assert_allclose(first.world_mm, second.world_mm)
    assert (first.positive, second.positive) == (True, False)
    for text in ("{}", "[]", '{"clicks": [{"at": 3}]}', '{"clicks": 3}', "no"):
        path.write_text(text)
        with pytest.raises(FileError, match="no clicks"):
            read_clicks(path, grid)
    path.write_text(json.dumps({"clicks": [{"index": [99, 4, 5]}]}))
    with pytest.raises(PromptError):
        read_clicks(path, grid)


def test_two_readers_differ_where_they_were_made_to(tmp_path, model):
    """Voxels of 1 x 2 x 5 mm, 0.01 mL each. One reader has an extra block, the other another one and a single voxel."""
    grid = Grid.from_spacing((30, 24, 16), (1, 2, 5), axes="LPS")
    (tmp_path / "scans").mkdir()
    scan = Volume(np.random.default_rng(0).integers(0, 100, grid.shape).astype(np.int16), grid, "CT")
    write_volume(scan, tmp_path / "scans" / "x.nii.gz")
    project = Project.new(tmp_path / "project", tmp_path / "scans", start=str(model))
    both = np.zeros(grid.shape, np.uint8)
    both[10:20, 10:14, 5:9] = 1  # 160 voxels
    one, other = both.copy(), both.copy()
    one[2:7, 2:5, 2:5] = 2  # 45 voxels: 0.45 mL, deepest (4, 3, 3)
    other[20:23, 10:14, 5:9] = 1  # 48 voxels: 0.48 mL
    other[29, 23, 15] = 1
    project.done("x", Volume(one, grid, "SEG"), reader="anna")
    with pytest.raises(InputError, match=r"no scan that both anna and ben .* \(readers: anna\)"):
        compare(project, "anna", "ben")
    project.done("x", Volume(other, grid, "SEG"), reader="ben")
    (found,) = compare(project, "anna", "ben")
    assert found.case == "x" and found.dice == pytest.approx(2 * 160 / (205 + 209))
    assert found.volumes_ml == pytest.approx((2.05, 2.09))
    assert [(part.reader, round(part.volume_ml, 6)) for part in found.differences] == [("ben", 0.48), ("anna", 0.45)]
    assert found.differences[1].index == (4, 3, 3)
    np.testing.assert_allclose(found.differences[1].world_mm, grid.index_to_world((4, 3, 3)))
    (all_of_it,) = compare(project, "anna", "ben", smallest_ml=0)
    assert [part.index for part in all_of_it.differences][2] == (29, 23, 15)
