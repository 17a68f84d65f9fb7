"""A labelled case, as files and in memory: its tumour labels, possible faults; reader of MSD and nnU-Net folders."""

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

AT_ONCE = 2**22  # voxels of a label counted at a time
LARGEST_COUNTED = 2**16
SHOWN_VALUES = 5


@dataclass(frozen=True)
class LabelChoice:
    """Which label values are tumour (None: all above 0 except the ignored), and which are allowed (None: any).

    Ignored voxels (nnU-Net's label `ignore`) are background, in training and in scores.
    """

    targets: tuple[int, ...] | None = None
    known: frozenset[int] | None = None
    ignored: frozenset[int] = frozenset()
    healthy: bool = False  # whether cases without tumour are allowed

    def __call__(self, labels: NDArray) -> NDArray[np.bool_]:
        """The tumour mask of a label map."""
        if self.targets is not None and len(self.targets) == 1:
            return labels == self.targets[0]
        if self.targets is not None:
            return np.isin(labels, self.targets)
        return (labels > 0) & ~np.isin(labels, list(self.ignored)) if self.ignored else labels > 0

    def of(self, targets: Collection[int] | None) -> LabelChoice:
        """The same choice with these values as the tumour; unchanged if none are given.

        Raises InputError for values below 1 and for ignored ones; whether any label has them is not checked.
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
    """The distinct values of a label map."""
    flat = labels.ravel(order="K")
    small = labels.min() >= 0 and labels.max() < LARGEST_COUNTED
    found: set[int] = set()
    for start in range(0, flat.size, AT_ONCE):
        part = flat[start : start + AT_ONCE]
        found.update((np.flatnonzero(np.bincount(part)) if small else np.unique(part)).tolist())
    return found


def listed(values: Collection[int]) -> str:
    """Values as text, only the first few if there are many."""
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
    """One patient's images, all on one grid, and the label; an image is one channel, or a 4D file with all channels.

    `choice` is what the data set says about its label values.
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
    """Why a case cannot be used: the kind of fault, what was given, what was expected and what to do."""

    case: str
    kind: FaultKind
    given: str
    expected: str
    remedy: str


@dataclass(frozen=True)
class RawData:
    """A data set as it is on disk.

    `choice` is what it says about the values in its labels. `channels` names the image channels, if the data set does.
    """

    root: Path
    cases: tuple[Case, ...]
    faults: tuple[Fault, ...] = ()
    choice: LabelChoice = ABOVE_0
    channels: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)  # of the values in its labels that are neither 0 nor ignored


def find_cases(folder: Path) -> list[Case]:
    """The training cases of a folder with dataset.json, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz, by name.

    MSD's names without `_0000` are accepted too; images without a label are left out. Raises FileError for a missing
    folder, file or image, and for an invalid dataset.json.
    """
    raw = read_decathlon(folder)
    for fault in raw.faults:
        if fault.kind != "missing label":
            raise FileError(fault.given, fault.expected, fault.remedy)
    return list(raw.cases)


