"""Check all cases in parallel: the faults of their files, or the measures of sound ones.

checks/CASE.json caches the result with a key of the source files (path, size, modification time) and of the settings
that the result depends on. Cases whose key is unchanged are not read again.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from voxsam.atomic import atomic_path, remove_leftovers
from voxsam.errors import FileError, GeometryError, ImageError, InputError
from voxsam.geometry import Grid
from voxsam.io import is_oriented, read_channels, read_volume
from voxsam.lab.data.cases import Case, Fault, FaultKind, LabelChoice, RawData, label_values, listed
from voxsam.lab.data.parallel import ReportProgress, each
from voxsam.lab.data.store import FORMAT, Sketch, Source
from voxsam.seen import digest
from voxsam.volume import Volume

CHECKED = 2  # version of the checks; results of an earlier one are discarded


class Measures(BaseModel):
    """What is known about a sound case: its grid as stored, its tumour volume, the intensities in the tumour.

    A case without tumour has a `volume_ml` of 0 and no `channels`. `digest` is the same for the same voxels. `oriented`
    tells whether the first file records the patient's orientation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    modality: str
    volume_ml: float
    channels: tuple[Sketch, ...]
    digest: str
    oriented: bool

    @property
    def grid(self) -> Grid:
        """The grid of the source files."""
        return Grid(self.shape, np.array(self.affine))


