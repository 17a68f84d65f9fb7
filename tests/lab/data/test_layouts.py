"""Every layout as downloaded: which files form a case, what is missing, what is recognised."""

from __future__ import annotations

import pytest

from tests.lab.data.raw_cases import KITS_AFFINE, block, decathlon, noise, save
from voxsam.errors import FileError, InputError
from voxsam.lab.data.cases import find_cases, read_decathlon
from voxsam.lab.data.layouts import DATA_SETS, choose_data_set, read_csv, read_kits, read_lits


def kinds(raw):
    return [(fault.case, fault.kind) for fault in raw.faults]


def test_several_channels(tmp_path):
    folder = decathlon(tmp_path, "ab", channels=2)
    case = find_cases(folder)[1]
    assert [path.name for path in case.images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert case.image == case.images[0]
    (folder / "imagesTr" / "b_0000.nii.gz").unlink()
    raw = read_decathlon(folder)
    assert [c.name for c in raw.cases] == ["a"]
    assert kinds(raw) == [("b", "missing image")]
    assert raw.faults[0].expected == "b_0000.nii.gz in imagesTr"


def test_images_without_a_label_are_faults_for_preparing_and_left_out_for_reading(tmp_path):
    folder = decathlon(tmp_path)
    (folder / "labelsTr" / "b.nii.gz").unlink()
    assert [case.name for case in find_cases(folder)] == ["a", "c"]
    assert kinds(read_decathlon(folder)) == [("b", "missing label")]


def test_two_names_for_one_image_are_a_duplicate(tmp_path):
    folder = decathlon(tmp_path)
    save(noise(), folder / "imagesTr" / "a.nii.gz")
    assert kinds(read_decathlon(folder)) == [("a", "duplicate case")]


@pytest.mark.parametrize(
    ("labels", "known", "ignored"),
    [
        ({"background": 0, "tumour": 1}, {0, 1}, set()),
        ({"0": "background", "1": "pancreas", "2": "cancer"}, {0, 1, 2}, set()),
        ({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}, {0, 1, 2, 3, 4}, {4}),
    ],
)
def test_label_values_of_both_kinds_of_description(tmp_path, labels, known, ignored):
    raw = read_decathlon(decathlon(tmp_path, labels=labels))
    assert (raw.choice.known, raw.choice.ignored) == (known, ignored)


@pytest.mark.parametrize("place", ["", "data", "kits21/data"])
def test_kits(tmp_path, place):
    for name in ("case_00001", "case_00000"):
        save(noise(), tmp_path / place / name / "imaging.nii.gz", KITS_AFFINE)
        save(block(), tmp_path / place / name / "aggregated_MAJ_seg.nii.gz", KITS_AFFINE)
    raw = read_kits(tmp_path)
    assert [case.name for case in raw.cases] == ["case_00000", "case_00001"]
    assert raw.cases[0].label == tmp_path / place / "case_00000" / "aggregated_MAJ_seg.nii.gz"
    assert choose_data_set(tmp_path).name == "kits"


@pytest.mark.parametrize("place", ["dataset", "kits23/dataset"])
def test_kits_of_other_years(tmp_path, place):
    folder = tmp_path / place / "case_00004"
    save(noise(), folder / "imaging.nii.gz", KITS_AFFINE)
    save(block(), folder / "segmentation.nii.gz", KITS_AFFINE)
    assert choose_data_set(tmp_path).name == "kits"
    (case,) = read_kits(tmp_path).cases
    assert (case.name, case.label) == ("case_00004", folder / "segmentation.nii.gz")


def test_lits_in_two_batches(tmp_path):
    for number, batch in ((0, 1), (10, 1), (2, 2), (10, 2)):
        folder = tmp_path / f"Training Batch {batch}"
        save(noise(), folder / f"volume-{number}.nii")
        save(block(), folder / f"segmentation-{number}.nii")
    raw = read_lits(tmp_path)
    assert [case.name for case in raw.cases] == ["lits-000", "lits-002"]
    assert raw.cases[1].image == tmp_path / "Training Batch 2" / "volume-2.nii"
    assert kinds(raw) == [("lits-010", "duplicate case")]
    assert "Training Batch 1/volume-10.nii and Training Batch 2/volume-10.nii" in raw.faults[0].given
    assert choose_data_set(tmp_path).name == "lits"


def test_csv(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("name,image,image_1,label\np1,t1/x.nii.gz,t2/x.nii.gz,x_seg.nii.gz\n,a.mha,b.mha,seg/y.nii\n")
    raw = read_csv(table)
    assert [case.name for case in raw.cases] == ["p1", "y"]
    assert raw.cases[0].images == (tmp_path / "t1" / "x.nii.gz", tmp_path / "t2" / "x.nii.gz")
    assert raw.cases[1].label == tmp_path / "seg" / "y.nii"
    assert choose_data_set(table).name == "csv"


def test_a_name_given_twice_in_a_csv(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("image,label\na.nii,l.nii\nb.nii,l.nii\n")
    assert kinds(read_csv(table)) == [("l", "duplicate case")]


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (["p1/seg.nii", "p2/seg.nii", "other.nii"], ["p1", "p2", "other"]),
        (["x/a b/seg.nii.gz", "y/a b/seg.NII.gz"], ["x_a_b_seg", "y_a_b_seg"]),
        (["x/p1/seg.nii", "y/p1/seg.nii", "y/p2/seg.nii"], ["x_p1_seg", "y_p1_seg", "p2"]),
        (["p1/a.nii", "p1/b.nii", "p2/a.nii", "p2/b.nii"], ["p1_a", "p1_b", "p2_a", "p2_b"]),
        (["p1/seg.nii", "p2/seg.nii", "p1.nii"], ["p1_seg", "p2", "p1"]),
    ],
)
def test_names_of_a_csv_without_names(tmp_path, rows, names):
    table = tmp_path / "pairs.csv"
    table.write_text("image,label\n" + "".join(f"i{n}.nii,{row}\n" for n, row in enumerate(rows)))
    raw = read_csv(table)
    assert [case.name for case in raw.cases] == names
    assert raw.faults == ()
    table.write_text("image,label\n" + "".join(f"i{n}.nii,{tmp_path / row}\n" for n, row in enumerate(rows)))
    assert [case.name for case in read_csv(table).cases] == names
    table.write_text("image,label\ni.nii,/x/p1/seg.nii\nj.nii,../p2/seg.nii\n")
    assert [case.name for case in read_csv(table).cases] == ["p1", "p2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the columns of an empty table; expected the columns image and label"),
        ("scan,label\na,b\n", "the columns scan, label; expected the columns image and label"),
        ("image,label\na.nii,\n", "line 2: an empty cell; expected an image and a label in each line"),
        ("image,label,name\na.nii,b.nii,../x\n", "line 2: the name '../x'; expected letters, digits"),
    ],
)
def test_bad_tables(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(FileError, match=words):
        read_csv(tmp_path / "t.csv")


def test_what_is_not_recognised(tmp_path):
    with pytest.raises(FileError, match=r"no dataset.json, case_00000 or volume-0.nii; expected the layout of MSD"):
        choose_data_set(tmp_path)
    with pytest.raises(FileError, match="does not exist; expected the folder of a data set, or a CSV table"):
        choose_data_set(tmp_path / "none")
    with pytest.raises(InputError, match="the data set 'brats'; expected one of msd, kits, lits, pancreas, colon, csv"):
        choose_data_set(tmp_path, "brats")
    with pytest.raises(FileError, match="is a folder; expected a CSV table"):
        choose_data_set(tmp_path, "csv")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(FileError, match=r"x.txt is a file; expected the folder of a data set, or a .csv table"):
        choose_data_set(tmp_path / "x.txt")


def test_nothing_of_a_named_data_set(tmp_path):
    with pytest.raises(FileError, match=r"no case_00000; expected the folders case_\* of KiTS21"):
        read_kits(tmp_path)
    with pytest.raises(FileError, match=r"no volume-0.nii; expected volume-N.nii and segmentation-N.nii of LiTS17"):
        read_lits(tmp_path)


def test_the_papers_data_sets_as_released():
    known = {name: (d.labels, d.folds) for name, d in DATA_SETS.items() if d.preprocessing}
    assert known == {
        "kits": ((2,), (209, 30, 61)),
        "lits": ((2,), (83, 11, 24)),
        "pancreas": ((2,), (196, 28, 57)),
        "colon": ((1,), (89, 11, 26)),
    }


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_as_excel_writes_it(tmp_path, separator):
    table = tmp_path / "excel.csv"
    rows = (("image", "label"), ("a.mha", "seg/y.nii"), ("b, late.mha", "seg/z.nii"))
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(separator.join(row) for row in rows).encode())
    raw = read_csv(table)
    assert [case.name for case in raw.cases] == ["y", "z"]
    assert raw.cases[1].image == tmp_path / "b, late.mha"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Segmentation 0 (final).nii.gz", "Segmentation_0_final_"),
        ("-draft.seg.nrrd", "draft.seg"),
        (".hidden.nii", "hidden"),
        ("Läsion.nii", "Läsion"),
        ("m.seg.dcm", "m"),
        ("plan.rtstruct.dcm", "plan"),
    ],
)
def test_a_name_that_is_made_of_a_file_fits(tmp_path, label, name):
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,label\na.nii,{label}\n", encoding="utf-8")
    assert [case.name for case in read_csv(table).cases] == [name]
