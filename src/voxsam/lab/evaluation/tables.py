"""The tables of an evaluation, as Markdown: the paper's Table 1 with confidence intervals, more scores, each case.

Every case has the same weight: its trials and lesions are averaged first, and intervals are over cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxsam.errors import FileError
from voxsam.lab.evaluation.protocol import AUTOMATIC, PER_SLICE, RANDOM, Evaluation, ScoredMask

RESAMPLES, LEVEL = 2000, 0.95
MEANS = ("dice", "nsd", "nsd_voxels", "volume_error", "volume_error_abs", "found", "false_lesions")


@dataclass(frozen=True)
class Estimate:
    """A statistic over cases with its confidence interval; nan where undefined (one case has no interval)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """The masks of one kind of trial with one number of clicks, and all statistics over them."""

    kind: str
    clicks: int
    rows: tuple[ScoredMask, ...]
    cases: int
    masks: int
    empty_masks: int
    seconds: float  # mean per mask
    numbers: dict[str, Estimate]  # by the names in MEANS, and hd95_mm (a median)

    @property
    def label(self) -> str:
        """Its name in the paper's Table 1: "3 pts/volume", "3 pts/slice"."""
        per = "slice" if self.kind == PER_SLICE else "volume"
        return self._named(f"{self.clicks} pt{'s' * (self.clicks != 1)}/{per}")

    @property
    def title(self) -> str:
        """Its name in other tables and figures: "3 clicks", "3 clicks per slice"."""
        per = " per slice" if self.kind == PER_SLICE else ""
        return self._named(f"{self.clicks} click{'s' * (self.clicks != 1)}{per}")

    def by_case(self, name: str) -> dict[str, float]:
        """One number for every case."""
        return by_case(self.rows, name)

    def _named(self, clicks: str) -> str:
        if self.kind == AUTOMATIC:
            return self.kind
        return clicks if self.kind in (RANDOM, PER_SLICE) else f"{clicks}, {self.kind}"


def summarise(evaluation: Evaluation) -> list[Line]:
    """One line for each kind and number of clicks: kinds in the order of their first row, then by number of clicks."""
    kinds = list(dict.fromkeys(row.kind for row in evaluation.rows))
    groups = sorted({(kinds.index(row.kind), row.clicks) for row in evaluation.rows})
    return [_line(evaluation, kinds[kind], clicks) for kind, clicks in groups]


def rows_of(evaluation: Evaluation, kind: str, clicks: int) -> tuple[ScoredMask, ...]:
    """The rows of one line."""
    return tuple(row for row in evaluation.rows if (row.kind, row.clicks) == (kind, clicks))


def number(row: ScoredMask, name: str) -> float:
    """One number of a row: a field of its scores, `found` (fraction of the lesions) or `volume_error_abs`."""
    scores = row.scores
    if name == "found":
        return scores.lesions_found / scores.lesions if scores.lesions else math.nan
    if name == "volume_error_abs":
        return abs(scores.volume_error)
    return float(getattr(scores, name))


def by_case(rows: Sequence[ScoredMask], name: str) -> dict[str, float]:
    """For each case the mean of a number over the rows that have it (for HD95 the median, which may be infinite)."""
    middle = _median if name == "hd95_mm" else _mean
    return {case: float(middle(np.array([number(row, name) for row in own]))) for case, own in grouped(rows).items()}


def grouped(rows: Sequence[ScoredMask]) -> dict[str, list[ScoredMask]]:
    """The rows of each case, cases in the order of their first row."""
    groups: dict[str, list[ScoredMask]] = {}
    for row in rows:
        groups.setdefault(row.case, []).append(row)
    return groups


