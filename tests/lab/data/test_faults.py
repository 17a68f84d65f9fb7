"""Every kind of fault, planted one by one, is found with its name and message."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.lab.data.raw_cases import AFFINE, KITS_AFFINE, SHAPE, block, forget_orientation, noise, save
from voxsam.lab.data.cases import Case, Fault, LabelChoice
from voxsam.lab.data.faults import Check, Findings, Measures, check_case, find_doubles, find_outliers, write_tables

CHOICE = LabelChoice(known=frozenset({0, 1, 2}))


@pytest.fixture
def case(tmp_path) -> Case:
    """A case without faults, with two channels."""
    images = save(noise(), tmp_path / "a_0000.nii.gz"), save(noise(1), tmp_path / "a_0001.nii.gz")
    return Case("a", images, save(block(), tmp_path / "a.nii.gz"))


def found(case: Case, choice: LabelChoice = CHOICE) -> list[tuple[str, str]]:
    """Kind and one line of each fault."""
    check = check_case(case, choice)
    assert check.measures is None
    return [(f.kind, f"{f.given}; {f.expected}; {f.remedy}") for f in check.faults]


def zero_spacing(path: Path) -> None:
    """Set pixdim[1], at byte 80 of the header, to 0, and remove the sform (code at byte 254) that would replace it."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[80:84], data[254:256] = bytes(4), bytes(2)
    path.write_bytes(gzip.compress(bytes(data)))


def test_a_sound_case_is_measured(case):
    check = check_case(case, CHOICE)
    assert check.faults == ()
    assert check.measures is not None
    measures = check.measures
    np.testing.assert_allclose(measures.grid.affine, AFFINE)
    assert measures.shape == SHAPE
    assert measures.modality == "CT"
    assert measures.volume_ml == pytest.approx(64 * 6 / 1000)
    values = [noise(seed)[block() > 0] for seed in (0, 1)]
    assert [c.mean for c in measures.channels] == pytest.approx([v.mean() for v in values])
    assert [c.voxels for c in measures.channels] == [64, 64]
    assert Check.model_validate_json(check.model_dump_json()) == check


def test_missing_files(case):
    case.images[1].unlink()
    case.label.unlink()
    assert [kind for kind, _ in found(case)] == ["missing image", "missing label"]


def test_an_unreadable_file(case):
    case.image.write_bytes(case.image.read_bytes()[:2000])
    ((kind, words),) = found(case)
    assert kind == "unreadable file"
    assert "a_0000.nii.gz is truncated or damaged" in words


def test_an_image_that_is_none(case):
    save(np.full(SHAPE, 7, np.int16), case.image)
    assert found(case)[0] == (
        "unusable image",
        "all voxels of a_0000.nii.gz are 7; an image with contrast; check that it is the right file",
    )


def test_a_label_that_is_none(case):
    save(np.full(SHAPE, 0.5, np.float32), case.label)
    assert found(case)[0][0] == "unusable label"


def test_spacing_zero(case):
    zero_spacing(case.image)
    ((kind, words),) = found(case)
    assert kind == "spacing zero"
    assert "a spacing (pixdim) of 0 x 2 x 3; positive spacing; repair its header" in words


def test_a_shape_mismatch(case):
    save(block((20, 16, 11)), case.label)
    assert found(case) == [
        (
            "shape mismatch",
            "a.nii.gz has 20 x 16 x 11 voxels; 20 x 16 x 12 as in a_0000.nii.gz; resample it to its image",
        )
    ]


def test_an_affine_mismatch_of_the_label_and_of_a_channel(case):
    moved = AFFINE.copy()
    moved[:3, 3] += (0, 3, 4)
    save(block(), case.label, moved)
    moved[:3, 3] += (0, 0, 1)
    save(noise(1, SHAPE), case.images[1], moved)
    channel, label = found(case)
    assert channel[0] == label[0] == "affine mismatch"
    assert "a_0001.nii.gz lies up to 5.83 mm off" in channel[1]
    assert "a.nii.gz lies up to 5 mm off; the affine" in label[1]


def test_an_orientation_mismatch(case):
    """A label saved with its first axis flipped, and a channel with its axes in another order."""
    save(block(), case.label, np.diag([-1.0, 1, 1, 1]) @ AFFINE)
    save(noise(1, SHAPE[::-1]), case.images[1], AFFINE[:, [2, 1, 0, 3]])
    remedy = "reorient it, or copy the affine if the voxels match"
    assert found(case) == [
        ("orientation mismatch", f"a_0001.nii.gz has the axes SAR; RAS as a_0000.nii.gz; {remedy}"),
        (
            "shape mismatch",
            "a_0001.nii.gz has 12 x 16 x 20 voxels; 20 x 16 x 12 as in a_0000.nii.gz; resample it to its image",
        ),
        ("orientation mismatch", f"a.nii.gz has the axes LAS; RAS as a_0000.nii.gz; {remedy}"),
    ]


def test_unknown_label_values(case):
    label = block()
    label[0, 0, :3] = (3, 7, 9)
    save(label, case.label)
    assert found(case) == [("unknown label value", "a.nii.gz has the values 3, 7, 9; only 0, 1, 2; correct the label")]
    assert check_case(case, LabelChoice()).faults == ()
    save(-block().astype(np.int16), case.label)
    assert ("unknown label value", "a.nii.gz has the values -1; only 0, 1, 2 ...; correct the label") in found(
        case, LabelChoice()
    )