def read_decathlon(folder: Path) -> RawData:
    """Read a folder in MSD or nnU-Net raw layout, reporting missing files as faults.

    Raises FileError for a folder without dataset.json or labels, and for an invalid dataset.json.
    """
    if not (folder / "dataset.json").is_file():
        raise FileError(f"{folder}: no dataset.json", "a folder in MSD or nnU-Net raw layout", "check the path")
    description = read_json(folder / "dataset.json")
    ending = str(description.get("file_ending", ".nii.gz"))
    named = description.get("channel_names", description.get("modality", {}))  # nnU-Net's key, MSD's; {"0": "CT"}
    channels = tuple(map(str, named.values())) if isinstance(named, dict) else ()
    known, ignored, names = _label_values(description)
    choice = LabelChoice(known=known, ignored=ignored)
    labels = sorted((folder / "labelsTr").glob(f"[!.]*{ending}"))
    if not labels:
        raise FileError(f"{folder}: no labels in labelsTr", f"at least one *{ending}", "check the path")
    files = {path.name.removesuffix(ending): path for path in sorted((folder / "imagesTr").glob(f"[!.]*{ending}"))}
    found = [_images_of(label, files, ending, len(channels)) for label in labels]
    cases = tuple(replace(case, choice=choice) for case in found if isinstance(case, Case))
    faults = [fault for fault in found if isinstance(fault, Fault)]
    labelled = {label.name.removesuffix(ending) for label in labels}
    lonely: dict[str, Path] = {}
    for key, path in files.items():
        match = CHANNEL.fullmatch(key)
        case = match[1] if match else key
        if key not in labelled and case not in labelled:
            lonely.setdefault(case, path)
    for case, path in lonely.items():
        given, expected = f"{path}: its label is missing", f"{case}{ending} in labelsTr"
        faults.append(Fault(case, "missing label", given, expected, "add the label, or move the image to imagesTs"))
    return RawData(folder, cases, tuple(faults), choice, channels, names)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a dataset.json. Raises FileError if it cannot be read or is no object."""
    try:
        return dict(from_json(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise FileError(f"{path}: {error}", "a JSON object", "repair the file") from error


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
    """The case of a label file, or a fault of its images. One file without a number may hold all channels (MSD)."""
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


class OneLabel:
    """A lazily read array that is 1 where another array has a given label, and 0 elsewhere."""

    def __init__(self, array: NDArray[np.uint8], label: int) -> None:
        self.array, self.label = array, label
        self.shape, self.ndim, self.dtype = array.shape, array.ndim, np.dtype(np.uint8)

    def __getitem__(self, part: Any) -> NDArray[np.uint8]:
        return (self.array[part] == self.label).astype(np.uint8)

    def astype(self, kind: Any, copy: bool = True) -> NDArray:
        """The whole as an array of this type."""
        return self[...].astype(kind, copy=copy)


BODY_HU = -200.0  # in a CT, anything brighter is not air
TRIES = 20


@dataclass(frozen=True)
class Labelled:
    """A scan with its label (0/1) on the same grid, and the indices of the label's voxels; arrays may be lazy.

    `additional`: further images of the same patient on the grid of `scan` (several MR sequences).
    """

    scan: Volume
    label: Volume
    foreground: NDArray[np.int32]  # (n, 3) indices
    additional: tuple[Volume, ...] = ()
    known_body: NDArray[np.int64] | None = None  # the value of `body`, if already computed
    name: str = ""  # of its case
    known_content: str | None = None  # the value of `content`, if already computed; "": not recorded in its store
    classes: NDArray[np.uint8] | None = None  # (n,) label of each voxel of `foreground`, if the data set has classes
    target: int | None = None  # the class that this is one of the `structures` for

    @classmethod
    def make(
        cls,
        scan: Volume,
        label: Volume,
        additional: Sequence[Volume] = (),
        choice: LabelChoice = ABOVE_0,
        name: str = "",
    ) -> Labelled:
        """With what `choice` selects as foreground. Raises GeometryError for another grid, ImageError for no tumour."""
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
        """The case once per class, with only that class's voxels as the label; just itself if it has no classes."""
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
        """(2, 3) first and last index of the box around everything that is not air."""
        return body_box(self.scan) if self.known_body is None else self.known_body

    @cached_property
    def content(self) -> str:
        """What a card lists to recognise the scan, as its file has it (voxsam.seen)."""
        return content(self.scan) if self.known_content is None else self.known_content

    def tumour_voxel(self, rng: np.random.Generator) -> NDArray[np.int32]:
        """(3,) index of a random voxel of the tumour."""
        return self.foreground[rng.integers(len(self.foreground))]

    def background_voxel(self, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """(3,) index of a random voxel of the body outside the tumour; None if twenty tries find none."""
        for index in rng.integers(0, self.scan.grid.shape, size=(TRIES, 3)):
            box = tuple(slice(i, i + 1) for i in index)
            body = self.scan.modality != "CT" or self.scan.array[box].item() > BODY_HU
            if body and not self.label.array[box].item():
                return index
        return None


def body_box(scan: Volume) -> NDArray[np.int64]:
    """(2, 3) first and last index of the box around voxels above BODY_HU in a CT, else above the lowest value."""
    array = np.asarray(scan.array[...])
    inside = array > (BODY_HU if scan.modality == "CT" else array.min())
    box = bounding_box(inside) if inside.any() else [slice(0, n) for n in array.shape]
    return np.array([(part.start, part.stop - 1) for part in box], dtype=np.int64).T
