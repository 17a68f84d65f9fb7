"""A labelled case, as files and in memory: which label values are tumour, what can be wrong; MSD, nnU-Net folders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from voxsam.boxes import bounding_box
from voxsam.errors import FileError, GeometryError, ImageError, InputError
from voxsam.seen import content
from voxsam.volume import Volume

AT_ONCE = 2**22  # voxels of a label that are counted at once
LARGEST_COUNTED = 2**16
SHOWN_VALUES = 5


@dataclass(frozen=True)
class LabelChoice:
    """Which values are tumour (None: all above 0 but the ignored), and which values a label may have (None: any).

    Ignored voxels (nnU-Net's label `ignore`) are background, in training and in scores.
    """

    targets: tuple[int, ...] | None = None
    known: frozenset[int] | None = None
    ignored: frozenset[int] = frozenset()
    healthy: bool = False  # a case without tumour is no fault

    def __call__(self, labels: NDArray) -> NDArray[np.bool_]:
        """Where a label map is tumour."""
        if self.targets is not None and len(self.targets) == 1:
            return labels == self.targets[0]
        if self.targets is not None:
            return np.isin(labels, self.targets)
        return (labels > 0) & ~np.isin(labels, list(self.ignored)) if self.ignored else labels > 0

    def of(self, targets: Collection[int] | None) -> LabelChoice:
        """The same data set with these values as the tumour; none given: as it is.

        Raises InputError for values below 1 and for ignored ones; whether a label has them is not asked here.
        """
        if not targets:
            return self
        wrong = [v for v in sorted(targets) if v < 1 or v in self.ignored]
        if wrong:
            what = "which the data set says to ignore" if wrong[0] in self.ignored else "which no tumour has"
            raise InputError(f"the label {wrong[0]}, {what}", self.allowed, "choose with --labels")
        return replace(self, targets=tuple(sorted(set(targets))))

    @property
    def wanted(self) -> str:
        """The values that are tumour, in words."""
        return "a value above 0" if self.targets is None else " or ".join(map(str, self.targets))

    @property
    def allowed(self) -> str:
        """The values that may be chosen, in words."""
        if self.known is None:
            return "whole numbers above 0"
        return f"some of {', '.join(map(str, sorted(self.known - self.ignored - {0})))}"


ABOVE_0 = LabelChoice()


def label_values(labels: NDArray) -> set[int]:
    """The whole numbers that a label map holds."""
    flat = labels.ravel(order="K")
    small = labels.min() >= 0 and labels.max() < LARGEST_COUNTED
    found: set[int] = set()
    for start in range(0, flat.size, AT_ONCE):
        part = flat[start : start + AT_ONCE]
        found.update((np.flatnonzero(np.bincount(part)) if small else np.unique(part)).tolist())
    return found


def listed(values: Collection[int]) -> str:
    """Values in words, the first few of many."""
    ordered = sorted(values)
    return ", ".join(map(str, ordered[:SHOWN_VALUES])) + (" ..." if len(ordered) > SHOWN_VALUES else "")


FaultKind = Literal[
    "missing image",
    "missing label",
    "unreadable file",
    "unusable image",
    "unusable label",
    "spacing zero",
    "broken geometry",
    "shape mismatch",
    "orientation mismatch",
    "affine mismatch",
    "channel mismatch",
    "unknown label value",
    "empty label",
    "duplicate case",
]

CHANNEL = re.compile(r"(.+)_(\d{4})")  # nnU-Net: CASE_0000 is the first image channel of CASE


@dataclass(frozen=True)
class Case:
    """One patient's images, all on one grid, and the label; an image is a channel, or a 4D file with all of them.

    `choice`: where the label is tumour, as far as the data set says.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    choice: LabelChoice = ABOVE_0

    @property
    def image(self) -> Path:
        """The file of the first channel."""
        return self.images[0]


@dataclass(frozen=True)
class Fault:
    """Why a case cannot be used: its kind, then what was given, what was expected and what to do."""

    case: str
    kind: FaultKind
    given: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class RawData:
    """A data set as it lies on disk.

    `choice` is what it says of the values in its labels. `channels` names the image channels as far as it does.
    """

    root: Path
    cases: tuple[Case, ...]
    faults: tuple[Fault, ...] = ()
    choice: LabelChoice = ABOVE_0
    channels: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)  # of the values in its labels that are neither 0 nor ignored


