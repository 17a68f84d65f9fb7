"""Project: who works on which scan, what is done, which model is in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from voxsam.atomic import atomic_path, make_folder
from voxsam.batch.listing import list_cohort
from voxsam.errors import FileError, GeometryError, ImageError, InputError, UnsupportedError
from voxsam.io import read_volume
from voxsam.project.folder import ProjectFolder
from voxsam.project.records import (
    READER,
    Click,
    LearnedModel,
    Reading,
    Scan,
    Scans,
    Settings,
    append_line,
    check_name,
    now,
    write_record,
)
from voxsam.prompts import Point
from voxsam.seen import content
from voxsam.volume import Volume

START = "voxsam-tiny"
ReportProgress = Callable[[str, float | None], None]
NAMES_PARTS = "__"  # joins the folders of a path to a scan's name


class Project(ProjectFolder):
    """An open project: its folder, and what readers and models do in it.

    Raises FileError for a folder that is not a project, and if another process holds the lock for a minute.
    """

    @classmethod
    def new(
        cls,
        folder: str | os.PathLike[str],
        scans: str | os.PathLike[str] | None = None,
        start: str = START,
        progress: ReportProgress = lambda stage, fraction: None,
    ) -> Project:
        """Make a project, with the scans of a folder or a CSV table (see `add`).

        `start` is the model used at first, from which every training begins: a name, or a file, which is copied.
        Raises FileError for a folder that is not empty, CheckpointError for a start that is not a model.
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

    def read(self, case: str) -> Volume:
        """Read a scan. Raises FileError if it was moved, ImageError if it is not the one that was added."""
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
        """Add the scans in and below a folder, or of a CSV table with a column `scan`, by reference: nothing is copied.

        Each is read once, for its digest and thumbnail. The path of a known scan is updated. Returns the names of the
        new ones, and why others were left out. Raises FileError for a source without scans.
        """
        from voxsam.report.figures import thumbnail

        jobs = list_cohort(Path(source), self.folder, clicks=False)
        added, left_out = [], {}
        for number, job in enumerate(jobs):
            progress("reading the scans", number / len(jobs))
            path, name = job.images[0].absolute(), job.name.replace("/", NAMES_PARTS).removesuffix("_0000")
            try:
                check_name("scan", name)
                if len(job.images) > 1:
                    given = f"{name} with several images"
                    raise UnsupportedError(given, "one image a scan", "list the first one alone")
                volume = read_volume(path)
                picture = thumbnail(volume)
            except InputError as error:
                left_out[job.name] = str(error)
                continue
            taken = self._list(name, path, volume, picture)
            if taken == "new":
                added.append(name)
            elif taken == "other":
                left_out[job.name] = f"another scan is called {name}"
        with self.locked():
            self._log("add", scans=len(added))
        return tuple(added), left_out

    def _list(self, name: str, path: Path, volume: Volume, picture: bytes) -> Literal["new", "known", "other"]:
        """Add a scan to the list, or update the path of a known one; not if another scan has its name."""
        inside = path.is_relative_to(self.folder)
        shown = path.relative_to(self.folder).as_posix() if inside else str(path)
        new = Scan(name=name, path=shown, content=content(volume), modality=volume.modality)
        with self.locked():
            scans = self.scans
            if same := [scan.name for scan in scans if scan.content == new.content]:
                self._change(same[0], path=shown)
                return "known"
            if any(scan.name.lower() == name.lower() for scan in scans):
                return "other"
            with atomic_path(self.folder / "thumbnails" / f"{name}.png") as temporary:
                temporary.write_bytes(picture)
            self._save_scans([*scans, new])
            return "new"

    # Work

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
        """Save a scan's mask (uint8, labels 1..n, on the scan's grid) and clicks, replacing this reader's earlier ones.

        `model` is the one that the clicks went to, by default the one in use; a `scan` that is given need not be read.
        Raises GeometryError for another grid, ImageError for an empty mask, PromptError for a click outside the scan.
        """
        from voxsam.report.figures import thumbnail

        check_name("reader", reader)
        known, volume = self.scan(case), self.read(case) if scan is None else scan
        if not mask.grid.close_to(volume.grid):
            raise GeometryError(f"a mask on {mask.grid}", f"the grid of {case}, {volume.grid}", "resample the mask")
        if not mask.array.any():
            raise ImageError(f"an empty mask of {case}", "voxels of a tumour", "skip the scan if it has none")
        for click in clicks:
            click.points(volume.grid)
        reading = Reading(
            case=case,
            reader=reader,
            finished=now(),
            clicks=tuple(Click.of(click) for click in clicks),
            model=(model or self.in_use) if source == "clicks" else "",
            seconds=seconds,
            volume_ml=round(mask.volume_ml, 4),
            content=known.content,
            source=source,
        )
        self._keep(reading, mask.with_array(mask.array.astype(np.uint8)), thumbnail(volume, mask))
        return reading

    def next(self, reader: str = READER, after: str | None = None) -> str | None:
        """Take the first of `upcoming` into this reader's work and return it; None if nothing is left."""
        with self.locked():
            chosen = next(iter(self.upcoming(reader, after)), None)
            if chosen is not None:
                self._set(chosen, "in work", reader)
            return chosen

    def take(self, case: str, reader: str = READER) -> None:
        """Take a scan into this reader's work. Raises InputError if another reader is working on it."""
        with self.locked():
            self._set(case, "in work", reader)

    def skip(self, case: str, reader: str = READER) -> None:
        """Leave a scan out of the work until `release`. Raises InputError if another reader is working on it."""
        with self.locked():
            self._set(case, "skipped", reader)
            self._log("skip", case=case, reader=reader)

    def order_by(self, first_look: str) -> None:
        """Order scans by how sure the model of this name is of them (`keep_look`), least sure first; "": as listed.

        Values recorded for another model are discarded.
        """
        with self.locked():
            if first_look != self.settings.first_look:
                self._save_scans([scan.model_copy(update={"sure": None}) for scan in self.scans])
                self._save_settings(first_look=first_look)
                self._log("order", by=first_look or "the list")

    def keep_look(self, case: str, sure: float) -> None:
        """Record how sure (0 to 1) the model of the first look is of a scan. Raises InputError for an unknown name."""
        with self.locked():
            self._change(case, sure=sure)

    def release(self, case: str) -> None:
        """Put a scan that is in work or skipped back on the list of those to do."""
        with self.locked():
            self._set(case, "to do", "")

    def forget(self, case: str) -> tuple[str, ...]:
        """Delete a case: masks, clicks, thumbnail and its lines in the history; the scan's own file stays where it is.

        The weights of every model trained on it are deleted too, and the model is retired. Returns the names of these
        models. If interrupted, it can be called again and continues.
        """
        with self.locked():
            self.scan(case)
            retired = []
            for model in self.models():
                changed = model.without(case)
                if changed.state != model.state:  # it was trained on the case
                    retired.append(model.name)
                    self.weights_path(model.name).unlink(missing_ok=True)
                    if model.name in self.settings.used:
                        self._save_settings(used=tuple(name for name in self.settings.used if name != model.name))
                if changed != model:  # last: until then, another call does all of it again
                    self._save_model(changed)
            shutil.rmtree(self.learning, ignore_errors=True)  # an unfinished training has seen the case too
            for kind in ("masks/*/{}.nii.gz", "clicks/*/{}.json", "thumbnails/{}.png"):
                for path in self.folder.glob(kind.format(case)):
                    path.unlink()
            kept = [line for line in self.history() if line.get("case") != case]
            with atomic_path(self.folder / "history.jsonl") as temporary:
                for line in kept:
                    append_line(temporary, line)
            self._log("forget", retired=retired)
            self._save_scans([scan for scan in self.scans if scan.name != case])
        return tuple(retired)

    # Models

    @property
    def in_use(self) -> str:
        """The name of the model that clicks go to."""
        settings = self.settings
        return settings.used[-1] if settings.used else settings.start

    def model_source(self, name: str | None = None) -> str:
        """The name or path that `load_model` takes for a model of the project, by default the one in use."""
        name = self.in_use if name is None else name
        path = self.weights_path(name)
        return str(path) if path.is_file() else name

    def keep_model(self, model: LearnedModel, weights: Path | None) -> None:
        """Add a learned model, copying its file; `weights` is None if it was refused before there were any.

        Raises InputError if one of its cases has been forgotten since.
        """
        with self.locked():
            contents = {scan.name: scan.content for scan in self.scans}
            gone = [case for case, known in model.cases.items() if contents.get(case) != known]
            if gone:
                given = f"{len(gone)} of the cases of {model.name} forgotten while it learned"
                raise InputError(given, "cases that are there", "let it learn again")
            if weights is not None:
                with atomic_path(self.weights_path(model.name)) as temporary:
                    shutil.copyfile(weights, temporary)
            self._save_model(model)
            self._log("learned", model=model.name, state=model.state, gate=str(model.gate))

    def check_model(self, name: str) -> None:
        """Raises InputError unless the name is the start model or a learned model that still exists."""
        start, models = self.settings.start, {model.name: model for model in self.models()}
        able = [known for known in models if self.weights_path(known).is_file()]
        if name not in (start, *able):
            reason = models[name].reason or "which was no better and is not kept" if name in models else ""
            given = f"the model {name}{', ' if reason else ''}{reason}"
            raise InputError(given, f"one of {', '.join([start, *able])}", "choose one of them")

    def use(self, name: str) -> None:
        """Switch to a learned model, or to the start model. Raises InputError for one that no longer exists."""
        with self.locked():
            self.check_model(name)
            if name != self.in_use:
                self._save_settings(used=(*self.settings.used, name))
                self._log("use", model=name)

    def back(self) -> str:
        """Switch back to the model that was used before. Raises InputError if there was none."""
        with self.locked():
            used = self.settings.used
            if not used:
                raise InputError("no model before this one", "a learned model in use", "see `voxsam project status`")
            self._save_settings(used=used[:-1])
            self._log("back", model=self.in_use)
            return self.in_use

    def set_learn_every(self, scans: int) -> None:
        """Set after how many more finished scans a server begins to learn; 0: only when told to."""
        with self.locked():
            self._save_settings(learn_every=scans)

    def _set(self, case: str, state: str, reader: str) -> None:
        scan = self.scan(case)
        busy = scan.state == "in work" and scan.reader != reader and self.state(scan) != "done"
        if busy and state != "to do":
            raise InputError(f"{case}, on which {scan.reader} works", "a scan that is free", "take another one")
        if reader:
            check_name("reader", reader)
        self._change(case, state=state, reader=reader, since=now())
