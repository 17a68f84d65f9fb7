"""The evaluation protocol: trials of simulated clicks on every case, each mask scored on the scan's own grid.

It knows systems (`systems.System`) and case folders, not VoxSAM's networks. A trial's 3 clicks begin with its 1 click,
so that numbers of clicks are compared in pairs. Every draw depends on the seed, the case's name, the lesion and the
trial only. A 2D system (`systems.OpenedPerSlice`) gets that many clicks in every axial slice that holds tumour.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from voxsam.atomic import atomic_path
from voxsam.errors import FileError, GeometryError, InputError, UnsupportedError
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.cases import Case
from voxsam.lab.data.parallel import ReportProgress
from voxsam.lab.evaluation.clicks import REGIONS, Click, ClickMaker, Region, clicks_in_slices, correction
from voxsam.lab.evaluation.scores import TOLERANCE_MM, Mask, Scores, components, score
from voxsam.lab.evaluation.systems import Opened, OpenedPerSlice, System
from voxsam.network.card import Card
from voxsam.prompts import Point
from voxsam.seen import Seen, listed
from voxsam.volume import Volume

RANDOM, CORRECTIVE, AUTOMATIC, PER_SLICE = "random", "corrective", "automatic", "per slice"


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings of an evaluation. Raises InputError for values out of range."""

    clicks: tuple[int, ...] = (1, 3, 10)  # numbers of random clicks that are scored
    trials: int = 10
    region: Region = "any"
    noise: float = 0.0  # fraction of the random clicks that miss the tumour
    corrective: int = 0  # most clicks of a corrective trial: one random click, then those of a simulated user; 0: none
    per_lesion: bool = False  # click and score every lesion by itself
    labels: tuple[int, ...] = ()  # label values that are tumour; empty: those of the case
    tolerance_mm: float = TOLERANCE_MM
    seed: int = 0
    voxel_nsd: bool = False  # also compute the NSD by voxels, not only by area

    def __post_init__(self) -> None:
        _require(bool(self.clicks) and min(self.clicks) >= 1, f"clicks {self.clicks}", "numbers from 1 on")
        _require(self.trials >= 1, f"{self.trials} trials", "one or more")
        _require(self.region in REGIONS, f"region {self.region!r}", f"one of {', '.join(REGIONS)}")
        _require(0 <= self.noise <= 1, f"noise {self.noise}", "a fraction from 0 to 1")
        _require(self.corrective >= 0, f"{self.corrective} corrective clicks", "0 for none, or more")
        _require(0 not in self.labels, "label 0", "labels of the tumour, which are not 0")
        _require(0 <= self.tolerance_mm < np.inf, f"tolerance {self.tolerance_mm} mm", "millimetres from 0 on")
        _require(self.seed >= 0, f"seed {self.seed}", "a whole number from 0 on")
        object.__setattr__(self, "clicks", tuple(sorted(set(self.clicks))))


