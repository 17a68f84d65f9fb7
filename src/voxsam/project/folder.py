"""The folder of a project: plain files, always read afresh, written under one lock and whole after any crash.

PROJECT/
  project.json               Settings: the start model, the models put into use
  scans.json                 Scans: where each scan lies, a digest of its voxels, who works on it
  masks/READER/CASE.nii.gz   on the scan's grid: 0, and a number for each object
  clicks/READER/CASE.json    a Reading, written after its mask: once it exists, the scan is done
  thumbnails/CASE.png
  models/NAME.safetensors    learned models, and a start model that is a file; NAME.json: a LearnedModel
  history.jsonl              one line for each event

Whoever writes holds the lock. A reading (mask, clicks, thumbnail) is assembled in .pending/ and counts from the moment
its record is there: whoever takes the lock next moves it into place, whatever was killed in between.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from voxsam.atomic import make_folder, remove_leftovers
from voxsam.errors import FileError, InputError
from voxsam.io import write_mask
from voxsam.project.records import (
    FORMAT,
    READER,
    LearnedModel,
    Reading,
    Scan,
    Scans,
    Settings,
    State,
    append_line,
    now,
    read_lines,
    read_record,
    write_record,
)
from voxsam.volume import Volume

WAIT_S = 60.0  # for the lock
LEARNING_LOCK = ".learning.lock"  # held while a model learns
QUIET_S = 10.0  # after a click, before learning resumes


class ProjectFolder:
    """The files of a project. Several processes may have it open; each access reads what is there now.

    Raises FileError for a folder that is not a project, and if another process holds the lock for a minute.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        if not (self.folder / "project.json").is_file():
            remedy = "make one: `voxsam project new FOLDER --scans DIR`"
            raise FileError(f"{folder}: no project.json", "a project", remedy)
        found = self.settings.format_version
        if found > FORMAT:
            raise FileError(f"{folder}: a project of format {found}", f"at most {FORMAT}", "install a newer VoxSAM")

    # What is there

    @property
    def settings(self) -> Settings:
        """The contents of project.json."""
        return read_record(self.folder / "project.json", Settings)

    @property
    def scans(self) -> tuple[Scan, ...]:
        """All scans, in the order in which they were added."""
        return read_record(self.folder / "scans.json", Scans).scans

    def scan(self, case: str) -> Scan:
        """The scan of this name. Raises InputError for an unknown name."""
        found = {scan.name: scan for scan in self.scans}
        if case not in found:
            known = ", ".join(list(found)[:5]) + (", ..." if len(found) > 5 else "")
            raise InputError(f"the scan {case}", f"one of {known or 'none yet'}", "see `voxsam project status`")
        return found[case]

    def path_of(self, scan: Scan) -> Path:
        """The path of the scan's file, or of its series' folder."""
        return self.folder / scan.path  # an absolute path stays as it is

    def readings(self, case: str) -> dict[str, Reading]:
        """The readings of a scan by reader, latest last."""
        found = [read_record(path, Reading) for path in (self.folder / "clicks").glob(f"*/{case}.json")]
        return {reading.reader: reading for reading in sorted(found, key=lambda reading: reading.finished)}

    def done_cases(self) -> dict[str, Reading]:
        """The latest reading of each scan that has one, in the order in which they were finished."""
        found = [list(readings.values())[-1] for scan in self.scans if (readings := self.readings(scan.name))]
        return {reading.case: reading for reading in sorted(found, key=lambda reading: reading.finished)}

    def state(self, scan: Scan) -> State:
        """The scan's state: "done" once anybody has done it."""
        return "done" if any((self.folder / "clicks").glob(f"*/{scan.name}.json")) else scan.state

    def mask_path(self, case: str, reader: str) -> Path:
        """The path of a reader's mask."""
        return self.folder / "masks" / reader / f"{case}.nii.gz"

    def weights_path(self, name: str) -> Path:
        """The path of a project's model file."""
        return self.folder / "models" / f"{name}.safetensors"

    def models(self) -> list[LearnedModel]:
        """Every learned model, oldest first."""
        found = [read_record(path, LearnedModel) for path in (self.folder / "models").glob("[!.]*.json")]
        return sorted(found, key=lambda model: model.made)

    @property
    def learning(self) -> Path:
        """The folder in which an unfinished training keeps its work."""
        return self.folder / ".learning"

    @property
    def order(self) -> str:
        """The order of the work in words."""
        model = self.settings.first_look
        return f"the scan that {model} is least sure of first" if model else "as listed"

    def upcoming(self, reader: str = READER, after: str | None = None) -> list[str]:
        """The scans to work on, in order: those this reader has begun, then those to do, from the one after `after` on.

        After a first look, those to do are sorted by how sure the model is: least sure first, unseen ones last.
        """
        scans = self.scans
        names = [scan.name for scan in scans]
        first = names.index(self.scan(after).name) + 1 if after is not None else 0
        turn = {name: (n - first) % len(names) for n, name in enumerate(names)}
        looked = bool(self.settings.first_look)
        sure = {scan.name: 1.0 if scan.sure is None or not looked else scan.sure for scan in scans}
        open_ones = [scan for scan in scans if self.state(scan) in ("to do", "in work")]
        begun = [scan.name for scan in open_ones if scan.state == "in work" and scan.reader == reader]
        free = [scan.name for scan in open_ones if scan.state == "to do"]
        order = sorted(free, key=lambda name: (sure[name], turn[name]))
        return [*(name for name in begun if name != after), *order]

    def previous(self, reader: str = READER, before: str | None = None) -> str | None:
        """The scan that this reader did or skipped last, or the one before `before`; None if there is none."""
        scans = self.scans
        found = [(scan.since, scan.name) for scan in scans if (scan.state, scan.reader) == ("skipped", reader)]
        for scan in scans:
            if reading := self.readings(scan.name).get(reader):
                found.append((reading.finished, scan.name))
        names = [name for _, name in sorted(found)]
        earlier = names[: names.index(before)] if before in names else names
        return earlier[-1] if earlier else None

    def history(self) -> list[dict[str, Any]]:
        """The events in order, each with `when` and `what`."""
        return read_lines(self.folder / "history.jsonl")

    # Who is at work

    def learning_now(self) -> dict[str, Any] | None:
        """The progress of the learning that is running: its `stage`, `step` of `steps`; None if none is."""
        try:
            with FileLock(self.folder / LEARNING_LOCK, timeout=0):
                return None
        except Timeout:
            found = read_lines(self.learning / "progress.json")
            return found[0] if found else {}

    def touch_busy(self) -> None:
        """Signal that somebody is clicking: learning pauses for some seconds."""
        (self.folder / ".busy").touch()

    def is_busy(self) -> bool:
        """Whether somebody clicked in the last seconds."""
        try:
            return time.time() - (self.folder / ".busy").stat().st_mtime < QUIET_S
        except OSError:
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the project for writing, after completing what a killed process had begun. Reentrant.

        Raises FileError if another process holds the lock for a minute, or files cannot be written.
        """
        try:
            with self._lock:
                if self._lock.lock_counter == 1:
                    for folder in (self.folder, self.folder / "thumbnails", self.folder / "models"):
                        remove_leftovers(folder)
                    self._finish_pending()
                yield
        except Timeout as error:
            given = f"{self.folder}, which another process has been writing for {WAIT_S:.0f} s"
            raise FileError(given, "a project that is free", "wait, or end that process") from error
        except OSError as error:
            given = f"{self.folder} could not be written ({error.strerror or error})"
            raise FileError(given, "a folder that takes files", "check its permissions and free space") from error

    # Writing, under the lock

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock", timeout=WAIT_S)

    def _log(self, what: str, **facts: Any) -> None:
        append_line(self.folder / "history.jsonl", {"when": now(), "what": what, **facts})

    def _save_settings(self, **changes: Any) -> None:
        write_record(self.folder / "project.json", self.settings.model_copy(update=changes))

    def _save_scans(self, scans: Sequence[Scan]) -> None:
        write_record(self.folder / "scans.json", Scans(scans=tuple(scans)))

    def _change(self, case: str, **changes: Any) -> None:
        changed = self.scan(case).model_copy(update=changes)
        self._save_scans([changed if scan.name == case else scan for scan in self.scans])

    def _save_model(self, model: LearnedModel) -> None:
        write_record(self.folder / "models" / f"{model.name}.json", model)

    def _keep(self, reading: Reading, mask: Volume, picture: bytes) -> None:
        """Assemble a reading and move it into place."""
        with self.locked():
            self.scan(reading.case)  # it may have been forgotten while the work was under way
            pending = self.folder / ".pending"
            make_folder(pending)
            write_mask(mask, pending / "mask.nii.gz")
            (pending / "thumbnail.png").write_bytes(picture)
            write_record(pending / "record.json", reading)  # from now on it counts
            self._finish_pending()

    def _finish_pending(self) -> None:
        """Move a reading whose record was written into place; an incomplete one is removed."""
        pending = self.folder / ".pending"
        if not pending.is_dir():
            return
        if (pending / "record.json").is_file():
            reading = read_record(pending / "record.json", Reading)
            case, reader = reading.case, reading.reader
            self._move("mask.nii.gz", self.mask_path(case, reader))
            self._move("thumbnail.png", self.folder / "thumbnails" / f"{case}.png")
            facts: dict[str, Any] = {"when": reading.finished, "what": "done", "case": case, "reader": reader}
            if not any(facts.items() <= line.items() for line in self.history()[-3:]):
                facts |= {"clicks": len(reading.clicks), "model": reading.model}
                append_line(self.folder / "history.jsonl", facts)
            self._move("record.json", self.folder / "clicks" / reader / f"{case}.json")
        shutil.rmtree(pending)

    def _move(self, name: str, target: Path) -> None:
        """Move a file out of .pending/, unless it was moved before a crash."""
        make_folder(target.parent)
        if (self.folder / ".pending" / name).is_file():
            os.replace(self.folder / ".pending" / name, target)
