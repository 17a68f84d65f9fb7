"""Data sets in their original layout: readers for KiTS21, LiTS17 and CSV tables; phantoms in nnU-Net's raw layout.

Also the choice of cases to evaluate, in a raw or prepared folder: all, some by name, or a split.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxsam.errors import FileError, InputError
from voxsam.io import read_channels, read_volume, write_mask, write_volume
from voxsam.lab.data.cases import (
    Case,
    Fault,
    LabelChoice,
    RawData,
    find_cases,
    label_values,
    listed,
    read_decathlon,
    read_json,
)
from voxsam.lab.data.store import find_description
from voxsam.phantoms import CLOSE, Scene, make_phantom
from voxsam.preprocess import RELEASED, Preprocessing
from voxsam.volume import Volume

CASE_NAME = re.compile(r"\w[\w.-]*")  # becomes the name of a folder


def read_csv(path: Path) -> RawData:
    """Read a table with columns `image` (additional channels `image_1`, `image_2`, ...), `label`, optionally `name`.

    Paths are relative to the table's folder. Without `name` a case is named after its label file; if several share that
    name, after the folder of its label file, or as many folders as are needed to distinguish it.
    Raises FileError for a file that is not such a table. Read by csv: pandas would turn names such as 007 into numbers.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            # Excel separates by semicolons in locales with a decimal comma
            delimiter = "," if "," in first else max(";\t", key=first.count)
            rows = list(csv.DictReader(file, delimiter=delimiter))
            columns = list(rows[0]) if rows else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{path} could not be read ({error})", "a CSV table in UTF-8", "export it again") from error
    channels = [c for c in columns if re.fullmatch(r"image(_\d+)?", c or "")]
    if "image" not in channels or "label" not in columns:
        given = f"{path} with the columns {', '.join(map(str, columns)) or 'of an empty table'}"
        raise FileError(given, "the columns image and label, and rows below them", "name them in the first line")
    channels.sort(key=lambda c: int(c.partition("_")[2] or 0))
    cases: dict[str, Case] = {}
    faults = []
    files = [_files(path, line, row, channels) for line, row in enumerate(rows, start=2)]
    names = _names(
        [((row.get("name") or "").strip(), label) for row, (*_, label) in zip(rows, files, strict=True)], path
    )
    for line, (name, (*images, label)) in enumerate(zip(names, files, strict=True), start=2):
        if not CASE_NAME.fullmatch(name):
            given = f"{path}, line {line}: the name {name!r}"
            raise FileError(given, "letters, digits, '_', '-' and '.'", "rename the case")
        case = Case(name, tuple(images), label)
        if case.name in cases:
            given = f"line {line}: a second case {case.name}"
            faults.append(Fault(case.name, "duplicate case", given, "each name once", "rename or remove one"))
        cases.setdefault(case.name, case)
    return RawData(path.parent, tuple(cases.values()), tuple(faults))


def _files(path: Path, line: int, row: dict[str, str | None], channels: list[str]) -> list[Path]:
    """The image files of a line, followed by its label file."""
    cells = [(row.get(column) or "").strip() for column in (*channels, "label")]
    if not all(cells):
        raise FileError(f"{path}, line {line}: an empty cell", "an image and a label in each line", "fill it in")
    return [path.parent / cell for cell in cells]


def _names(rows: Sequence[tuple[str, Path]], table: Path) -> list[str]:
    """The name of each line: its own if given, else the first unique one of the names that its label file suggests.

    Where lines share a name, those furthest along their list of suggestions move on to the next.
    """
    choices = [[own] if own else _names_of(label, table.parent) for own, label in rows]
    levels = [0] * len(rows)
    while True:
        users: dict[str, list[int]] = {}
        for line, (names, level) in enumerate(zip(choices, levels, strict=True)):
            users.setdefault(names[level], []).append(line)
        moving = []
        for lines in users.values():
            movable = [n for n in lines if levels[n] + 1 < len(choices[n])]
            if len({tuple(choices[n]) for n in lines}) > 1 and movable:  # the same file twice stays a duplicate
                furthest = max(levels[n] for n in movable)
                moving += [n for n in movable if levels[n] == furthest]
        if not moving:
            return [names[level] for names, level in zip(choices, levels, strict=True)]
        for line in moving:
            levels[line] += 1