class Check(BaseModel):
    """The result for one case: faults, or measures if there are none, and the remarks on its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    faults: tuple[Fault, ...]
    measures: Measures | None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """The results for a data set: measures of its sound cases, all faults, and the remarks on each case."""

    measures: dict[str, Measures]
    faults: tuple[Fault, ...]
    remarks: dict[str, tuple[str, ...]]


class FaultyCasesError(ImageError):
    """Some cases of a data set have faults: `faults` lists them all, `remarks` everything else that was noticed."""

    def __init__(self, findings: Findings, report: Path) -> None:
        self.faults, self.remarks = findings.faults, findings.remarks
        count, cases = len(self.faults), len({fault.case for fault in self.faults})
        given = f"{count} fault{'s' if count > 1 else ''} in {cases} case{'s' if cases > 1 else ''}"
        super().__init__(f"{given} ({report})", "none", "correct the files, or leave the cases out with --skip-faulty")


def check_case(case: Case, choice: LabelChoice) -> Check:
    """Read every file of a case and report all its faults."""
    faults: list[Fault] = []

    def report(kind: FaultKind, given: str, expected: str, remedy: str) -> None:
        faults.append(Fault(case.name, kind, given, expected, remedy))

    scans = [_read(path, "image", read_channels, report) for path in case.images]
    first = scans[0][0] if scans[0] else None
    labels = _read(case.label, "label", lambda path: (read_volume(path, labels=True, scan=first),), report)
    for path, others in zip((*case.images[1:], case.label), (*scans[1:], labels), strict=True):
        if first is not None and others:
            _compare(case.image, first.grid, path, others[0].grid, report)
    tumour = _check_label(case.label, labels[0].array, choice, report) if labels else None
    remarks = tuple(dict.fromkeys(said for volumes in (*scans, labels) for one in volumes for said in one.remarks))
    if faults or first is None or tumour is None:
        return Check(faults=tuple(faults), measures=None, remarks=remarks)
    values = [channel.array[tumour] for channels in scans for channel in channels]
    measures = Measures(
        shape=first.grid.shape,
        affine=tuple(tuple(row) for row in first.grid.affine.tolist()),
        modality=first.modality,
        volume_ml=len(values[0]) * first.grid.voxel_volume_ml,
        channels=tuple(map(Sketch.of, values)) if len(values[0]) else (),
        digest=digest(first),
        oriented=is_oriented(first),
    )
    return Check(faults=(), measures=measures, remarks=remarks)


def _read(
    path: Path, what: Literal["image", "label"], read: Callable[[Path], tuple[Volume, ...]], report: Callable[..., None]
) -> tuple[Volume, ...]:
    """The volumes of a file; empty if it has a fault, which is reported."""
    if not path.exists():
        report(f"missing {what}", f"{path} does not exist", "the file", "add it")
        return ()
    try:
        return read(path)
    except InputError as error:
        kind = "unreadable file" if isinstance(error, FileError) else f"unusable {what}"
        if isinstance(error, GeometryError):
            kind = "spacing zero" if "spacing" in error.given else "broken geometry"
        report(kind, error.given, error.expected, error.remedy)
        return ()


def _compare(image: Path, grid: Grid, path: Path, other: Grid, report: Callable[..., None]) -> None:
    """Report where two files of one case are not on the same grid."""
    if other.axes != grid.axes:
        given, expected = f"{path.name} has the axes {other.axes}", f"{grid.axes} as {image.name}"
        report("orientation mismatch", given, expected, "reorient it, or copy the affine if the voxels match")
    if other.shape != grid.shape:
        given = f"{path.name} has {_by(other.shape)} voxels"
        report("shape mismatch", given, f"{_by(grid.shape)} as in {image.name}", "resample it to its image")
    elif other.axes == grid.axes and not other.close_to(grid):
        apart = np.linalg.norm(other.corners_world_mm() - grid.corners_world_mm(), axis=1).max()
        given, expected = f"{path.name} lies up to {apart:.3g} mm off", f"the affine of {image.name}"
        report("affine mismatch", given, expected, "resample it, or copy the affine if the voxels match")


def _check_label(
    path: Path, labels: NDArray, choice: LabelChoice, report: Callable[..., None]
) -> NDArray[np.bool_] | None:
    """The tumour mask; None for a label without tumour that must have one."""
    values = label_values(labels)
    unknown = sorted(v for v in values if v < 0 or (choice.known is not None and v not in choice.known))
    if unknown:
        known = "0, 1, 2 ..." if choice.known is None else ", ".join(map(str, sorted(choice.known)))
        report(
            "unknown label value", f"{path.name} has the values {listed(unknown)}", f"only {known}", "correct the label"
        )
    tumour = choice(labels)
    if not tumour.any() and not choice.healthy:
        report("empty label", f"{path.name} has no tumour", f"a voxel of {choice.wanted}", "leave the case out")
        return None
    return tumour


def find_doubles(measured: Iterable[tuple[str, Measures]]) -> list[Fault]:
    """One fault for each case whose image has the same voxels as an earlier one: it could be trained and tested on."""
    first: dict[str, str] = {}
    faults = []
    for name, measures in measured:
        earlier = first.setdefault(measures.digest, name)
        if earlier != name:
            given = f"the image has the same voxels as that of {earlier}"
            faults.append(Fault(name, "duplicate case", given, "each scan once", "remove one of them"))
    return faults


def find_odd_channels(measured: Iterable[tuple[str, Measures]], named: Sequence[str]) -> list[Fault]:
    """One fault for each case whose number of channels is not what the data set names, or else what most cases have."""
    counts = {name: len(measures.channels) for name, measures in measured if measures.channels}
    if not counts:
        return []
    most = Counter(counts.values()).most_common(1)[0][0]
    wanted = len(named) if len(named) in counts.values() else most
    names = f" ({', '.join(named)})" if len(named) == wanted else ""
    return [
        Fault(name, "channel mismatch", f"{count} image channels", f"{wanted}{names}", "add or remove channels")
        for name, count in counts.items()
        if count != wanted
    ]


TUMOUR_HU = (-900.0, 600.0)  # the median intensity of a tumour lies in this range in any CT
ALIKE = 5.0  # a spacing this many times larger or smaller than the median is in another unit
FEW = 3  # fewer cases than this do not show what is usual


def find_outliers(measured: Iterable[tuple[str, Measures]], named: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Remarks on cases that can be read but are probably wrong: a CT not in HU, a spacing in another unit.

    A data set is CT if its first channel is `named` so, or if the names are unknown and most cases are CT.
    """
    known = {name: measures for name, measures in measured if measures.channels}
    of_ct = sum(measures.modality == "CT" for measures in known.values())
    is_ct = named[0].upper().startswith("CT") if named else 2 * of_ct > len(known)
    spacings = {name: float(np.prod(m.grid.spacing_mm) ** (1 / 3)) for name, m in known.items()}
    usual = float(np.median(list(spacings.values()))) if len(spacings) >= FEW else None
    found: dict[str, tuple[str, ...]] = {}
    for name, measures in known.items():
        said = []
        (low, high), middle = TUMOUR_HU, float(np.median(measures.channels[0].quantiles))
        if is_ct and (measures.modality != "CT" or not low <= middle <= high):
            said.append(
                f"the middle of the tumour's intensities is {middle:.4g}, and the whole is not like a CT in HU"
                f" ({low:.0f} to {high:.0f} in a tumour, air far below 0): are the voxels in Hounsfield units?"
            )
        if usual is not None and not 1 / ALIKE <= spacings[name] / usual <= ALIKE:
            own = " x ".join(f"{s:.3g}" for s in measures.grid.spacing_mm)
            said.append(
                f"its voxels of {own} mm are {spacings[name] / usual:.2g} times as long as those of the middle case,"
                f" {usual:.3g} mm: is the spacing in millimetres?"
            )
        if said:
            found[name] = tuple(said)
    return found