def find_cases(folder: Path) -> list[Case]:
    """The training cases of a folder with dataset.json, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, by name.

    MSD's own names without `_0000` are taken too; images without a label are left out. Raises FileError for a missing
    folder, file or image, and for a dataset.json that is none.
    """
    raw = read_decathlon(folder)
    for fault in raw.faults:
        if fault.kind != "missing label":
            raise FileError(fault.given, fault.expected, fault.remedy)
    return list(raw.cases)


def read_decathlon(folder: Path) -> RawData:
    """A folder in MSD or nnU-Net raw layout, with its missing files as faults.

    Raises FileError for a folder without dataset.json or labels, and for a dataset.json that is none.
    """
    description = _description(folder)
    ending = str(description.get("file_ending", ".nii.gz"))
    channels = _channel_names(description)
    known, ignored, named = _label_values(description)
    choice = LabelChoice(known=known, ignored=ignored)
    labels = sorted((folder / "labelsTr").glob(f"[!.]*{ending}"))
    if not labels:
        raise FileError(f"{folder}: no labels in labelsTr", f"at least one *{ending}", "check the path")
    files = {path.name.removesuffix(ending): path for path in sorted((folder / "imagesTr").glob(f"[!.]*{ending}"))}
    cases, faults = [], []
    for label in labels:
        found = _images_of(label, files, ending, len(channels))
        if isinstance(found, Fault):
            faults.append(found)
        else:
            cases.append(replace(found, choice=choice))
    names = {label.name.removesuffix(ending) for label in labels}
    faults += _without_label(files, names, ending)
    return RawData(folder, tuple(cases), tuple(faults), choice, channels, named)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.is_file():
        raise FileError(f"{folder}: no dataset.json", "a folder in MSD or nnU-Net raw layout", "check the path")
    try:
        return dict(from_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise FileError(f"{path}: {error}", "a JSON object", "repair the file") from error


def _channel_names(description: Mapping[str, Any]) -> tuple[str, ...]:
    """nnU-Net calls them channel_names, MSD modality; {"0": "CT"}."""
    names = description.get("channel_names", description.get("modality", {}))
    return tuple(str(name) for name in names.values()) if isinstance(names, dict) else ()


def _label_values(description: Mapping[str, Any]) -> tuple[frozenset[int] | None, frozenset[int], dict[int, str]]:
    """All label values, the ignored ones, and the names of the others.

    MSD writes {"1": "liver"}, nnU-Net {"liver": 1} or {"whole": [1, 2]}.
    """
    labels = description.get("labels")
    if not isinstance(labels, dict) or not labels:
        return None, frozenset(), {}
    values: dict[int, str] = {0: "background"}
    for key, value in labels.items():
        if isinstance(value, list):
            values.update((int(v), str(key)) for v in value)
        elif isinstance(value, int):
            values[value] = str(key)
        elif str(key).isdigit():
            values[int(key)] = str(value)
    ignored = frozenset(value for value, name in values.items() if name == "ignore")
    return frozenset(values), ignored, {v: name for v, name in values.items() if v and v not in ignored}


def _images_of(label: Path, files: Mapping[str, Path], ending: str, channels: int) -> Case | Fault:
    """The case of a label file, or what its images lack. One file without a number may hold all channels (MSD)."""
    name = label.name.removesuffix(ending)
    numbered = sorted(key for key in files if (match := CHANNEL.fullmatch(key)) and match[1] == name)
    if name in files and numbered:
        given = f"{files[name].name} and {files[numbered[0]].name}"
        return Fault(name, "duplicate case", given, "one image for each case", "remove one of them")
    if name in files:
        return Case(name, (files[name],), label)
    wanted = [f"{name}_{channel:04d}" for channel in range(max(channels, len(numbered), 1))]
    missing = [f"{key}{ending}" for key in wanted if key not in files]
    if missing:
        given = f"{label}: its image is missing" if not numbered else f"{label}: a channel is missing"
        return Fault(name, "missing image", given, f"{', '.join(missing)} in imagesTr", "add the image")
    return Case(name, tuple(files[key] for key in wanted), label)


def _without_label(files: Mapping[str, Path], names: set[str], ending: str) -> list[Fault]:
    """One fault for each case whose image has no label."""
    lonely: dict[str, Path] = {}
    for key, path in files.items():
        match = CHANNEL.fullmatch(key)
        case = match[1] if match else key
        if key not in names and case not in names:
            lonely.setdefault(case, path)
    return [
        Fault(
            case,
            "missing label",
            f"{path}: its label is missing",
            f"{case}{ending} in labelsTr",
            "add the label, or move the image to imagesTs",
        )
        for case, path in lonely.items()
    ]


class OneLabel:
    """An array, read part by part, that is 1 where another one has this label, and 0 elsewhere."""

    def __init__(self, array: NDArray[np.uint8], label: int) -> None:
        self.array, self.label = array, label
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, np.dtype(np.uint8)

    def __getitem__(self, part: Any) -> NDArray[np.uint8]:
        return (self.array[part] == self.label).astype(np.uint8)

    def astype(self, kind: Any, copy: bool = True) -> NDArray:
        """All of it as an array of this type."""
        return self[...].astype(kind, copy=copy)


BODY_HU = -200.0  # in a CT, what is brighter is not air
TRIES = 20


@dataclass(frozen=True)
class Labelled:
    """A scan with its label (0/1) on the same grid, and where the label's voxels are; arrays may be read as needed.

    `additional`: images of the same patient beside `scan`, on its grid (several MR sequences).
    """

    scan: Volume
    label: Volume
    foreground: NDArray[np.int32]  # (n, 3) indices
    additional: tuple[Volume, ...] = ()
    known_body: NDArray[np.int64] | None = None  # what `body` gives, where it has been found before
    name: str = ""  # of its case
    known_content: str | None = None  # what `content` gives; "" where a store does not know it
    classes: NDArray[np.uint8] | None = None  # (n,) the label of each voxel of `foreground`, where classes have names
    target: int | None = None  # the one that this is of (`structures`)

    @classmethod
    def make(
        cls,
        scan: Volume,
        label: Volume,
        additional: Sequence[Volume] = (),
        choice: LabelChoice = ABOVE_0,
        name: str = "",
    ) -> Labelled:
        """What `choice` takes of `label` is foreground. Raises GeometryError for another grid, ImageError for none."""
        for other, what in ((label, "a label"), *((image, "an additional image") for image in additional)):
            if not other.grid.close_to(scan.grid):
                given, expected = f"{what} on {other.grid}", f"the scan's grid, {scan.grid}"
                raise GeometryError(given, expected, f"resample the {what.partition(' ')[2]} to its scan")
        tumour = choice(label.array)
        foreground = np.argwhere(tumour).astype(np.int32)
        if not len(foreground):
            remedy = "leave the case out (held_out in the recipe)"
            raise ImageError("a label without tumour", f"at least one voxel of {choice.wanted}", remedy)
        return cls(scan, Volume(tumour.astype(np.uint8), scan.grid, "SEG"), foreground, tuple(additional), name=name)

    @property
    def structures(self) -> tuple[Labelled, ...]:
        """The case once for each of its classes, whose voxels alone are then the label; itself if it has no classes."""
        if self.classes is None:
            return (self,)
        return tuple(
            replace(
                self,
                label=self.label.with_array(cast(NDArray[np.uint8], OneLabel(self.label.array, label))),
                foreground=self.foreground[self.classes == label],
                classes=None,
                target=label,
            )
            for label in np.unique(self.classes).tolist()
        )

    @property
    def images(self) -> tuple[Volume, ...]:
        """All channels."""
        return self.scan, *self.additional

    @cached_property
    def body(self) -> NDArray[np.int64]:
        """(2, 3) first and last index of the box round all that is not air."""
        return body_box(self.scan) if self.known_body is None else self.known_body

    @cached_property
    def content(self) -> str:
        """What a card lists of the scan as its file has it (voxsam.seen)."""
        return content(self.scan) if self.known_content is None else self.known_content

    def tumour_voxel(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """(3,) the index of a voxel of the tumour."""
        return self.foreground[rng.integers(len(self.foreground))]

    def background_voxel(self, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """(3,) the index of a voxel of the body outside the tumour, or None if twenty tries find none."""
        for index in rng.integers(0, self.scan.grid.shape, size=(TRIES, 3)):
            box = tuple(slice(i, i + 1) for i in index)
            body = self.scan.modality != "CT" or self.scan.array[box].item() > BODY_HU
            if body and not self.label.array[box].item():
                return index
        return None


def body_box(scan: Volume) -> NDArray[np.int64]:
    """(2, 3) first and last index of the box round what is above BODY_HU in a CT, above the lowest value elsewhere."""
    array = np.asarray(scan.array[...])
    inside = array > (BODY_HU if scan.modality == "CT" else array.min())
    box = bounding_box(inside) if inside.any() else [slice(0, n) for n in array.shape]
    return np.array([(part.start, part.stop - 1) for part in box], dtype=np.int64).T