def _names_of(label: Path, folder: Path) -> list[str]:
    """Names that a label file suggests: its own, its folder's, both joined, then with more and more parent folders.

    Parent folders begin at `folder`, if the file is inside it.
    """
    suffixes = r"\.(nii\.gz|nii|nrrd|nhdr|mha|mhd|hdr|img|(seg\.|rtstruct\.)?dcm)$"
    stem = re.sub(suffixes, "", label.name, flags=re.IGNORECASE)
    stem = re.sub(r"[^\w.-]+", "_", stem).lstrip(".-") or "case"
    parts = (label.relative_to(folder) if label.is_relative_to(folder) else label).parts[:-1]
    folders = [re.sub(r"[^\w.-]+", "_", part).lstrip(".-") or "_" for part in parts if part.strip("./\\")]
    tails = ["_".join((*folders[-n:], stem)) for n in range(1, len(folders) + 1)]
    return [stem, *folders[-1:], *tails]


KITS_IMAGES = ("imaging.nii.gz", "imaging.nii")
KITS_SEGMENTATIONS = ("aggregated_MAJ_seg.nii.gz", "segmentation.nii.gz", "aggregated_MAJ_seg.nii", "segmentation.nii")
KITS_LABELS = frozenset(range(4))  # background, kidney, tumour, cyst
LITS_LABELS = frozenset(range(3))  # background, liver, tumour


@dataclass(frozen=True)
class DataSet:
    """A kind of data set that `voxsam prepare` knows by name.

    `labels`: the values that are tumour, None for everything above 0. `folds`: how many cases the released code
    trained, validated and tested on. `healthy`: cases without tumour are expected, and left out without being a fault.
    """

    name: str
    title: str
    read: Callable[[Path], RawData]
    labels: tuple[int, ...] | None = None
    preprocessing: Preprocessing | None = None
    folds: tuple[int, int, int] | None = None
    healthy: bool = False