def estimate(values: Sequence[float], seed: int, median: bool = False) -> Estimate:
    """Mean (or median) over the cases that have a number, with a 95 % percentile bootstrap interval over those cases.

    Not scipy.stats.bootstrap: a single infinite HD95 makes it return nan.
    """
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Estimate(math.nan, math.nan, math.nan)
    middle = partial(_median if median else _mean, axis=-1)
    value = float(middle(known))
    if len(known) == 1:
        return Estimate(value, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(len(known), size=(RESAMPLES, len(known)))
    fraction = (1 - LEVEL) / 2
    ordered = np.sort(middle(known[drawn]))
    low, high = (float(ordered[round(q * (RESAMPLES - 1))]) for q in (fraction, 1 - fraction))
    return Estimate(value, low, high)


def _line(evaluation: Evaluation, kind: str, clicks: int) -> Line:
    rows, seed = rows_of(evaluation, kind, clicks), evaluation.settings.seed
    numbers = {name: estimate(list(by_case(rows, name).values()), seed) for name in MEANS}
    numbers["hd95_mm"] = estimate(list(by_case(rows, "hd95_mm").values()), seed, median=True)
    empty = sum(row.scores.mask_ml == 0 for row in rows)
    seconds = float(np.mean([row.seconds for row in rows]))
    return Line(kind, clicks, rows, len({row.case for row in rows}), len(rows), empty, seconds, numbers)


def _mean(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def _median(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """The median, of two middle values the greater: infinite values count as the largest, and are never averaged."""
    ordered = np.sort(values, axis=axis)
    return np.take(ordered, values.shape[axis] // 2, axis=axis)


NOTHING = "–"


def markdown_table(rows: Sequence[Mapping[str, object]], right: bool = False) -> str:
    """One line per row; the columns are the rows' keys in order of appearance, numbers right-aligned.

    `right` right-aligns every column but the first, for numbers that are already text.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    filled = [[NOTHING if row.get(column) is None else row[column] for column in columns] for row in rows]
    cells = [[three_digits(value) if isinstance(value, float) else str(value) for value in row] for row in filled]
    numeric = [
        (right and n > 0) or any(isinstance(row.get(c), int | float) for row in rows) for n, c in enumerate(columns)
    ]
    lines = [columns, ["---:" if right else "---" for right in numeric], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def three_digits(value: float) -> str:
    """A number with about three digits and never an exponent: 0.0123, 1.23, 12.3, 1234."""
    decimals = next((d for limit, d in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.09995, 3)) if abs(value) >= limit), 4)
    return f"{value:.{decimals}f}"


def write_between_markers(path: Path, marker: str, text: str) -> None:
    """Replace the text between `<!-- marker -->` and `<!-- /marker -->` in a Markdown file.

    Raises FileError if the file or the two markers are not there.
    """
    found = require_markers(path, marker)
    document = found.string
    path.write_text(f"{document[: found.start(1)]}\n{text}\n{document[found.end(1) :]}", encoding="utf-8")


def require_markers(path: Path, marker: str) -> re.Match[str]:
    """Find the two markers in a Markdown file: group 1 is the text between. Raises FileError if they are missing."""
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    if not path.is_file():
        raise FileError(f"{path}: no such file", f"a Markdown file with {start} and {end}", "create it first")
    document = path.read_text(encoding="utf-8")
    found = re.search(f"{re.escape(start)}(.*?){re.escape(end)}", document, flags=re.DOTALL)
    if found is None:
        raise FileError(f"{path} without markers", f"{start} and {end}", "add both where the text shall stand")
    return found


PER_SLICE_NOTE = (
    "The clicks are made in every axial slice that holds tumour, so the system is given where along the patient the "
    "tumour begins and ends; all other slices stay empty."
)

Cells = dict[str, Any]


def paper_rows(evaluations: Sequence[Evaluation]) -> list[Cells]:
    """Table 1 of the paper: methods as rows, Dice and NSD of each data set as columns, in per cent with intervals."""
    rows: dict[str, Cells] = {}
    for evaluation in evaluations:
        for line in summarise(evaluation):
            method = f"{evaluation.system} ({line.label})"
            if evaluation.overlap:
                method += f", trained on {len(evaluation.overlap)} of {len(evaluation.cases)} cases"
            cells = rows.setdefault(method, {"Method": method})
            cells[f"{evaluation.dataset} Dice ↑"] = shown(line.numbers["dice"], percent=True)
            cells[f"{evaluation.dataset} NSD ↑"] = shown(line.numbers["nsd"], percent=True)
            cells["parameters"] = NOTHING if evaluation.parameters is None else f"{evaluation.parameters / 1e6:.2f}M"
    return list(rows.values())


def additional_rows(evaluation: Evaluation) -> list[Cells]:
    """The scores that the paper does not show: HD95, volume error, lesions, empty masks, time."""
    table: list[Cells] = []
    for line in summarise(evaluation):
        numbers, cells = line.numbers, {"clicks": line.title}
        if not math.isnan(numbers["nsd_voxels"].value):
            cells["NSD by voxels % ↑"] = shown(numbers["nsd_voxels"], percent=True)
        cells["HD95 mm ↓ (median)"] = shown(numbers["hd95_mm"], decimals=1)
        cells["volume error %"] = shown(numbers["volume_error"], percent=True, decimals=1)
        cells["abs. volume error % ↓"] = shown(numbers["volume_error_abs"], percent=True, decimals=1)
        cells["lesions found % ↑"] = shown(numbers["found"], percent=True, decimals=1)
        cells["false lesions ↓"] = shown(numbers["false_lesions"], decimals=2)
        cells["empty masks"] = f"{line.empty_masks} of {line.masks}"
        cells["s per mask"] = f"{line.seconds:.2f}"
        table.append(cells)
    return table


def case_rows(evaluation: Evaluation) -> list[Cells]:
    """A row for each case, then the mean: volume, Dice; for the first number of clicks also worst trial, NSD, HD95.

    Corrective trials are shown only with their last number of clicks.
    """
    lines = summarise(evaluation)
    first = lines[0]
    columns: dict[str, dict[str, float]] = {"mL": first.by_case("truth_ml")}
    for line in (line for line in lines if line.kind == first.kind or line.clicks == evaluation.settings.corrective):
        columns[f"Dice, {line.title}"] = line.by_case("dice")
    if evaluation.settings.trials > 1 and first.clicks:
        worst = {case: min(row.scores.dice for row in rows) for case, rows in grouped(first.rows).items()}
        columns["worst trial"] = worst
    columns["NSD"], columns["HD95 mm"] = first.by_case("nsd"), first.by_case("hd95_mm")
    table: list[Cells] = [
        {"case": case, **{name: plain(column[case], name) for name, column in columns.items()}}
        for case in evaluation.cases
    ]
    for row in table if evaluation.overlap else []:
        how = evaluation.overlap.get(row["case"], "no").partition(":")[0]
        row["trained on it"] = how.replace("trained on it", "yes")
    means = {name: plain(float(_mean(np.array(list(column.values())))), name) for name, column in columns.items()}
    return [*table, {"case": "mean", **means}]


DIAMETERS_MM = (0.0, 10.0, 20.0, 40.0, 80.0, math.inf)  # bounds of the size groups of lesions


def lesion_rows(evaluation: Evaluation) -> list[Cells]:
    """The lesion board: Dice by number of random clicks, and after 1, 5 and 10 corrections of the first; a row for
    each lesion, then means by size (diameter of a sphere of its volume) and over all.
    """
    corrected = {1 + more for more in (1, 5, 10)} & set(range(evaluation.settings.corrective + 1))
    lines = [line for line in summarise(evaluation) if line.kind == RANDOM or line.clicks in corrected]
    dice: dict[tuple[str, int], dict[str, list[float]]] = {}
    size_ml: dict[tuple[str, int], float] = {}
    for line in lines:
        title = line.title if line.kind == RANDOM else f"1 + {line.clicks - 1}"
        for row in line.rows:
            size_ml[row.case, row.lesion] = row.scores.truth_ml
            dice.setdefault((row.case, row.lesion), {}).setdefault(title, []).append(row.scores.dice)
    means = {key: {title: float(np.mean(values)) for title, values in of.items()} for key, of in dice.items()}
    table: list[Cells] = [
        {"lesion": f"{case} {lesion}", "n": 1, "mL": plain(size_ml[case, lesion], "mL"), **_dice(means[case, lesion])}
        for case, lesion in means
    ]
    diameter = {key: (6000 * ml / math.pi) ** (1 / 3) for key, ml in size_ml.items()}
    groups = [
        (f"{low:g} to {high:g} mm" if high < math.inf else f"{low:g} mm and more", low, high)
        for low, high in pairwise(DIAMETERS_MM)
    ]
    for name, low, high in [*groups, ("all", 0.0, math.inf)]:
        of = [means[key] for key in means if low <= diameter[key] < high]
        if of:
            mean = {title: float(np.mean([one[title] for one in of])) for title in of[0]}
            table.append({"lesion": name, "n": len(of), **_dice(mean)})
    return table


def _dice(values: Mapping[str, float]) -> Cells:
    return {f"Dice, {title}": f"{value:.3f}" for title, value in values.items()}


def write_tables(evaluation: Evaluation) -> str:
    """All tables in one Markdown text."""
    parts = [
        f"# {evaluation.system} on {evaluation.dataset}",
        describe(evaluation),
        "Dice and NSD in per cent, mean over cases with 95 % bootstrap interval.",
        markdown_table(paper_rows([evaluation]), right=True),
        markdown_table(additional_rows(evaluation), right=True),
        *([markdown_table(rows, right=True)] if (rows := area_rows(evaluation)) else []),
        "Each case, its trials averaged (HD95: the median):",
        markdown_table(case_rows(evaluation), right=True),
    ]
    if evaluation.settings.per_lesion:
        parts.append("Each lesion, its trials averaged, and lesions by size:")
        parts.append(markdown_table(lesion_rows(evaluation), right=True))
    parts += [f"Skipped: {case}: {reason}." for case, reason in evaluation.skipped.items()]
    return "\n\n".join(parts) + "\n"


def describe(evaluation: Evaluation) -> str:
    """The protocol of a run, in a few sentences."""
    settings, cases = evaluation.settings, len(evaluation.cases)
    text = f"{cases} case{'s' * (cases != 1)}, NSD at {settings.tolerance_mm:g} mm, seed {settings.seed}."
    about = "".join(f" {line}" for line in overlap_lines(evaluation))
    if all(row.clicks == 0 for row in evaluation.rows):
        return f"{text} Automatic: no clicks.{about}"
    where = "the whole tumour" if settings.region == "any" else f"the region '{settings.region}' of the largest lesion"
    where = "each lesion by itself" if settings.per_lesion and settings.region == "any" else where
    text += f" {settings.trials} trial{'s' * (settings.trials != 1)} for each number of clicks, drawn from {where}."
    if any(row.kind == PER_SLICE for row in evaluation.rows):
        text += f" {PER_SLICE_NOTE}"
    if settings.noise:
        text += f" {settings.noise:.0%} of the clicks miss the tumour."
    if settings.corrective:
        text += " Corrective: after the first click each one is placed on the largest wrong region of the mask."
    return text + about


def overlap_lines(evaluation: Evaluation) -> list[str]:
    """What a reader must know about the system: which cases it was trained on, as far as known, licence, memory."""
    lines = []
    if evaluation.overlap:
        cases = "; ".join(f"{case}: {how}" for case, how in evaluation.overlap.items())
        lines.append(
            f"{evaluation.system} was trained on {len(evaluation.overlap)} of these {len(evaluation.cases)} cases, so "
            f"its numbers are no test ({cases})."
        )
    lines += [f"{name}: {fact}." for name, fact in evaluation.facts.items()]
    if evaluation.trained_on:
        lines.append(f"{evaluation.system}: {evaluation.trained_on}.")
    return lines


def shown(estimate: Estimate, percent: bool = False, decimals: int = 2) -> str:
    """`73.78 [70.12, 77.01]`; without brackets if there is no interval, a dash if there is no number."""
    values = [v * 100 if percent else v for v in (estimate.value, estimate.low, estimate.high)]
    value, low, high = (_text(v, decimals) for v in values)
    return value if math.isnan(estimate.low) else f"{value} [{low}, {high}]"


def plain(value: float, name: str) -> str:
    """One number in the table of cases: mL and mm with one decimal, fractions with three."""
    return _text(value, 1 if name in ("mL", "HD95 mm") else 3)


AREAS = {"dice": "Dice", "nsd": "NSD by area", "nsd_voxels": "NSD by voxels"}


def areas(evaluation: Evaluation) -> dict[str, dict[str, Estimate]]:
    """The area under each score's curve over the numbers of clicks, as its mean height, averaged over cases.

    Kinds with a single number of clicks are left out.
    """
    found: dict[str, dict[str, Estimate]] = {}
    lines = summarise(evaluation)
    for kind in dict.fromkeys(line.kind for line in lines):
        own = [line for line in lines if line.kind == kind]
        counts = [line.clicks for line in own]
        if len(own) < 2:
            continue
        for name in AREAS:
            curves = [line.by_case(name) for line in own]
            heights = [
                float(np.trapezoid([curve[case] for curve in curves], counts)) / (counts[-1] - counts[0])
                for case in curves[0]
            ]
            found.setdefault(kind, {})[name] = estimate(heights, evaluation.settings.seed)
    return found


def area_rows(evaluation: Evaluation) -> list[Cells]:
    """`areas` in per cent, one row for each kind of click."""
    clicks = {kind: sorted({row.clicks for row in evaluation.rows if row.kind == kind}) for kind in areas(evaluation)}
    return [
        {
            "area under the curve": f"{kind}, {clicks[kind][0]} to {clicks[kind][-1]} clicks",
            **{f"{AREAS[name]} ↑": shown(one, percent=True) for name, one in own.items() if not math.isnan(one.value)},
        }
        for kind, own in areas(evaluation).items()
    ]


def _text(value: float, decimals: int) -> str:
    if math.isnan(value):
        return NOTHING
    return "∞" if math.isinf(value) else f"{value:.{decimals}f}"