def write_tables(findings: Findings, folder: Path) -> Path:
    """Write faults.csv (case, fault, given, expected, remedy; its path is returned) and remarks.csv (case, remark).

    Empty tables are not written. Raises FileError.
    """
    heads = ["fault" if field.name == "kind" else field.name for field in fields(Fault)]
    _write_table(folder / "faults.csv", heads, [astuple(fault) for fault in findings.faults])
    said = [(case, remark) for case, remarks in findings.remarks.items() for remark in remarks]
    _write_table(folder / "remarks.csv", ["case", "remark"], said)
    return folder / "faults.csv"


def _write_table(path: Path, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        path.unlink(missing_ok=True)
        return
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heads, *rows])


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# Every case, in parallel; unchanged ones are not read again


@dataclass(frozen=True)
class CheckJob:
    """One case to check, and the file that caches its result."""

    case: Case
    choice: LabelChoice
    key: str
    file: Path


def check_all(data: RawData, choice: LabelChoice, output: Path, workers: int, progress: ReportProgress) -> Findings:
    """Check the cases of a data set: faults and remarks, and measures of the sound ones."""
    (output / "checks").mkdir(exist_ok=True)
    for folder in (output, output / "checks"):
        remove_leftovers(folder)
    checks: dict[str, Check] = {}
    jobs = []
    for case in data.cases:
        sources = case_sources(case, data.root)
        settings = (CHECKED, choice.targets, sorted(choice.known or ()), sorted(choice.ignored), choice.healthy)
        job = CheckJob(case, choice, job_key(sources, settings), output / "checks" / f"{case.name}.json")
        known = _read_check(job)
        if known is None:
            jobs.append(job)
        else:
            checks[case.name] = known
    for job, check in each(_run_check, jobs, workers, progress, "checking the cases"):
        checks[job.case.name] = check
    faults = [*data.faults, *(fault for case in data.cases for fault in checks[case.name].faults)]
    faulty = {fault.case for fault in faults}
    measured = {c.name: m for c in data.cases if (m := checks[c.name].measures) is not None and c.name not in faulty}
    for find in (lambda: find_odd_channels(measured.items(), data.channels), lambda: find_doubles(measured.items())):
        for fault in find():
            faults.append(fault)
            measured.pop(fault.case)
    odd = find_outliers(measured.items(), data.channels)
    both = {case.name: (*checks[case.name].remarks, *odd.get(case.name, ())) for case in data.cases}
    remarks = {name: said for name, said in both.items() if said}
    return Findings(measured, tuple(sorted(faults, key=lambda fault: fault.case)), remarks)


def _run_check(job: CheckJob) -> Check:
    check = check_case(job.case, job.choice)
    with atomic_path(job.file) as temporary:
        temporary.write_text(json.dumps({"key": job.key, "check": check.model_dump(mode="json")}), encoding="utf-8")
    return check


def _read_check(job: CheckJob) -> Check | None:
    """The result of an earlier run, if nothing has changed since."""
    try:
        kept = json.loads(job.file.read_bytes())
        return Check.model_validate(kept["check"]) if kept["key"] == job.key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def case_sources(case: Case, root: Path) -> tuple[Source, ...]:
    """The files of a case as they are now; a missing one has size -1."""
    found = []
    for path in (*case.images, case.label):
        shown = path.relative_to(root) if path.is_relative_to(root) else path
        try:
            status = path.stat()
            found.append(Source(path=shown.as_posix(), size=status.st_size, modified_ns=status.st_mtime_ns))
        except OSError:
            found.append(Source(path=shown.as_posix(), size=-1, modified_ns=0))
    return tuple(found)


def job_key(sources: Sequence[Source], settings: object) -> str:
    text = json.dumps([FORMAT, [s.model_dump() for s in sources], settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
