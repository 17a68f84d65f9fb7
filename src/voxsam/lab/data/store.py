"""The prepared store: resampled cases as chunked, compressed zarr arrays, from which crops are read without the rest.

PREPARED/
  dataset.json                 a Description: what was prepared, how, and from which files
  faults.csv                   the faults found, if any; their cases are left out
  checks/CASE.json             the result of the check of a case, cached for the next run
  cases/CASE.zarr/             channel_0, channel_1, ... (D, H, W) int16 or float32, raw intensities
                  label        (D, H, W) uint8, 1 is tumour; with classes, their labels
                  foreground   (n, 3) int32, voxels of the tumour: all, or an even sample
                  classes      (n,) uint8, the labels of `foreground`, if the data set has classes
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from zarr.codecs import BloscCodec

from voxsam.atomic import atomic_folder, make_folder
from voxsam.errors import FileError, InputError, InternalError
from voxsam.geometry import Grid
from voxsam.lab.data.cases import Fault, Labelled
from voxsam.preprocess import Preprocessing
from voxsam.volume import Volume

Triple = tuple[float, float, float]

CLIP_PERCENT = (0.5, 99.5)
QUANTILES = 1000  # kept for each case: ranks within 0.05 %
ANISOTROPY = 3.0  # an axis this many times coarser than the others is treated separately, as in nnU-Net
COARSE_PERCENTILE = 10


class Sketch(BaseModel):
    """The foreground intensities of one case and channel: exact moments, and at most QUANTILES evenly ranked values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    mean: float
    sd: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: NDArray) -> Sketch:
        """The sketch of all foreground values (n,), in the scan's unit."""
        ordered = np.sort(values)
        count = len(ordered)
        if count > QUANTILES:
            ranks = np.rint((np.arange(QUANTILES) + 0.5) / QUANTILES * count - 0.5).astype(int)
            ordered = ordered[ranks]
        mean, sd = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        return cls(voxels=count, mean=mean, sd=sd, quantiles=tuple(ordered.tolist()))


class Intensities(BaseModel):
    """One channel's foreground over many cases: number of voxels, 0.5th and 99.5th percentile, mean, s.d."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    voxels: int
    low: float
    high: float
    mean: float
    sd: float

    @classmethod
    def merge(cls, sketches: Sequence[Sketch]) -> Intensities:
        """Weight every voxel equally, as in the released statistics. Raises InternalError if there are none."""
        counts = np.array([s.voxels for s in sketches], dtype=float)
        total = counts.sum()
        if total < 1:
            raise InternalError("a fingerprint without foreground voxels")
        means, sds = np.array([(s.mean, s.sd) for s in sketches]).T
        mean = (counts * means).sum() / total
        variance = (counts * (sds**2 + (means - mean) ** 2)).sum() / total
        values = np.concatenate([s.quantiles for s in sketches])
        weights = np.concatenate([np.full(len(s.quantiles), s.voxels / len(s.quantiles)) for s in sketches])
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order]
        ranks = np.cumsum(weights) - weights / 2 - 0.5  # of single voxels: 0, 1, 2, ... as in numpy.percentile
        low, high = np.interp(np.array(CLIP_PERCENT) / 100 * (total - 1), ranks, values)
        return cls(voxels=int(total), low=float(low), high=float(high), mean=float(mean), sd=float(variance**0.5))


class Fingerprint(BaseModel):
    """Statistics of a data set; `spacing_mm` and `shape` along the model's axes, medians over the cases."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: int
    channels: tuple[Intensities, ...]
    spacing_mm: Triple
    shape: Triple
    volume_ml: float  # of the tumour


def choose_spacing(spacings_mm: ArrayLike, shapes: ArrayLike) -> Triple:
    """Choose a spacing (mm) for cases with spacings (n, 3) and shapes (n, 3) along the same axes, by nnU-Net's rule.

    It is the median of each axis. An axis more than three times coarser than both others, with fewer than a third of
    their voxels, gets its 10th percentile, but not below the others: else thick slices would decide for thin ones.
    Source: Isensee et al. 2021, supplementary note 2.
    """
    spacings = np.asarray(spacings_mm, dtype=float).reshape(-1, 3)
    target = np.median(spacings, axis=0)
    voxels = np.median(np.asarray(shapes, dtype=float).reshape(-1, 3), axis=0)
    coarse = int(target.argmax())
    others = [axis for axis in range(3) if axis != coarse]
    if target[coarse] > ANISOTROPY * target[others].max() and voxels[coarse] * ANISOTROPY < voxels[others].min():
        target[coarse] = max(np.percentile(spacings[:, coarse], COARSE_PERCENTILE), target[others].max())
    a, b, c = (round(float(s), 6) for s in target)
    return a, b, c


