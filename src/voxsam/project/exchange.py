"""Exchange with other programs: nnU-Net's and MSD's layouts, DICOM-SEG, masks, clicks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic_core import from_json

from voxsam.atomic import atomic_folder
from voxsam.errors import FileError, GeometryError, ImageError, InputError, PromptError
from voxsam.geometry import Grid
from voxsam.io import MASK_SUFFIXES, read_volume, write_mask, write_volume
from voxsam.project.project import Project, ReportProgress
from voxsam.project.records import READER
from voxsam.prompts import Point
from voxsam.volume import Volume

Layout = Literal["nnunet", "msd", "dicom-seg"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
SUFFIX = ".nii.gz"


def export(
    project: Project,
    output: Path,
    layout: Layout = "nnunet",
    progress: ReportProgress = lambda stage, fraction: None,
) -> tuple[int, dict[str, str]]:
    """Write the scans that are done, each with its latest mask, into a new folder, which appears whole or not at all.

    "nnunet" and "msd" write imagesTr, labelsTr (1 is tumour) and dataset.json; "dicom-seg" writes OUTPUT/CASE.seg.dcm
    for every scan that came as DICOM. Returns how many cases were written, and why others were left out. Raises
    FileError for an output that exists and is not an empty folder, InputError if nothing is done.
    """
    if layout not in LAYOUTS:
        raise InputError(f"the layout {layout}", f"one of {', '.join(LAYOUTS)}", "choose one of them")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileError(f"{output} is there already", "a new folder", "choose another one")
    done = project.done_cases()
    if not done:
        raise InputError(f"{project.folder} without a scan that is done", "one or more", "finish a scan first")
    left_out: dict[str, str] = {}
    with atomic_folder(output) as folder:
        for number, (case, reading) in enumerate(sorted(done.items())):
            progress("writing the cases", number / len(done))
            try:
                scan = project.read(case)
                mask = read_volume(project.mask_path(case, reading.reader), labels=True, scan=scan)
                if layout == "dicom-seg":
                    labels = Volume(mask.array.astype(np.uint8), scan.grid, "SEG", scan.header)
                    write_mask(labels, folder / f"{case}.seg.dcm", source=scan, model=reading.model)
                else:
                    _write_pair(project, case, scan, mask, folder, "_0000" if layout == "nnunet" else "")
            except InputError as error:
                left_out[case] = str(error)
        written = [case for case in sorted(done) if case not in left_out]
        if not written:
            case, reason = next(iter(left_out.items()))
            raise InputError(f"no case that can be written as {layout} ({case}: {reason})", "at least one", "see above")
        if layout != "dicom-seg":
            modalities = {project.scan(case).modality or "CT" for case in written}
            described = _described(layout, written, "/".join(sorted(modalities)), project.folder.name)
            (folder / "dataset.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return len(written), left_out


def _write_pair(project: Project, case: str, scan: Volume, mask: Volume, folder: Path, ending: str) -> None:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(exist_ok=True)
    source, target = project.path_of(project.scan(case)), folder / "imagesTr" / f"{case}{ending}{SUFFIX}"
    if source.name.endswith(SUFFIX):
        shutil.copyfile(source, target)
    else:
        write_volume(scan, target)
    label = scan.with_array((mask.array > 0).astype(np.uint8), "SEG")
    write_mask(label, folder / "labelsTr" / f"{case}{SUFFIX}")


def _described(layout: Layout, cases: Sequence[str], modality: str, name: str) -> dict[str, Any]:
    common, labels = {"name": name, "numTraining": len(cases)}, {"background": 0, "tumour": 1}
    if layout == "nnunet":
        return {**common, "channel_names": {"0": modality}, "labels": labels, "file_ending": SUFFIX}
    pairs = [{"image": f"./imagesTr/{case}{SUFFIX}", "label": f"./labelsTr/{case}{SUFFIX}"} for case in cases]
    numbered = {str(number): name for name, number in labels.items()}
    listed = {"numTest": 0, "training": pairs, "test": []}
    return {**common, "modality": {"0": modality}, "labels": numbered, **listed}


def import_masks(
    project: Project,
    source: Path,
    *,
    reader: str = READER,
    labels: Collection[int] = (),
    progress: ReportProgress = lambda stage, fraction: None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Import masks made elsewhere: for each scan the file with its name in a folder, or in the folder's labelsTr.

    A name may end with `_seg`, `_mask` or `_label`. `labels` are the values that mean tumour; if empty, all above 0.
    All are checked before the first is saved. Returns the cases imported, and the files without a scan. Raises
    FileError if none matches, GeometryError for another grid than the scan's, ImageError for an empty mask.
    """
    folder = source / "labelsTr" if (source / "labelsTr").is_dir() else source
    if not folder.is_dir():
        raise FileError(f"{source} is no folder", "a folder of masks", "check the path")
    files = [path for path in sorted(folder.glob("[!.]*")) if path.name.endswith(MASK_SUFFIXES)]
    names = {scan.name.lower(): scan.name for scan in project.scans}
    found = {path: names[case] for path in files if (case := _case_of(path).lower()) in names}
    if not found:
        given = f"{folder}: no mask with the name of a scan" + (f" ({files[0].name}, say)" if files else "")
        raise FileError(
            given, f"CASE{SUFFIX}, such as {next(iter(names.values()), 'CASE')}{SUFFIX}", "rename the files"
        )
    for keep in (False, True):
        for number, (path, case) in enumerate(found.items()):
            progress("keeping the masks" if keep else "checking the masks", number / len(found))
            scan = project.read(case)
            mask = _imported(path, scan, labels)
            if keep:
                project.done(case, mask, reader=reader, source="import", scan=scan)
    return tuple(found.values()), tuple(path.name for path in files if path not in found)