def read_kits(folder: Path) -> RawData:
    """Read KiTS21 as downloaded: case_00000/imaging.nii.gz and aggregated_MAJ_seg.nii.gz (majority of the readers).

    Also KiTS19 and KiTS23, whose labels are segmentation.nii.gz. `folder` holds the case folders, or is the download
    (with them in kits21/data, kits23/dataset, data or dataset). Raises FileError if there are none.
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
    """The folder of the case folders; None if there is none."""
    places = (folder, *(folder / place for place in ("data", "dataset", "kits21/data", "kits23/dataset")))
    return next((place for place in places if any(place.glob("case_*/"))), None)


def _first_of(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of these files that exists; the first name if none does."""
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def read_lits(folder: Path) -> RawData:
    """Read LiTS17 as downloaded: volume-N.nii and segmentation-N.nii, in one folder or several ("Training Batch 1").

    Files may be gzipped. Raises FileError if there are none.
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

    Pancreas and Colon have no layout of their own: without a name they are "msd". Raises InputError for an unknown
    name, FileError if `raw` does not exist or its layout is not recognised.
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


def write_phantoms(
    folder: Path,
    seeds: Sequence[int],
    grid: tuple[Sequence[int], Sequence[float]],
    scene: Scene = CLOSE,
    progress: Callable[[str, float], None] | None = None,
    brighter_hu: int = 0,
) -> None:
    """Write a generated scan and label for each seed; `grid` is the shape (i, j, k) in voxels and the spacing in mm.

    Every tumour is made brighter by `brighter_hu`: a task that a small network learns in a few minutes.

    Raises FileError for a folder that is not empty or cannot be created, GeometryError as `make_phantom`.
    """

    def drawn() -> Iterator[tuple[str, Volume, Volume]]:
        for number, seed in enumerate(seeds):
            if progress is not None:
                progress(f"phantom {number + 1} of {len(seeds)}", number / len(seeds))
            phantom = make_phantom(seed, *grid, scene=scene)
            scan = phantom.scan.with_array((phantom.scan.array + brighter_hu * phantom.label.array).astype(np.int16))
            yield f"phantom_{seed:04d}", scan, phantom.label

    write_labelled(folder, drawn(), "generated CT scans, each with one soft-tissue tumour")


def write_labelled(folder: Path, cases: Iterable[tuple[str, Volume, Volume]], description: str) -> None:
    """Write named CT scans and their labels in nnU-Net's raw layout; dataset.json is written last.

    Raises FileError for a folder that is not empty or cannot be created.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise FileError(f"{folder} is not empty", "a new or an empty folder", "choose another with -o")
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder} ({error.strerror})", "a folder that can be made", "choose another") from error
    count = 0
    for name, scan, label in cases:
        write_volume(scan, folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(label, folder / "labelsTr" / f"{name}.nii.gz")
        count += 1
    facts = {
        "name": folder.name,
        "description": description,
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "tumour": 1},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def find_labelled(folder: Path) -> tuple[list[Case], tuple[int, ...]]:
    """The labelled cases of a folder and the label values that are tumour; no values: all above 0 except the ignored.

    For a folder of `voxsam prepare` these are the source files, because masks are scored on the scan's own grid.
    Raises FileError for a folder of another kind, and for source files that are no longer where they were.
    """
    description = find_description(folder)
    if description is None:
        return find_cases(folder), ()
    if not description.root:
        given = f"{folder}: prepared by an earlier VoxSAM, which did not note the folder of the data set"
        raise FileError(given, "a folder that says where its scans are", "run `voxsam prepare` again; it is quick")
    choice = LabelChoice(description.labels, ignored=frozenset(description.ignored_labels))
    found = []
    for name, record in sorted(description.cases.items()):
        *images, label = (Path(description.root) / source.path for source in record.sources)
        gone = [path for path in (*images, label) if not path.exists()]
        if gone:
            given, expected = f"{gone[0]}, of which {folder} was prepared, is gone", "the data set where it was"
            raise FileError(given, expected, "put it back, or give the data set's new folder")
        found.append(Case(name, tuple(images), label, choice))
    return found, description.labels or ()


def class_names(folder: Path) -> dict[int, str]:
    """The names of a folder's label values; of a folder of `voxsam prepare`, those of its classes. {} without names.

    Raises FileError for a folder of another kind.
    """
    description = find_description(folder)
    return dict(read_decathlon(folder).names) if description is None else description.classes


def check_labels(cases: Sequence[Case], labels: Collection[int]) -> None:
    """Raise InputError for a value that neither occurs in the labels of the cases nor is named by their data set.

    Labels are read only for values that the data set does not name, and only until all are found.
    """
    missing = set(labels).difference(*(case.choice.known or () for case in cases))
    present: set[int] = set()
    for case in cases:
        case.choice.of(labels)
        if missing - present:
            scan = read_channels(case.image)[0]
            present |= label_values(read_volume(case.label, labels=True, scan=scan).array)
    if missing - present:
        there = present.union(*(case.choice.known or () for case in cases)) - {0}
        given = f"--labels {','.join(map(str, labels))}: no label has the value {listed(missing - present)}"
        raise InputError(given, f"some of {listed(there)}" if there else "labels that are not empty", "correct it")


def choose_cases(cases: Sequence[Case], names: Sequence[str] | None) -> list[Case]:
    """The cases with these names, in the order of `cases`; None: all. Raises InputError for unknown names."""
    if names is None:
        return list(cases)
    known = {case.name for case in cases}
    missing = sorted(set(names) - known)
    if missing or not names:
        given = f"no case {', '.join(missing)}" if missing else "no names of cases"
        raise InputError(given, f"names such as {cases[0].name} ({len(cases)} cases)", "check the names")
    return [case for case in cases if case.name in set(names)]


def split_names(folder: Path, split: str) -> list[str]:
    """The names under "split" in a folder's dataset.json: {"split": {"train": [...], "test": [...]}}.

    Raises FileError if there is no such split.
    """
    description = folder / "dataset.json"
    splits = read_json(description).get("split")
    names = splits.get(split) if isinstance(splits, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        there = f"only {', '.join(splits)}" if isinstance(splits, dict) and splits else "none"
        given = f"{description} without a split {split!r} (it has {there})"
        expected = f'"split": {{"{split}": [names of cases]}}'
        raise FileError(given, expected, "add it, or name the cases with --cases or --held-out")
    return names