FORMAT = 3  # 2: smaller chunks, slower to unpack, and nnU-Net's ignored label not noted; 1: lost thin tumours
CHUNK = 64  # voxels a side: a crop of 128 reads at most 27 chunks
SHARD = 448  # voxels a side, at most: arrays of most scans take only a few files
MAX_POSITIONS = 200_000
REMEDY = "run `voxsam prepare RAW -o PREPARED`, to its end"

Index = tuple[int, int, int]


class Source(BaseModel):
    """One source file of a case, as it was then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str  # relative to the data set's folder where it lies inside
    size: int  # bytes
    modified_ns: int


class CaseRecord(BaseModel):
    """One prepared case. `key` changes with its source files and everything else that its voxels depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    sources: tuple[Source, ...]
    source_shape: tuple[int, int, int]
    source_spacing_mm: tuple[float, float, float]
    source_axes: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    volume_ml: float  # of the tumour in the source
    lesions: int
    voxels: int  # of the tumour in the store
    body: tuple[Index, Index] | None = None  # first and last index of what is not air; None: older, not recorded
    content: str = ""  # of its first image (voxsam.seen); "": older, not recorded

    @property
    def grid(self) -> Grid:
        """The grid of the stored arrays."""
        return Grid(self.shape, np.array(self.affine))


class Description(BaseModel):
    """The content of dataset.json. `preprocessing` and the fingerprint's `channels` have an entry for each channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    data_set: str
    root: str = ""  # the folder that source paths are relative to; "": written before it was recorded
    labels: tuple[int, ...] | None  # the tumour's values in the source labels; None: all above 0 except the ignored
    ignored_labels: tuple[int, ...] = ()
    classes: dict[int, str] = {}  # names of the labels that are classes of their own; empty: all are tumour
    seed: int
    channels: tuple[str, ...]
    preprocessing: tuple[Preprocessing, ...]
    fingerprint: Fingerprint
    split: dict[str, tuple[str, ...]]
    cases: dict[str, CaseRecord]
    without_tumour: tuple[str, ...] = ()
    unoriented: tuple[str, ...] = ()  # cases whose files do not record the patient's orientation
    faults: tuple[Fault, ...] = ()


class PreparedData:
    """A prepared data set, open for reading; opening it reads dataset.json and no voxels."""

    def __init__(self, folder: Path, description: Description) -> None:
        self.folder, self.description = folder, description

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all cases, sorted."""
        return tuple(sorted(self.description.cases))

    @property
    def split(self) -> dict[str, tuple[str, ...]]:
        """The names of the parts "train", "validation" and "test"."""
        return self.description.split

    @property
    def preprocessing(self) -> Preprocessing:
        """The store's spacing and axes, and the normalisation of its channels."""
        first, *additional = self.description.preprocessing
        return first.with_channels(additional)

    @property
    def fingerprint(self) -> Fingerprint:
        """Measured on the training part, at the spacing of the sources."""
        return self.description.fingerprint

    def load(self, name: str, channel: int | None = None) -> Labelled:
        """Load a case with all its channels, or only `channel`; slicing its zarr arrays reads just the chunks needed.

        Raises FileError for a case or channel that does not exist.
        """
        record = self.description.cases.get(name)
        if record is None:
            raise FileError(f"{self.folder}: no case {name}", f"one of {', '.join(self.names)}", "check the name")
        kinds = self.description.preprocessing
        if channel is not None and not 0 <= channel < len(kinds):
            raise FileError(f"channel {channel} of {name}", f"0 to {len(kinds) - 1}", "choose another channel")
        numbers = range(len(kinds)) if channel is None else [channel]
        folder = case_folder(self.folder, name)
        has_classes = ["classes"] * bool(self.description.classes)
        try:
            arrays = {
                part: zarr.open_array(folder / part, mode="r")
                for part in (*(f"channel_{n}" for n in numbers), "label", "foreground", *has_classes)
            }
        except (OSError, ValueError) as error:
            raise FileError(f"{folder} could not be read ({error})", "a prepared case", "prepare it again") from error
        images = [Volume(cast(NDArray[Any], arrays[f"channel_{n}"]), record.grid, kinds[n].modality) for n in numbers]
        return Labelled(
            images[0],
            Volume(cast(NDArray[Any], arrays["label"]), record.grid, "SEG"),
            np.asarray(arrays["foreground"][...], dtype=np.int32),
            tuple(images[1:]),
            None if record.body is None else np.array(record.body),
            name,
            record.content,
            np.asarray(arrays["classes"][...], dtype=np.uint8) if has_classes else None,
        )