@dataclass(frozen=True)
class ScoredMask:
    """One scored mask. `lesion` is 0 for the whole label; `seconds` vary from run to run and are ignored by ==."""

    case: str
    lesion: int
    kind: str  # random, corrective, automatic or per slice
    trial: int
    clicks: int  # in each slice if the kind is per slice
    scores: Scores
    points: tuple[Click, ...]  # the clicks that were given
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Evaluation:
    """The result: a row for each case, lesion, kind, trial and number of clicks; for each case skipped, the reason."""

    system: str
    dataset: str
    settings: EvaluationSettings
    rows: tuple[ScoredMask, ...]
    skipped: dict[str, str]
    parameters: int | None = None  # of the system
    overlap: dict[str, str] = field(default_factory=dict)  # cases it is known to have been trained on: how they match
    facts: dict[str, str] = field(default_factory=dict)  # more for the reader: licence, memory
    trained_on: str = ""  # what its card says about its training; "": it has no card
    checked: bool = False  # whether the card lists every scan of its training, so that an overlap would be found

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of the cases with rows, in order."""
        return tuple(dict.fromkeys(row.case for row in self.rows))


Watch = Callable[[ScoredMask, Volume], None]


def evaluate(
    system: System,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    dataset: str,
    progress: ReportProgress | None = None,
    watch: Watch | None = None,
) -> Evaluation:
    """Run every trial on every case. A case whose label is empty is skipped, unless the system needs no clicks.

    Each case is looked up among the training cases that the system's card lists (`voxsam.seen`); matches go to
    `overlap`. `watch` is called with each row and the mask that was scored, on the scan's grid; the mask is not kept.
    Raises what reading a case raises, GeometryError for a label or a mask on another grid, InputError without cases
    or if all are skipped, UnsupportedError for corrective clicks or single lesions with a system that takes no clicks.
    """
    _require(bool(cases), "no cases", "one or more")
    if not system.takes_clicks and (settings.corrective or settings.per_lesion):
        raise UnsupportedError(
            f"corrective clicks or single lesions with {system.name}", "a system that takes clicks", "leave them out"
        )
    rows: list[ScoredMask] = []
    skipped: dict[str, str] = {}
    overlap: dict[str, str] = {}
    card: Card | None = getattr(system, "card", None)
    seen = Seen(card.trained_on if card is not None else {})
    for number, case in enumerate(cases):
        if progress is not None:
            progress(f"case {number + 1} of {len(cases)}: {case.name}", number / len(cases))
        images, tumour = read_case(case, settings.labels)
        if system.takes_clicks and not tumour.any():
            skipped[case.name] = "its label is empty: there is nothing to click on"
        else:
            lesions = read_lesions(case, tumour) if settings.per_lesion else None
            if words := seen.find(case.name, images[0]):
                overlap[case.name] = words
            rows += evaluate_scan(system, case.name, images, tumour, settings, watch, lesions)
    _require(bool(rows), f"{len(cases)} cases with empty labels", "tumours to click on")
    return Evaluation(
        system.name,
        dataset,
        settings,
        tuple(rows),
        skipped,
        system.parameters,
        overlap,
        trained_on="" if card is None else says(card),
        checked=card is not None and lists_all(card),
    )


def lists_all(card: Card) -> bool:
    """Whether a card lists the training scans of each of its sources."""
    return bool(card.trained_on) and all(card.trained_on.values())


def says(card: Card) -> str:
    """What a card says about its network's training, for readers who ask whether it has seen the test cases."""
    if lists_all(card):
        return f"trained on {listed(card.trained_on)}"
    data = card.description.get("data", "").rstrip(".")
    known = f", and lists {listed(card.trained_on)}" if card.trained_on else ""
    return (
        "which scans it was trained on cannot be looked up in its file, so an overlap may go unnoticed; its card says: "
        f"{data or 'nothing'}{known}"
    )


def read_case(case: Case, labels: Sequence[int] = ()) -> tuple[tuple[Volume, ...], Mask]:
    """The image channels and the tumour mask (i, j, k), on the grid of the first channel.

    `labels` are the values that are tumour; empty: those of the case. Raises GeometryError for a channel or a label on
    another grid.
    """
    images = tuple(channel for path in case.images for channel in read_channels(path))
    label = read_volume(case.label, labels=True, scan=images[0])
    for what, other in (*(("a channel", image) for image in images[1:]), ("a label", label)):
        if not other.grid.close_to(images[0].grid):
            given, expected = f"{case.name}: {what} on {other.grid}", f"the scan's {images[0].grid}"
            raise GeometryError(given, expected, f"resample the {what[2:]}")
    return images, case.choice.of(labels)(label.array)


def read_lesions(case: Case, tumour: Mask) -> NDArray[np.int32] | None:
    """The lesion number of each tumour voxel, from 1 on, as given by labelsInstances beside labelsTr.

    None if there is no such file; a lesion is then a connected component. Raises GeometryError for another shape,
    InputError for tumour that the file does not number.
    """
    path = case.label.parent.parent / "labelsInstances" / case.label.name
    if case.label.parent.name != "labelsTr" or not path.is_file():
        return None
    found = read_volume(path, labels=True).array
    if found.shape != tumour.shape:
        raise GeometryError(f"{path}: shape {found.shape}", f"the label's, {tumour.shape}", "number its lesions again")
    numbered = np.where(tumour, found, 0).astype(np.int32)
    _require(bool((numbered[tumour] > 0).all()), f"{path}: tumour without a number", "one for each of its voxels")
    return numbered


def evaluate_scan(
    system: System,
    name: str,
    images: Sequence[Volume],
    tumour: Mask,
    settings: EvaluationSettings,
    watch: Watch | None = None,
    lesions: NDArray[np.int32] | None = None,
) -> Iterator[ScoredMask]:
    """The rows of one scan with one or more channels; `tumour` (i, j, k) must not be empty if the system takes clicks.

    `lesions` numbers the lesions of the tumour; None: they are its connected components.
    """
    opened = open_images(system, images, tumour)
    whole = _Target(name, images[0], opened, settings, system.takes_negative, watch, tumour, tumour)
    if not system.takes_clicks:
        yield whole.row(AUTOMATIC, 0, ())[0]
    elif isinstance(opened, OpenedPerSlice):
        _require_plain(settings, system.name)
        yield from whole.slices()
    elif settings.per_lesion:
        numbered = components(tumour)[0] if lesions is None else lesions
        for lesion in np.unique(numbered[numbered > 0]).tolist():
            yield from replace(whole, target=numbered == lesion, lesion=lesion).trials()
    else:
        yield from whole.trials()


