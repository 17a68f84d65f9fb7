"""The data engine's sources: which patients the fixed split allows for training, and reading their scans.

The folder of the sources is one like the shared data.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from voxsam.errors import FileError, InputError
from voxsam.io import read_volume
from voxsam.lab.engine.crops import EngineSettings
from voxsam.lab.engine.scans import Scan
from voxsam.lab.engine.stream import Nodule, Sources
from voxsam.preprocess import Preprocessing, standardised
from voxsam.resample import resample
from voxsam.seen import content
from voxsam.volume import Volume

Part = Literal["train", "validation", "excluded"]
FILE = Path(__file__).with_name("split.yaml")
ONE_MM = Preprocessing(axes="SAR", spacing_mm=(1.0, 1.0, 1.0), clip=(0, 1), mean=0, sd=1)
Seen = dict[str, dict[str, str]]  # source -> case -> its content (voxsam.seen)


@cache
def read_split() -> dict[str, dict[Part, tuple[str, ...]]]:
    """The cases (for nodules: the patients) of each part, by source (a folder of the shared data)."""
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {source: {part: tuple(names) for part, names in parts.items()} for source, parts in found.items()}


def cases(source: str, part: Part) -> tuple[str, ...]:
    """The cases of a part of a source; empty if the split has none. Raises InputError for an unknown source."""
    split = read_split()
    if source not in split:
        raise InputError(f"the source {source}", f"one of {', '.join(split)}", f"see {FILE.name}")
    return split[source].get(part, ())


def nodule_part(case: str) -> Part:
    """The part of a case of nodules_lidc, by the patient in its name `LIDC-IDRI-PATIENT_R_NODULE`."""
    patient = case.removeprefix("LIDC-IDRI-").partition("_")[0]
    if patient in cases("nodules_lidc", "excluded"):
        return "excluded"
    return "validation" if patient in cases("nodules_lidc", "validation") else "train"


def load_sources(folder: Path, use: EngineSettings, preprocessing: Preprocessing) -> Sources:
    """Read the training part of all sources that have a share; MR is standardised to the statistics of `preprocessing`.

    Backgrounds are always read. Raises FileError for a missing folder or case.
    """
    seen: Seen = {}
    return Sources(
        backgrounds=[Scan.of(case, volume) for case, volume, _ in _cases(folder, "backgrounds_ct", seen, "")],
        organs=[_organs(folder, seen)] if use.organs else [],
        nodules=_nodules(folder, seen) if use.nodules else [],
        sarcomas=[Scan.of(*read) for read in _cases(folder, "sarcoma_ct", seen)] if use.sarcomas else [],
        mr=_mr(folder, seen, preprocessing) if use.mr else [],
        seen=seen,
    )


def _cases(
    folder: Path, source: str, seen: Seen, labels: str = "labelsTr", sub: str = ""
) -> Iterator[tuple[str, Volume, Volume | None]]:
    """Each training case of a source, with its label if `labels` names the folder of labels."""
    for case in cases(source, "train"):
        volume = read_volume(_file(folder / source / sub / "imagesTr" / f"{case}_0000.nii.gz"))
        label = read_volume(_file(folder / source / sub / labels / f"{case}.nii.gz"), labels=True) if labels else None
        seen.setdefault(source, {})[case] = content(volume)
        yield case, volume, label


def _mr(folder: Path, seen: Seen, use: Preprocessing) -> list[Scan]:
    read = [*_cases(folder, "sarcoma_mr", seen), *_cases(folder, "lesions_other", seen, sub="mr_flair")]
    return [Scan.of(case, standardised(scan, use.mean, use.sd), label, places=False) for case, scan, label in read]


def _organs(folder: Path, seen: Seen) -> Scan:
    volume = read_volume(_file(folder / "organs_ct" / "ct.nii.gz"))
    seen["organs_ct"] = {"organs_ct": content(volume)}
    return Scan.of("organs_ct", volume, read_volume(_file(folder / "organs_ct" / "organs.nii.gz"), labels=True))


def _nodules(folder: Path, seen: Seen) -> list[Nodule]:
    root, nodules = folder / "nodules_lidc", []
    seen["nodules_lidc"] = {}
    for path in sorted((root / "labelsTr").glob("*.nii.gz")):
        case = path.name.removesuffix(".nii.gz")
        if nodule_part(case) != "train":
            continue
        volume = read_volume(_file(root / "imagesTr" / f"{case}_0000.nii.gz"))
        label = read_volume(path, labels=True)
        grid = ONE_MM.model_grid(volume.grid)
        mask = np.pad(resample(Volume(label.array.astype(np.float32), label.grid), grid, "area"), 1)
        if (mask > 0.5).any():
            nodules.append(Nodule(np.pad(resample(volume, grid, "area"), 1, mode="edge"), mask))
            seen["nodules_lidc"][case] = content(volume)
    if not nodules:
        raise FileError(f"{root}: no nodules", "the folder nodules_lidc of the shared data", "set the share to 0")
    return nodules


def _file(path: Path) -> Path:
    if not path.is_file():
        raise FileError(f"{path}: no such file", "the data that the split names", "give the folder that holds it")
    return path