def _case_of(path: Path) -> str:
    suffix = next(s for s in sorted(MASK_SUFFIXES, key=len, reverse=True) if path.name.endswith(s))
    return re.sub(r"[_-](seg|mask|label)$", "", path.name.removesuffix(suffix), flags=re.IGNORECASE)


def _imported(path: Path, scan: Volume, labels: Collection[int]) -> Volume:
    read = read_volume(path, labels=True, scan=scan)
    if not read.grid.close_to(scan.grid):
        raise GeometryError(f"{path.name} on {read.grid}", f"its scan's {scan.grid}", "resample it onto the scan")
    chosen = np.isin(read.array, list(labels)) if labels else read.array > 0
    if not chosen.any():
        raise ImageError(f"{path.name} without a voxel of its tumour", "at least one", "leave it out, or see --labels")
    return Volume(chosen.astype(np.uint8), scan.grid, "SEG", scan.header)


def read_clicks(path: Path, grid: Grid) -> list[Point]:
    """The clicks of a JSON file: of a Reading, or of a report of `voxsam segment --report`.

    Each has `index` (i, j, k) or `world_mm` (RAS+), and `positive`. Raises FileError for a file of another kind,
    PromptError for a click outside the scan.
    """
    expected = '{"clicks": [{"index": [i, j, k], "positive": true}, ...]}, or "world_mm"'
    try:
        found = from_json(path.read_bytes())["clicks"]
        points = [
            Point.at_index(grid, click["index"], bool(click.get("positive", True)))
            if "index" in click
            else Point(tuple(map(float, click["world_mm"])), bool(click.get("positive", True)))  # type: ignore[arg-type]
            for click in found
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileError(
            f"{path}: no clicks ({error})", expected, "give the report of `voxsam segment --report`"
        ) from error
    for point in points:
        if len(point.world_mm) != 3:
            raise PromptError(f"{path}: a click of {len(point.world_mm)} numbers", "three", "correct it")
        point.points(grid)
    return points