def open_store(folder: str | os.PathLike[str]) -> PreparedData:
    """Open the store in `folder`. Raises FileError if it is not one, not finished, or of another format."""
    path = Path(folder) / "dataset.json"
    if not path.is_file():
        raise FileError(f"{folder}: no dataset.json", "a folder made by voxsam prepare", REMEDY)
    description = find_description(Path(folder))
    if description is None:
        raise FileError(f"{path} is not that of a prepared data set", f"one of format {FORMAT}", REMEDY)
    return PreparedData(Path(folder), description)


def find_description(folder: Path) -> Description | None:
    """A store's description; None for a folder of another kind. Raises FileError for a store of another format."""
    path = folder / "dataset.json"
    description = read_description(path)
    if description is not None:
        return description
    try:
        found = dict(from_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    number = found.get("format") if {"preprocessing", "fingerprint"} <= found.keys() else None
    if isinstance(number, int) and number != FORMAT:  # else it is not a store, or merely damaged
        given = f"{folder}: prepared as format {number} by another VoxSAM"
        raise FileError(given, f"format {FORMAT}", "prepare it again: run `voxsam prepare RAW -o PREPARED`")
    return None


def read_description(path: Path) -> Description | None:
    """The description in a dataset.json, or None if it is absent, of another kind or of another format."""
    try:
        description = Description.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return description if description.format == FORMAT else None


def case_folder(folder: Path, name: str) -> Path:
    """The folder of a case in a store."""
    return folder / "cases" / f"{name}.zarr"


def read_record(folder: Path) -> CaseRecord | None:
    """The record in a finished case's folder, or None if there is none of this format."""
    try:
        return CaseRecord.model_validate(dict(zarr.open_group(folder, mode="r").attrs)["record"])
    except (OSError, KeyError, ValueError):  # pydantic's and zarr's errors are ValueErrors
        return None


def write_case(
    folder: Path,
    channels: list[NDArray[Any]],
    label: NDArray[np.uint8],
    foreground: NDArray[np.int32],
    record: CaseRecord,
    classes: NDArray[np.uint8] | None = None,
) -> None:
    """Write a case's arrays; `classes` (n,) are the labels of its foreground. Raises FileError.

    `folder` appears whole or not at all, and replaces an older one.
    """
    with atomic_folder(folder) as partial:
        group = zarr.create_group(partial, attributes={"record": record.model_dump(mode="json")})
        for number, array in enumerate(channels):
            _write_array(group, f"channel_{number}", array)
        _write_array(group, "label", label)
        positions = group.create_array(
            "foreground", shape=foreground.shape, dtype=foreground.dtype, chunks=foreground.shape
        )
        positions[...] = foreground
        if classes is not None:
            group.create_array("classes", shape=classes.shape, dtype=classes.dtype, chunks=classes.shape)[...] = classes


def _write_array(group: zarr.Group, name: str, array: NDArray[Any]) -> None:
    shards = tuple(min(SHARD, -(-n // CHUNK) * CHUNK) for n in array.shape)
    compressor = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")  # larger than zstd, unpacked twice as fast
    stored = group.create_array(
        name, shape=array.shape, dtype=array.dtype, chunks=(CHUNK,) * 3, shards=shards, compressors=compressor
    )
    stored[...] = array


def sample_positions(label: NDArray[np.uint8], always: NDArray[np.int32]) -> NDArray[np.int32]:
    """(n, 3) the voxels of a label, or an even sample of about MAX_POSITIONS that includes the voxels `always`."""
    positions = np.argwhere(label).astype(np.int32)
    if len(positions) <= MAX_POSITIONS:
        return positions
    room = max(MAX_POSITIONS - len(always), 0)
    even = np.linspace(0, len(positions) - 1, room).round().astype(int)
    return np.unique(np.concatenate([positions[even], always]), axis=0).astype(np.int32)


def check_output(folder: Path, raw: Path) -> None:
    """Raise InputError if the output folder is the data set itself, FileError if it is a file; else create it."""
    if folder.exists() and folder.resolve() == raw.resolve():
        raise InputError(f"the output {folder} is the data set", "another folder", "choose one with -o")
    make_folder(folder)