def test_an_empty_label(case):
    choice = LabelChoice((2,), frozenset({0, 1, 2}))
    assert found(case, choice) == [("empty label", "a.nii.gz has no tumour; a voxel of 2; leave the case out")]
    healthy = check_case(case, LabelChoice((2,), frozenset({0, 1, 2}), healthy=True))
    assert healthy.measures is not None
    assert (healthy.measures.volume_ml, healthy.measures.channels) == (0, ())


def test_all_faults_of_a_case_at_once(case):
    zero_spacing(case.image)
    case.images[1].unlink()
    save(block(value=9), case.label)
    choice = LabelChoice((1,), frozenset({0, 1}))
    assert [kind for kind, _ in found(case, choice)] == [
        "spacing zero",
        "missing image",
        "unknown label value",
        "empty label",
    ]


def test_the_same_voxels_under_two_names(tmp_path):
    checks = {}
    for name, seed, affine in (("a", 0, AFFINE), ("b", 1, AFFINE), ("c", 0, AFFINE)):
        image = save(noise(seed), tmp_path / f"{name}_0000.nii.gz", affine)
        checks[name] = check_case(Case(name, (image,), save(block(), tmp_path / f"{name}.nii", affine)), CHOICE)
    (fault,) = find_doubles((name, check.measures) for name, check in checks.items())
    assert (fault.case, fault.kind) == ("c", "duplicate case")
    assert fault.given == "the image has the same voxels as that of a"


def test_the_same_values_in_another_type(tmp_path):
    """Stored as int16, int32, float64 and scaled; other values, the same in another shape."""
    values = noise()
    scaled = nib.Nifti1Image(values // 2, AFFINE)
    scaled.header.set_slope_inter(2, 1)
    images = {
        "int16": values,
        "int32": values.astype(np.int32),
        "float64": values.astype(np.float64),
        "odd": (values // 2).astype(np.float32) * 2 + 1,
        "scaled": None,
        "other": values + np.int16(1),
        "turned": values.reshape(SHAPE[::-1]),
        "bytes": np.ascontiguousarray(values).view(np.uint16).reshape(SHAPE),
    }
    checks = {}
    for name, array in images.items():
        path = tmp_path / f"{name}.nii"
        nib.save(scaled, path) if array is None else save(array, path)
        shape = SHAPE if array is None else array.shape
        checks[name] = check_case(Case(name, (path,), save(block(shape), tmp_path / f"{name}_label.nii")), CHOICE)
    assert not any(check.faults for check in checks.values())
    faults = find_doubles((name, check.measures) for name, check in checks.items())
    assert [(fault.case, fault.given.split()[-1]) for fault in faults] == [
        ("int32", "int16"),
        ("float64", "int16"),
        ("scaled", "odd"),
    ]


def test_whether_a_file_says_how_the_patient_lies(case):
    assert check_case(case, CHOICE).measures.oriented
    for path in (*case.images, case.label):
        forget_orientation(path)
    check = check_case(case, CHOICE)
    assert check.faults == ()
    assert not check.measures.oriented
    assert check.measures.grid.axes == "RAS"


def test_the_table(tmp_path):
    fault = Fault("a", "empty label", "a, b", "c", "d")
    write_tables(Findings({}, (fault,), {"b": ("odd",)}), tmp_path)
    with open(tmp_path / "faults.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["case", "fault", "given", "expected", "remedy"],
            ["a", "empty label", "a, b", "c", "d"],
        ]
    assert (tmp_path / "remarks.csv").read_text().splitlines() == ["case,remark", "b,odd"]
    write_tables(Findings({}, (), {}), tmp_path)
    assert not (tmp_path / "faults.csv").exists() and not (tmp_path / "remarks.csv").exists()


def test_oblique_and_permuted_axes_are_sound(tmp_path):
    turned = KITS_AFFINE.copy()
    turned[:3, :3] = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]]) @ turned[:3, :3]
    case = Case("k", (save(noise(), tmp_path / "i.nii", turned),), save(block(), tmp_path / "l.nii", turned))
    assert check_case(case, CHOICE).faults == ()


def measures_of(folder: Path, offset: float = 0, spacing: float = 1.0, scale: float = 1.0) -> Measures:
    values = noise().astype(np.float32) * scale + offset
    images = (save(values, folder / "x_0000.nii.gz", np.diag([spacing, spacing, 2 * spacing, 1])),)
    label = save(block(), folder / "x.nii.gz", np.diag([spacing, spacing, 2 * spacing, 1]))
    measures = check_case(Case("x", images, label), CHOICE).measures
    assert measures is not None
    return measures


def test_cases_that_are_probably_wrong_are_remarked_on(tmp_path: Path) -> None:
    """Voxels of 0.1 mm that were 1 mm in centimetres; intensities from 0 on, and from 0 to 1."""
    plain = {name: measures_of(tmp_path / name) for name in "abc"}
    odd = {
        "shifted": measures_of(tmp_path / "shifted", offset=1900),
        "scaled": measures_of(tmp_path / "scaled", offset=0.75, scale=1 / 1200),
        "cm": measures_of(tmp_path / "cm", spacing=0.1),
    }
    said = find_outliers({**plain, **odd}.items(), ["CT"])
    assert set(said) == {"shifted", "scaled", "cm"}
    assert "are the voxels in Hounsfield units?" in said["shifted"][0] and len(said["shifted"]) == 1
    assert "are the voxels in Hounsfield units?" in said["scaled"][0]
    assert "its voxels of 0.1 x 0.1 x 0.2 mm are 0.1 times as long" in said["cm"][0] and len(said["cm"]) == 1
    assert find_outliers({**plain, **odd}.items(), ["MR"]).keys() == {"cm"}
    assert find_outliers({"a": plain["a"], "cm": odd["cm"]}.items(), []) == {}  # of two nobody knows which is right
