"""Data sets in their original layout: which there are, and the readers of KiTS21 and LiTS17."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from voxsam.errors import FileError, InputError
from voxsam.lab.data.cases import Case, Fault, RawData, read_decathlon
from voxsam.lab.data.labels import LabelChoice
from voxsam.lab.data.pairs import read_csv
from voxsam.preprocess import RELEASED, Preprocessing

KITS_IMAGES = ("imaging.nii.gz", "imaging.nii")
KITS_SEGMENTATIONS = ("aggregated_MAJ_seg.nii.gz", "segmentation.nii.gz", "aggregated_MAJ_seg.nii", "segmentation.nii")
KITS_LABELS = frozenset(range(4))  # background, kidney, tumour, cyst
LITS_LABELS = frozenset(range(3))  # background, liver, tumour


@dataclass(frozen=True)
class DataSet:
    """A kind of data set that `voxsam prepare` knows by name.

    `labels`: the values that are tumour, None for everything above 0. `folds`: how many cases the released code
    trained, validated and tested on. `healthy`: cases without tumour belong to it and are left out without complaint.
    """

    name: str
    title: str
    read: Callable[[Path], RawData]
    labels: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    folds: tuple[int, int, int] | None = None
    healthy: bool = False


def read_kits(folder: Path) -> RawData:
    """KiTS21 as downloaded: case_00000/imaging.nii.gz and aggregated_MAJ_seg.nii.gz (the majority of the readers).

    Also KiTS19 and KiTS23, whose labels are segmentation.nii.gz. `folder` holds the case folders, or is the download
    (which has them in kits21/data, data or dataset). Raises FileError without any.
    """
    place = _kits_folder(folder)
    if place is None:
        raise FileError(f"{folder}: no case_00000", "the folders case_* of KiTS21", "check the path")
    cases = tuple(
        Case(path.name, (_first_of(path, KITS_IMAGES),), _first_of(path, KITS_SEGMENTATIONS))
        for path in sorted(place.glob("case_*/"))
    )
    return RawData(folder, cases, choice=LabelChoice(known=KITS_LABELS), channels=("CT",))


def _kits_folder(folder: Path) -> Path | None:
    """Where the case folders lie, if anywhere."""
    places = (folder, *(folder / place for place in ("data", "dataset", "kits21/data", "kits23/dataset")))
    return next((place for place in places if any(place.glob("case_*/"))), None)


def _first_of(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that is there; the first name, if none is."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def read_lits(folder: Path) -> RawData:
    """LiTS17 as downloaded: volume-N.nii and segmentation-N.nii, in one folder or in several ("Training Batch 1").

    Files may be gzipped. Raises FileError without any.
    """
    found: dict[str, dict[int, list[Path]]] = {"volume": {}, "segmentation": {}}
    for path in sorted(folder.rglob("*.nii*")):
        match = re.fullmatch(r"(volume|segmentation)-(\d+)\.nii(\.gz)?", path.name)
        if match:
            found[match[1]].setdefault(int(match[2]), []).append(path)
    images, labels = found["volume"], found["segmentation"]
    if not images and not labels:
        raise FileError(f"{folder}: no volume-0.nii", "volume-N.nii and segmentation-N.nii of LiTS17", "check the path")
    cases, faults = [], []
    for number in sorted(images.keys() | labels.keys()):
        name, pair = f"lits-{number:03d}", (images.get(number, []), labels.get(number, []))
        doubled = next((paths for paths in pair if len(paths) > 1), None)
        if doubled:
            given = " and ".join(str(path.relative_to(folder)) for path in doubled)
            faults.append(Fault(name, "duplicate case", given, "one file for each number", "remove one of them"))
            continue
        absent = folder / f"volume-{number}.nii", folder / f"segmentation-{number}.nii"
        image, label = (paths[0] if paths else path for paths, path in zip(pair, absent, strict=True))
        cases.append(Case(name, (image,), label))
    return RawData(folder, tuple(cases), tuple(faults), LabelChoice(known=LITS_LABELS), channels=("CT",))


DATA_SETS = {
    d.name: d
    for d in (
        DataSet("msd", "a folder in MSD or nnU-Net raw layout", read_decathlon),
        DataSet("kits", "KiTS21 (19, 23), kidney tumour", read_kits, (2,), RELEASED["kits"], (209, 30, 61)),
        DataSet("lits", "LiTS17, liver tumour", read_lits, (2,), RELEASED["lits"], (83, 11, 24), healthy=True),
        DataSet("pancreas", "MSD Pancreas, tumour", read_decathlon, (2,), RELEASED["pancreas"], (196, 28, 57)),
        DataSet("colon", "MSD Colon, cancer", read_decathlon, (1,), RELEASED["colon"], (89, 11, 26)),
        DataSet("csv", "pairs listed in a CSV table", read_csv),
    )
}


def choose_data_set(raw: Path, name: str | None = None) -> DataSet:
    """The data set called `name`, or else the one whose layout `raw` (a folder or a CSV table) has.

    Pancreas and Colon have no layout of their own: unnamed, they are "msd". Raises InputError for an unknown name,
    FileError where there is nothing, or nothing known.
    """
    if name is not None and name not in DATA_SETS:
        raise InputError(f"the data set {name!r}", f"one of {', '.join(DATA_SETS)}", "choose one with --dataset")
    if not raw.exists():
        raise FileError(f"{raw} does not exist", "the folder of a data set, or a CSV table", "check the path")
    name = name or _recognise(raw)
    if raw.is_dir() and name == "csv":
        raise FileError(f"{raw} is a folder", "a CSV table with the columns image and label", "give the table")
    if raw.is_file() and name != "csv":
        raise FileError(f"{raw} is a file", "the folder of a data set, or a .csv table", "give its folder")
    return DATA_SETS[name]


def _recognise(raw: Path) -> str:
    if raw.is_file():
        return "csv" if raw.suffix.lower() == ".csv" else "msd"
    if (raw / "dataset.json").is_file():
        return "msd"
    if _kits_folder(raw) is not None:
        return "kits"
    if next(raw.rglob("volume-*.nii*"), None) is not None:
        return "lits"
    given = f"{raw}: no dataset.json, case_00000 or volume-0.nii"
    raise FileError(given, "the layout of MSD, nnU-Net, KiTS21 or LiTS17", "check the path, or list the files in a CSV")
