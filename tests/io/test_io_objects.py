"""Objects that share voxels: each comes back unchanged from every format that can hold them."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from voxsam.errors import ImageError, OverlapError, SeriesError
from voxsam.io import guarded, read_volume, write_mask
from voxsam.io.objects import read_objects, write_objects
from voxsam.io.segments import NEOPLASM, TYPES, Code, SegmentInfo
from voxsam.region import EMPTY, Region
from voxsam.volume import Volume

NODE = Code("59441001", "SCT", "Lymph Node")


@pytest.fixture
def scan(tmp_path, write_study):
    return read_volume(write_study(tmp_path / "ct"))


def objects_on(scan: Volume, apart: bool = False) -> dict[int, tuple[SegmentInfo, Region]]:
    first, second = np.zeros(scan.grid.shape, bool), np.zeros(scan.grid.shape, bool)
    first[1:4, 2:6, 2] = first[0, 0, 6] = True
    second[2:5, 3:6, 2 + apart : 5] = True
    infos = SegmentInfo("Sarkom", (1, 2, 250), NEOPLASM, "0.05 mL"), SegmentInfo("Knoten", (255, 143, 0), NODE)
    drawn = map(Region.of, (first, second))
    return dict(zip((1, 4), zip(infos, drawn, strict=True), strict=True))


def same(region: Region, other: Region) -> bool:
    return region.box == other.box and np.array_equal(region.bits, other.bits)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("suffix", [".seg.dcm", ".rtstruct.dcm"])
def test_objects_come_back_from_dicom_with_their_names_colours_types_and_numbers(tmp_path, scan, suffix, apart):
    pytest.importorskip("highdicom")
    objects, file = objects_on(scan, apart), tmp_path / f"m{suffix}"
    write_objects({**objects, 2: (SegmentInfo("empty", (0, 0, 0)), EMPTY)}, scan, file, model="m")
    for read in (read_objects, lambda *given: guarded.read_objects(*given, memory_bytes=1 << 30)):
        found = read(file, scan)
        assert [one.name for one in found] == ["Sarkom", "Knoten"]
        assert all(same(one.region, region) for one, (_, region) in zip(found, objects.values(), strict=True))
    if not apart:
        with pytest.raises(OverlapError, match="1 and 2 of m.* overlap") as error:
            read_volume(file, labels=True, scan=scan)
        assert error.value.numbers == (1, 2)
    dataset = pydicom.dcmread(file)
    if suffix == ".seg.dcm":
        first, second = dataset.SegmentSequence
        codes = [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in (first, second)]
        assert codes == ["108369006", "59441001"]
        assert (
            second.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == TYPES[NODE].meaning == "Anatomical Structure"
        )
        assert first.SegmentDescription == "0.05 mL" and "SegmentDescription" not in second
    else:
        assert [list(item.ROIDisplayColor) for item in dataset.ROIContourSequence] == [[1, 2, 250], [255, 143, 0]]
        assert dataset.StructureSetROISequence[0].ROIDescription == "0.05 mL"
        second = dataset.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
        assert (second.CodeValue, second.CodingSchemeDesignator) == ("59441001", "SCT")


def test_a_label_map_takes_objects_apart_by_their_numbers_and_no_others(tmp_path, scan):
    with pytest.raises(ImageError, match="a label map of objects that share voxels; .*DICOM-SEG"):
        write_objects(objects_on(scan), scan, tmp_path / "m.nii.gz")
    assert not list(tmp_path.glob("m*"))
    write_objects(objects_on(scan, apart=True), scan, tmp_path / "m.nrrd")
    back = read_volume(tmp_path / "m.nrrd", labels=True)
    assert set(np.unique(back.array)) == {0, 1, 4}


def test_a_mask_on_another_grid_is_placed_by_millimetres(tmp_path, scan):
    array = np.zeros(scan.grid.shape, np.uint8)
    array[2:5, 3:6, 4] = 7
    write_mask(
        Volume(array[1:, 2:].copy(), scan.grid.crop((1, 2, 0), array[1:, 2:].shape), "SEG"), tmp_path / "m.nii.gz"
    )
    (found,) = read_objects(tmp_path / "m.nii.gz", scan)
    assert found.name == "" and same(found.region, Region.of(array))
    write_mask(
        Volume(np.zeros((3, 3, 3), np.uint8), scan.grid.crop((0, 0, 0), (3, 3, 3)), "SEG"), tmp_path / "e.nii.gz"
    )
    with pytest.raises(ImageError, match="e.nii.gz has no voxels on the scan"):
        read_objects(tmp_path / "e.nii.gz", scan)


def test_several_series_are_told_in_facts_also_by_the_process_that_reads_for_others(tmp_path, write_series):
    folder = tmp_path / "study"
    write_series(folder / "a", SeriesDescription="venous", SeriesNumber=3, SeriesInstanceUID="1.2.3")
    write_series(folder / "b", SeriesDescription="lung", SeriesNumber=5, SeriesInstanceUID="1.2.5")
    for read in (read_volume, lambda path: guarded.read_volume(path, memory_bytes=1 << 30)):
        with pytest.raises(SeriesError, match="holds 2 image series") as error:
            read(folder)
        facts = sorted(error.value.series, key=lambda one: one["number"])
        assert [(one["number"], one["description"], one["count"]) for one in facts] == [
            ("3", "venous", 9),
            ("5", "lung", 9),
        ]
        assert facts[0]["shape"] == [6, 7, 9] and not facts[0]["localizer"] and facts[0]["modality"] == "CT"
        chosen = guarded.read_volume(folder, memory_bytes=1 << 30, series=facts[1]["uid"])
    np.testing.assert_allclose(facts[1]["spacing_mm"], chosen.grid.spacing_mm, rtol=1e-3)
    assert chosen.header["dicom"].common.SeriesDescription == "lung"
