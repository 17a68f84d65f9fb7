"""Project: the folder itself. Who works on which scan, what is done, which model is in use; everything as plain files.

PROJECT/
  project.json               Settings: the start model, the models taken into use
  scans.json                 Scans: where each scan lies, a digest of its voxels, who works on it
  masks/READER/CASE.nii.gz   on the scan's grid: 0, and a number for each object
  clicks/READER/CASE.json    a Reading; written after its mask: where it is, the work is done
  thumbnails/CASE.png
  models/NAME.safetensors    learned models, and a start model that is a file; NAME.json: a LearnedModel
  history.jsonl              a line for each thing that happened

Whoever writes holds the lock. A reading (mask, clicks, thumbnail) is put together in .pending/ and counts from the
moment its record is there: who takes the lock next moves it to its place, whatever was killed in between.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from voxsam.atomic import atomic_path, make_folder, remove_leftovers
from voxsam.batch.listing import list_cohort
from voxsam.errors import FileError, GeometryError, ImageError, InputError, UnsupportedError
from voxsam.io import read_volume, write_mask
from voxsam.project.order import upcoming
from voxsam.project.records import (
    FORMAT,
    READER,
    Click,
    LearnedModel,
    Reading,
    Scan,
    Scans,
    Settings,
    State,
    append_line,
    check_name,
    now,
    read_lines,
    read_record,
    write_record,
)
from voxsam.prompts import Point
from voxsam.seen import content
from voxsam.volume import Volume

WAIT_S = 60.0  # for the lock
LEARNING_LOCK = ".learning.lock"  # held by a learning that runs
QUIET_S = 10.0  # after a click, until learning goes on
START = "voxsam-tiny"
ReportProgress = Callable[[str, float | None], None]
NAMES_PARTS = "__"  # between the folders of a scan's name


class Project:
    """A project's folder, open. Several processes may have it open; each look reads what is there now.

    Raises FileError for a folder that is none, and where another process holds the lock for a minute.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        if not (self.folder / "project.json").is_file():
            raise FileError(
                f"{folder}: no project.json", "a project", "make one: `voxsam project new FOLDER --scans DIR`"
            )
        found = self.settings.format_version
        if found > FORMAT:
            raise FileError(f"{folder}: a project of format {found}", f"at most {FORMAT}", "install a newer VoxSAM")

    @classmethod
    def new(
        cls,
        folder: str | os.PathLike[str],
        scans: str | os.PathLike[str] | None = None,
        start: str = START,
        progress: ReportProgress = lambda stage, fraction: None,
    ) -> Project:
        """Make a project, with the scans of a folder or a CSV table (see `add`).

        `start` is the model that is used and that every training begins with: a name, or a file, which is copied.
        Raises FileError for a folder that is not empty, CheckpointError for a start that is no model.
        """
        from voxsam.weights.file import read_card
        from voxsam.weights.registry import find_model

        path, source = Path(folder), find_model(start)
        if scans is not None:
            list_cohort(Path(scans), path, clicks=False)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileError(f"{path} is there already", "a new or an empty folder", "choose another one")
        read_card(source)
        name = start if source != Path(start).expanduser() else check_name("model", source.stem)
        for part in ("masks", "clicks", "thumbnails", "models"):
            make_folder(path / part)
        if name != start:
            with atomic_path(path / "models" / f"{name}.safetensors") as temporary:
                shutil.copyfile(source, temporary)
        write_record(path / "scans.json", Scans())
        write_record(path / "project.json", Settings(created=now(), start=name))  # last: now it is a project
        project = cls(path)
        with project.locked():
            project._log("new", start=name)
        if scans is not None:
            project.add(scans, progress)
        return project

    # Scans

    @property
    def settings(self) -> Settings:
        """What project.json holds."""
        return read_record(self.folder / "project.json", Settings)

    @property
    def scans(self) -> tuple[Scan, ...]:
        """All scans, in the order in which they were added."""
        return read_record(self.folder / "scans.json", Scans).scans

    def scan(self, case: str) -> Scan:
        """One of them. Raises InputError for a name that none has."""
        found = {scan.name: scan for scan in self.scans}
        if case not in found:
            known = ", ".join(list(found)[:5]) + (", ..." if len(found) > 5 else "")
            raise InputError(f"the scan {case}", f"one of {known or 'none yet'}", "see `voxsam project status`")
        return found[case]

    def path_of(self, scan: Scan) -> Path:
        """Where its file, or the folder of its series, lies."""
        return self.folder / scan.path  # an absolute path stays as it is

    def read(self, case: str) -> Volume:
        """The scan's voxels. Raises FileError if it was moved, ImageError if it is another one than was added."""
        scan = self.scan(case)
        if not self.path_of(scan).exists():
            remedy = "add the folder that it lies in now: it is known again by its voxels"
            raise FileError(f"{self.path_of(scan)} is gone", f"the scan {case}", remedy)
        volume = read_volume(self.path_of(scan))
        if content(volume) != scan.content:
            given = f"{self.path_of(scan)} has other voxels than when it was added as {case}"
            raise ImageError(given, "the same scan", "put the file back, or forget the case and add it anew")
        return volume

    def add(
        self, source: str | os.PathLike[str], progress: ReportProgress = lambda stage, fraction: None
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Add the scans in and below a folder, or of a CSV table with a column `scan`; by reference, nothing is copied.

        Each is read once, for its digest and thumbnail. A scan that is known has its path renewed. Returns the names of
        those that are new, and why others were left out. Raises FileError for a source without scans.
        """
        from voxsam.report.figures import thumbnail

        jobs = list_cohort(Path(source), self.folder, clicks=False)
        added, left_out = [], {}
        for number, job in enumerate(jobs):
            progress("reading the scans", number / len(jobs))
            path = job.images[0].absolute()
            name = job.name.replace("/", NAMES_PARTS).removesuffix("_0000")
            try:
                check_name("scan", name)
                if len(job.images) > 1:
                    raise UnsupportedError(
                        f"{name} with several images", "one image a scan", "list the first one alone"
                    )
                volume = read_volume(path)
                known = content(volume)
                picture = thumbnail(volume)
            except InputError as error:
                left_out[job.name] = str(error)
                continue
            inside = path.is_relative_to(self.folder)
            shown = path.relative_to(self.folder).as_posix() if inside else str(path)
            with self.locked():
                scans = self.scans
                same = next((scan for scan in scans if scan.content == known), None)
                if same is not None:
                    self._replace(same.model_copy(update={"path": shown}))
                elif any(scan.name.lower() == name.lower() for scan in scans):
                    left_out[job.name] = f"another scan is called {name}"
                else:
                    new = Scan(name=name, path=shown, content=known, modality=volume.modality)
                    with atomic_path(self.folder / "thumbnails" / f"{name}.png") as temporary:
                        temporary.write_bytes(picture)
                    write_record(self.folder / "scans.json", Scans(scans=(*scans, new)))
                    added.append(name)
        with self.locked():
            self._log("add", scans=len(added))
        return tuple(added), left_out

    # Work

    def readings(self, case: str) -> dict[str, Reading]:
        """Who has done the scan: by reader, the latest last."""
        found = [read_record(path, Reading) for path in (self.folder / "clicks").glob(f"*/{case}.json")]
        return {reading.reader: reading for reading in sorted(found, key=lambda reading: reading.finished)}

    def done_cases(self) -> dict[str, Reading]:
        """The latest reading of each scan that has one, in the order in which they were finished."""
        found = [list(readings.values())[-1] for scan in self.scans if (readings := self.readings(scan.name))]
        return {reading.case: reading for reading in sorted(found, key=lambda reading: reading.finished)}

    def state(self, scan: Scan) -> State:
        """Done, once somebody has done it."""
        return "done" if any((self.folder / "clicks").glob(f"*/{scan.name}.json")) else scan.state

    def mask_path(self, case: str, reader: str) -> Path:
        """Where a reader's mask lies."""
        return self.folder / "masks" / reader / f"{case}.nii.gz"

    def done(
        self,
        case: str,
        mask: Volume,
        clicks: Sequence[Point] = (),
        *,
        reader: str = READER,
        seconds: float | None = None,
        model: str | None = None,
        source: Literal["clicks", "import"] = "clicks",
        scan: Volume | None = None,
    ) -> Reading:
        """Keep a scan's mask (uint8, labels 1..n, on the scan's grid) and clicks; what this reader had is replaced.

        `model` is the one that was clicked, by default that in use; `scan`, where the caller has it, need not be read.
        Raises GeometryError for another grid, ImageError for an empty mask, PromptError for a click beside the scan.
        """
        check_name("reader", reader)
        known, volume = self.scan(case), self.read(case) if scan is None else scan
        if not mask.grid.close_to(volume.grid):
            raise GeometryError(f"a mask on {mask.grid}", f"the grid of {case}, {volume.grid}", "resample the mask")
        if not mask.array.any():
            raise ImageError(f"an empty mask of {case}", "voxels of a tumour", "skip the scan if it has none")
        kept: list[Click] = []
        for click in clicks:
            click.points(volume.grid)
            x, y, z = (round(float(mm), 3) for mm in click.world_mm)
            kept.append(Click(world_mm=(x, y, z), positive=click.positive))
        reading = Reading.model_validate(
            {
                **{"case": case, "reader": reader, "finished": now(), "clicks": kept, "seconds": seconds},
                **{"model": (model or self.in_use) if source == "clicks" else "", "source": source},
                **{"volume_ml": round(mask.volume_ml, 4), "content": known.content},
            }
        )
        self._keep(reading, mask.with_array(mask.array.astype(np.uint8)), volume)
        return reading

    def next(self, reader: str = READER, after: str | None = None) -> str | None:
        """The scan to work on: the one that this reader has begun, else the first that is to do after `after`.

        Where a model has looked first, not the first but the one that it is least sure of.

        It is then in this reader's work. None: nothing is left.
        """
        with self.locked():
            chosen = next(iter(upcoming(self, reader, after)), None)
            if chosen is not None:
                self._set(chosen, "in work", reader)
            return chosen

    def take(self, case: str, reader: str = READER) -> None:
        """Begin with a scan. Raises InputError if another reader works on it."""
        with self.locked():
            self._check_free(case, reader)
            self._set(case, "in work", reader)

    def skip(self, case: str, reader: str = READER) -> None:
        """Leave a scan out of the work, until `release`. Raises InputError if another reader works on it."""
        with self.locked():
            self._check_free(case, reader)
            self._set(case, "skipped", reader)
            self._log("skip", case=case, reader=reader)

    def order_by(self, first_look: str) -> None:
        """Give scans by how sure the model of this name is of them (`keep_look`), the least sure first; "": as listed.

        What another model was sure of is forgotten.
        """
        with self.locked():
            if first_look != self.settings.first_look:
                scans = tuple(scan.model_copy(update={"sure": None}) for scan in self.scans)
                write_record(self.folder / "scans.json", Scans(scans=scans))
                write_record(self.folder / "project.json", self.settings.model_copy(update={"first_look": first_look}))
                self._log("order", by=first_look or "the list")

    def keep_look(self, case: str, sure: float) -> None:
        """Note how sure (0 to 1) the model of the first look is of a scan. Raises InputError for an unknown name."""
        with self.locked():
            self._replace(self.scan(case).model_copy(update={"sure": sure}))

    def release(self, case: str) -> None:
        """Put a scan that is in work or skipped back among those to do."""
        with self.locked():
            self._set(case, "to do", "")

    def forget(self, case: str) -> tuple[str, ...]:
        """Delete a case: masks, clicks, thumbnail, its lines of the history; the scan's own file stays where it is.

        The weights of every model that was trained on it are deleted, too, and the model is retired. Returns their
        names. Called again after it was cut off, it goes on.
        """
        with self.locked():
            scan = self.scan(case)
            retired = []
            for model in self.models():
                if case in model.cases and model.state != "retired":
                    retired.append(model.name)
                self._without(model, case)
            shutil.rmtree(self.learning, ignore_errors=True)  # half a training knows the case as well
            for kind in ("masks/*/{}.nii.gz", "clicks/*/{}.json", "thumbnails/{}.png"):
                for path in self.folder.glob(kind.format(case)):
                    path.unlink()
            kept = [line for line in self.history() if line.get("case") != case]
            with atomic_path(self.folder / "history.jsonl") as temporary:
                for line in kept:
                    append_line(temporary, line)
            self._log("forget", retired=retired)
            others = tuple(other for other in self.scans if other.name != scan.name)
            write_record(self.folder / "scans.json", Scans(scans=others))
        return tuple(retired)

    # Models

    @property
    def learning(self) -> Path:
        """Where a training that is not finished keeps its work."""
        return self.folder / ".learning"

    @property
    def in_use(self) -> str:
        """The name of the model that clicks go to."""
        settings = self.settings
        return settings.used[-1] if settings.used else settings.start

    def model_source(self, name: str | None = None) -> str:
        """What `load_model` takes for a model of the project, or for the one in use."""
        name = self.in_use if name is None else name
        path = self.folder / "models" / f"{name}.safetensors"
        return str(path) if path.is_file() else name

    def models(self) -> list[LearnedModel]:
        """Every learned model, the oldest first."""
        found = [read_record(path, LearnedModel) for path in (self.folder / "models").glob("[!.]*.json")]
        return sorted(found, key=lambda model: model.made)

    def keep_model(self, model: LearnedModel, weights: Path | None) -> None:
        """Add a learned model; its file is copied. `weights` None: it was refused before it was made.

        Raises InputError if a case of it was forgotten since.
        """
        with self.locked():
            contents = {scan.name: scan.content for scan in self.scans}
            gone = [case for case, known in model.cases.items() if contents.get(case) != known]
            if gone:
                given = f"{len(gone)} of the cases of {model.name} forgotten while it learned"
                raise InputError(given, "cases that are there", "let it learn again")
            if weights is not None:
                with atomic_path(self.folder / "models" / f"{model.name}.safetensors") as temporary:
                    shutil.copyfile(weights, temporary)
            write_record(self.folder / "models" / f"{model.name}.json", model)
            self._log("learned", model=model.name, state=model.state, gate=str(model.gate))

    def check_model(self, name: str) -> None:
        """Raises InputError for what is neither the start model nor a learned one that is there still."""
        start, models = self.settings.start, {model.name: model for model in self.models()}
        able = [known for known in models if (self.folder / "models" / f"{known}.safetensors").is_file()]
        if name not in (start, *able):
            reason = models[name].reason or "which was no better and is not kept" if name in models else ""
            given = f"the model {name}{', ' if reason else ''}{reason}"
            raise InputError(given, f"one of {', '.join([start, *able])}", "choose one of them")

    def use(self, name: str) -> None:
        """Take a learned model, or the start model, into use. Raises InputError for one that is not there any more."""
        with self.locked():
            self.check_model(name)
            settings = self.settings
            if name != self.in_use:
                used = (*settings.used, name)
                write_record(self.folder / "project.json", settings.model_copy(update={"used": used}))
                self._log("use", model=name)

    def back(self) -> str:
        """Use the model again that was used before. Raises InputError if there was none."""
        with self.locked():
            settings = self.settings
            if not settings.used:
                raise InputError("no model before this one", "a learned model in use", "see `voxsam project status`")
            write_record(self.folder / "project.json", settings.model_copy(update={"used": settings.used[:-1]}))
            self._log("back", model=self.in_use)
            return self.in_use

    # History, and who is at work

    def history(self) -> list[dict[str, Any]]:
        """What happened, in order: each with `when` and `what`."""
        return read_lines(self.folder / "history.jsonl")

    def learning_now(self) -> dict[str, Any] | None:
        """What a learning that runs now is at: its `stage`, `step` of `steps`; None if none runs."""
        try:
            with FileLock(self.folder / LEARNING_LOCK, timeout=0):
                return None
        except Timeout:
            found = read_lines(self.learning / "progress.json")
            return found[0] if found else {}

    def set_learn_every(self, scans: int) -> None:
        """After how many more scans that are done a server begins to learn; 0: when it is told to."""
        with self.locked():
            write_record(self.folder / "project.json", self.settings.model_copy(update={"learn_every": scans}))

    def touch_busy(self) -> None:
        """Say that somebody clicks now: learning pauses for some seconds."""
        (self.folder / ".busy").touch()

    def is_busy(self) -> bool:
        """Whether somebody clicked in the last seconds."""
        try:
            return time.time() - (self.folder / ".busy").stat().st_mtime < QUIET_S
        except OSError:
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes meanwhile; what a killed process had begun is ended first. May be entered again.

        Raises FileError if another process holds the lock for a minute, or the folder or the disk takes no file.
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

    # Behind it

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock", timeout=WAIT_S)

    def _log(self, what: str, **facts: Any) -> None:
        append_line(self.folder / "history.jsonl", {"when": now(), "what": what, **facts})

    def _check_free(self, case: str, reader: str) -> None:
        scan = self.scan(case)
        if scan.state == "in work" and scan.reader != reader and self.state(scan) != "done":
            raise InputError(f"{case}, on which {scan.reader} works", "a scan that is free", "take another one")

    def _set(self, case: str, state: str, reader: str) -> None:
        if reader:
            check_name("reader", reader)
        self._replace(self.scan(case).model_copy(update={"state": state, "reader": reader, "since": now()}))

    def _replace(self, changed: Scan) -> None:
        scans = tuple(changed if scan.name == changed.name else scan for scan in self.scans)
        write_record(self.folder / "scans.json", Scans(scans=scans))

    def _keep(self, reading: Reading, mask: Volume, scan: Volume) -> None:
        from voxsam.report.figures import thumbnail

        picture = thumbnail(scan, mask)
        with self.locked():
            self.scan(reading.case)  # it may have been forgotten while the work was under way
            pending = self.folder / ".pending"
            make_folder(pending)
            write_mask(mask, pending / "mask.nii.gz")
            (pending / "thumbnail.png").write_bytes(picture)
            write_record(pending / "record.json", reading)  # from now on it counts
            self._finish_pending()

    def _finish_pending(self) -> None:
        """Move a reading whose record was written to its place; what is no whole reading is removed."""
        pending = self.folder / ".pending"
        if not pending.is_dir():
            return
        if (pending / "record.json").is_file():
            reading = read_record(pending / "record.json", Reading)
            record = self.folder / "clicks" / reading.reader / f"{reading.case}.json"
            targets = {
                "mask.nii.gz": self.mask_path(reading.case, reading.reader),
                "thumbnail.png": self.folder / "thumbnails" / f"{reading.case}.png",
            }
            for name, target in targets.items():
                make_folder(target.parent)
                if (pending / name).is_file():
                    os.replace(pending / name, target)
            facts = {"when": reading.finished, "what": "done", "case": reading.case, "reader": reading.reader}
            if not any(facts.items() <= line.items() for line in self.history()[-3:]):
                append_line(
                    self.folder / "history.jsonl", {**facts, "clicks": len(reading.clicks), "model": reading.model}
                )
            make_folder(record.parent)
            os.replace(pending / "record.json", record)
        shutil.rmtree(pending)

    def _without(self, model: LearnedModel, case: str) -> None:
        """Take a case out of what is known of a model; one that was trained on it is retired, its weights deleted."""
        trained = case in model.cases
        if not trained and case not in model.gate.after:
            return
        gate = model.gate.model_copy(
            update={k: {c: n for c, n in getattr(model.gate, k).items() if c != case} for k in ("before", "after")}
        )
        changed: dict[str, Any] = {"gate": gate, "cases": {c: d for c, d in model.cases.items() if c != case}}
        if trained and model.state != "retired":
            (self.folder / "models" / f"{model.name}.safetensors").unlink(missing_ok=True)
            changed |= {"state": "retired", "reason": "trained on a case that was forgotten"}
            settings = self.settings
            used = tuple(name for name in settings.used if name != model.name)
            if used != settings.used:
                write_record(self.folder / "project.json", settings.model_copy(update={"used": used}))
        write_record(self.folder / "models" / f"{model.name}.json", model.model_copy(update=changed))