def open_images(system: System, images: Sequence[Volume], tumour: Mask) -> Opened:
    """Open a scan with a system: a single channel as one volume, several as a sequence.

    `tumour` (i, j, k) is shown only to a per-slice system, which may choose among its masks as an oracle would.
    """
    opened = system.open(images[0] if len(images) == 1 else tuple(images))
    if isinstance(opened, OpenedPerSlice):
        opened.show_truth(images[0].with_array(tumour.astype(np.uint8), "SEG"))
    return opened


@dataclass(frozen=True)
class _Target:
    """What is clicked in one opened scan, and how."""

    name: str
    scan: Volume
    opened: Opened
    settings: EvaluationSettings
    negative: bool
    watch: Watch | None
    tumour: Mask
    target: Mask  # the whole tumour, or a lesion of it
    lesion: int = 0  # its number; 0: the whole tumour

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        return self.scan.grid.spacing_mm

    def trials(self) -> Iterator[ScoredMask]:
        """All trials of a system that is clicked in the volume."""
        settings = self.settings
        maker = ClickMaker(self.target, self.spacing_mm, settings.region, settings.noise)
        for trial in range(settings.trials):
            clicks = maker.draw(settings.clicks[-1], settings.seed, self.name, self.lesion, trial)
            for count in settings.clicks:
                yield self.row(RANDOM, trial, tuple(clicks[:count]))[0]
            if settings.corrective:
                yield from self.corrected(trial, clicks[0])

    def slices(self) -> Iterator[ScoredMask]:
        """All trials of a system that takes clicks in every slice of the target."""
        settings, grid = self.settings, self.scan.grid
        for trial in range(settings.trials):
            key = (settings.seed, self.name, self.lesion, trial)
            drawn = clicks_in_slices(self.target, grid, settings.clicks[-1], *key)
            for count in settings.clicks:
                clicks = tuple(click for in_slice in drawn for click in in_slice[:count])
                yield self.row(PER_SLICE, trial, clicks, count)[0]

    def corrected(self, trial: int, first: Click) -> Iterator[ScoredMask]:
        """Rows of 1, 2, ... clicks, each placed on the largest error; once none is left the scores are repeated."""
        points = (first,)
        row, wrong = self.row(CORRECTIVE, trial, points)
        yield row
        for count in range(2, self.settings.corrective + 1):
            additional = correction(wrong, self.target, self.spacing_mm, points, self.negative)
            if additional is None:
                yield replace(row, clicks=count, seconds=0.0)
                continue
            points = (*points, additional)
            row, wrong = self.row(CORRECTIVE, trial, points)
            yield row

    def row(
        self, kind: str, trial: int, clicks: tuple[Click, ...], count: int | None = None
    ) -> tuple[ScoredMask, Mask]:
        """The row of one mask, and the mask that was scored: without what it has in lesions other than the target.

        `count` is the number of clicks shown in tables, if not the number of all clicks.
        """
        start = time.perf_counter()
        found = self.opened.segment([Point.at_index(self.scan.grid, at, positive) for at, positive in clicks])
        seconds = time.perf_counter() - start
        if not found.grid.close_to(self.scan.grid):
            raise GeometryError(f"{self.name}: a mask on {found.grid}", f"the scan's {self.scan.grid}", "resample it")
        mask = found.array != 0
        if self.lesion:
            mask &= self.target | ~self.tumour
        scores = score(mask, self.target, self.spacing_mm, self.settings.tolerance_mm, self.settings.voxel_nsd)
        row = ScoredMask(self.name, self.lesion, kind, trial, count or len(clicks), scores, clicks, seconds)
        if self.watch is not None:
            self.watch(row, found.with_array(mask.astype(np.uint8), "SEG"))
        return row, mask


def _require_plain(settings: EvaluationSettings, name: str) -> None:
    """Raise UnsupportedError for settings that make no sense with clicks in every slice."""
    asked = {
        "corrective clicks": settings.corrective > 0,
        "single lesions": settings.per_lesion,
        f"the region {settings.region!r}": settings.region != "any",
        "clicks that miss": settings.noise > 0,
    }
    for what, is_asked in asked.items():
        if is_asked:
            expected = "a system that is clicked in the volume"
            raise UnsupportedError(f"{what} with {name}, which is clicked in every slice", expected, "leave them out")


def _require(holds: bool, given: str, expected: str) -> None:
    if not holds:
        raise InputError(given, expected, "change it; see docs/evaluation.md")


def save_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON, whole or not at all; infinite distances and missing numbers are Infinity and NaN.

    Raises FileError if the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(evaluation)), encoding="utf-8")


_RECORD = TypeAdapter(Evaluation)


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation that `save_evaluation` wrote. Raises FileError if the file is not one."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise FileError(f"{path}: no evaluation", "a file of save_evaluation", "make it again") from error
