"""The data engine's sources, read from a folder like the shared data: only what the split lets a model see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voxsam.errors import FileError
from voxsam.io import read_volume
from voxsam.lab.engine.scans import Scan
from voxsam.lab.engine.settings import EngineSettings
from voxsam.lab.engine.split import cases, nodule_part
from voxsam.lab.engine.stream import Nodule, Sources
from voxsam.preprocess import Preprocessing
from voxsam.resample import resample
from voxsam.seen import content
from voxsam.volume import Volume

ONE_MM = Preprocessing(axes="SAR", spacing_mm=(1.0, 1.0, 1.0), clip=(0, 1), mean=0, sd=1)
Seen = dict[str, dict[str, str]]  # source -> case -> its content (voxsam.seen)


def load_sources(folder: Path, use: EngineSettings) -> Sources:
    """The sources that have a share, of the split's part for training.

    Backgrounds are always read. Raises FileError for a folder or a case that is not there.
    """
    seen: Seen = {}
    backgrounds = _scans(folder, "backgrounds_ct", seen, labelled=False)
    organs = [_organs(folder, seen)] if use.organs else []
    sarcomas = _scans(folder, "sarcoma_ct", seen) if use.sarcomas else []
    nodules = _nodules(folder, seen) if use.nodules else []
    return Sources(backgrounds, organs, nodules, sarcomas, seen)


def _scans(folder: Path, source: str, seen: Seen, labelled: bool = True) -> list[Scan]:
    scans = []
    for case in cases(source, "train"):
        volume = read_volume(_file(folder / source / "imagesTr" / f"{case}_0000.nii.gz"))
        label = read_volume(_file(folder / source / "labelsTr" / f"{case}.nii.gz"), labels=True) if labelled else None
        scans.append(Scan.of(case, volume, label, places=True))
    seen[source] = {scan.name: scan.content for scan in scans}
    return scans


def _organs(folder: Path, seen: Seen) -> Scan:
    volume = read_volume(_file(folder / "organs_ct" / "ct.nii.gz"))
    scan = Scan.of("organs_ct", volume, read_volume(_file(folder / "organs_ct" / "organs.nii.gz"), labels=True))
    seen["organs_ct"] = {scan.name: scan.content}
    return scan


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
