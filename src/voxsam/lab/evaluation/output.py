"""The output folder of an evaluation: scores, cases, summary, tables, figures, report; written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from voxsam import __version__
from voxsam.atomic import atomic_folder
from voxsam.errors import FileError
from voxsam.io import write_mask
from voxsam.lab.data.cases import Case
from voxsam.lab.evaluation.charts import write_charts
from voxsam.lab.evaluation.clicks import deepest_voxel
from voxsam.lab.evaluation.protocol import Evaluation, ScoredMask, Watch, open_images, read_case
from voxsam.lab.evaluation.scores import components
from voxsam.lab.evaluation.systems import System
from voxsam.lab.evaluation.tables import (
    NOTHING,
    Line,
    additional_rows,
    area_rows,
    areas,
    case_rows,
    describe,
    grouped,
    paper_rows,
    summarise,
    write_tables,
)
from voxsam.prompts import Point
from voxsam.report.figures import overview_figure
from voxsam.report.report import bullets, image, png_size, write_page
from voxsam.volume import Volume


def choose_examples(evaluation: Evaluation) -> dict[str, ScoredMask]:
    """The `best`, `median` and `worst` case by mean Dice in the first line, each with its row nearest to that mean.

    With two cases there is no median, with one only the best.
    """
    first = summarise(evaluation)[0]
    means = first.by_case("dice")
    order = sorted(means, key=lambda case: (means[case], case))
    chosen = {"best": order[-1], "median": order[len(order) // 2], "worst": order[0]}
    kept: dict[str, ScoredMask] = {}
    for name in ("best", "worst", "median"):
        if chosen[name] not in {row.case for row in kept.values()}:
            own = [row for row in first.rows if row.case == chosen[name]]
            kept[name] = min(own, key=lambda row: abs(row.scores.dice - means[row.case]))
    return {name: kept[name] for name in ("best", "median", "worst") if name in kept}


def write_examples(evaluation: Evaluation, system: System, cases: Mapping[str, Case], folder: Path) -> list[str]:
    """Write an overlay of each example into an existing folder; return the file names. `cases` maps names to cases."""
    names = []
    for name, row in choose_examples(evaluation).items():
        images, tumour = read_case(cases[row.case], evaluation.settings.labels)
        scan = images[0]
        points = [Point.at_index(scan.grid, at, positive) for at, positive in row.points]
        mask = open_images(system, images, tumour).segment(points)
        if row.lesion:
            tumour = components(tumour)[0] == row.lesion
        lesion = f", lesion {row.lesion}" if row.lesion else ""
        title = f"{name.capitalize()}: {row.case}{lesion}"
        truth = scan.with_array(tumour.astype("uint8"), "SEG")
        names.append(f"overlay_{name}.png")
        # Not through a click: it may lie at the tip of the tumour, where there is little to see.
        centre = deepest_voxel(tumour, scan.grid.spacing_mm) if tumour.any() else None
        overview_figure(scan, mask, list(row.points), folder / names[-1], truth=truth, title=title, centre=centre)
    return names


CAPTIONS = {
    "dice_against_clicks.png": "Mean Dice over cases against the number of clicks, with its 95 % interval.",
    "case_boxes.png": "Dice of each case over its trials: median, quartiles, and every trial.",
    "volumes.png": "Bland-Altman: volume of the mask less that of the truth, with the limits of agreement.",
    "overlay_best.png": "The best case, through the deepest voxel of its truth. Solid: the mask; dashed: the truth; "
    "circles: clicks within 5 mm of the plane.",
    "overlay_median.png": "The median case.",
    "overlay_worst.png": "The worst case.",
}
DEFINITIONS = (
    "Every case weighs the same: its trials are averaged first. Intervals are 95 % percentile bootstrap over cases.",
    "Dice and NSD of an empty mask are 0, its HD95 is infinite and ranks last; HD95 is a median for that reason.",
    "A lesion (connected component of the truth, 26 neighbours) is found if its IoU with the predicted components that "
    "touch it is at least 0.1; a false lesion is a predicted component that touches none.",
    "All definitions: docs/evaluation.md.",
)
STYLE = """body { margin: 0; background: #fff; color: #1f2933; font: 16px/1.5 system-ui, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px }
h1 { font-size: 26px; margin: 0 0 4px }
h2 { font-size: 19px; margin: 36px 0 8px }
p, li, figcaption { color: #52606d }
.wide { overflow-x: auto; margin-top: 20px }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid #e4e7eb; text-align: right; white-space: nowrap }
th:last-child, td:last-child { padding-right: 0 }
th:first-child, td:first-child { text-align: left }
th { color: #52606d; font-weight: 600; border-bottom: 2px solid #9aa5b1; white-space: normal; vertical-align: bottom }
tr.mean td { font-weight: 600; border-top: 2px solid #9aa5b1 }
figure { margin: 16px 0 0; break-inside: avoid }
figcaption { font-size: 14px; margin-top: 4px }
img { width: 100%; height: auto; display: block; border-radius: 6px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 8px 32px }
.charts .broad { grid-column: 1 / -1 }
footer { color: #52606d; margin-top: 36px; font-size: 14px; border-top: 1px solid #e4e7eb; padding-top: 12px }
"""


def write_run_report(evaluation: Evaluation, figures: Sequence[Path], path: str | os.PathLike[str]) -> None:
    """Write one self-contained page with all figures (PNG) embedded; all text is escaped.

    Raises FileError if it cannot be written.
    """
    charts = [figure for figure in figures if not figure.name.startswith("overlay_")]
    overlays = [figure for figure in figures if figure.name.startswith("overlay_")]
    examples = [figure.stem.removeprefix("overlay_") for figure in overlays]
    listed = " and ".join([", ".join(examples[:-1]), examples[-1]]) if len(examples) > 1 else "".join(examples)
    sections = [
        f"<p>{escape(describe(evaluation))}</p>",
        "<h2>Results</h2>",
        "<p>Dice and NSD in per cent: mean over cases with its 95 % interval.</p>",
        _table(paper_rows([evaluation])),
        _table(additional_rows(evaluation)),
        *([_table(rows)] if (rows := area_rows(evaluation)) else []),
        f'<div class="charts">{"".join(map(_figure, charts))}</div>',
        f"<h2>{f'{listed} case'.strip().capitalize()}</h2>",
        *map(_figure, overlays),
        "<h2>Each case</h2>",
        _table(case_rows(evaluation)),
        bullets([f"Skipped: {case}: {reason}" for case, reason in evaluation.skipped.items()]),
        "<h2>How to read this</h2>",
        bullets(DEFINITIONS),
    ]
    write_page(path, f"{evaluation.system} on {evaluation.dataset}", STYLE, "\n".join(sections))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{re.sub(' (?=[%↓↑])', '&nbsp;', escape(name))}</th>" for name in columns)
    body = ""
    for row in rows:
        cells = [str(row.get(name, NOTHING)) for name in columns]
        kind = ' class="mean"' if cells[0] == "mean" else ""
        body += f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n"
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def _figure(path: Path) -> str:
    """A figure with its caption; one more than twice as wide as high takes the full width of the page."""
    caption = CAPTIONS.get(path.name, path.stem)
    width, height = png_size(path)
    kind = ' class="broad"' if width > 2 * height else ""
    return f"<figure{kind}>{image(path, caption)}<figcaption>{escape(caption)}</figcaption></figure>\n"


KIND = "voxsam evaluation"
MASKS = "masks"  # a folder, written only on request
FILES = {"scores.csv", "cases.csv", "summary.json", "table.md", "figures", "report.html", MASKS}
CASE_NUMBERS = ("dice", "nsd", "hd95_mm", "truth_ml", "mask_ml", "volume_error", "found", "false_lesions")
CSV: dict[str, Any] = {"index": False, "float_format": "%.6f", "na_rep": "nan", "lineterminator": "\n"}
KEYS = ("case", "lesion", "kind", "trial", "clicks")


def check_output(out: Path) -> None:
    """Raise FileError unless `out` can be created, is empty, or holds a previous evaluation and nothing else."""
    if not out.absolute().parent.is_dir():
        raise FileError(f"{out}: the folder {out.absolute().parent} does not exist", "an existing one", "make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise FileError(f"{out}: its folder is not writable", "a folder you may write to", "choose another with -o")
    if not out.exists():
        return
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_dir() and (not names or (names <= FILES and _is_evaluation(out))):
        return
    raise FileError(f"{out} holds something else", "a new folder, or a previous evaluation", "choose another with -o")


def mask_writer(folder: Path) -> Watch:
    """A `watch` for `evaluate` that writes the first trial's masks to `folder`: CASE[-lesionN]-KIND-CLICKS.nii.gz."""

    def keep(row: ScoredMask, mask: Volume) -> None:
        if row.trial == 0:
            lesion = f"-lesion{row.lesion}" if row.lesion else ""
            write_mask(mask, folder / f"{row.case}{lesion}-{row.kind.replace(' ', '-')}-{row.clicks}.nii.gz")

    return keep


def write_evaluation(
    evaluation: Evaluation, system: System, cases: Mapping[str, Case], out: Path, masks: Path | None = None
) -> None:
    """Write all files of an evaluation, replacing a previous one. `cases` maps names to cases, for the overlays.

    `masks` is a folder on the same disk whose files are moved along. Raises FileError as `check_output` does, or if
    the files cannot be written.
    """
    check_output(out)
    with atomic_folder(out) as folder:
        figures = folder / "figures"
        figures.mkdir()
        if masks is not None:
            (folder / MASKS).mkdir()
            for path in masks.iterdir():
                path.rename(folder / MASKS / path.name)
        write_scores(evaluation, folder / "scores.csv")
        write_cases(evaluation, folder / "cases.csv")
        text = json.dumps(summary(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        (folder / "table.md").write_text(write_tables(evaluation), encoding="utf-8")
        names = [*write_charts(evaluation, figures), *write_examples(evaluation, system, cases, figures)]
        write_run_report(evaluation, [figures / name for name in names], folder / "report.html")


def write_scores(evaluation: Evaluation, path: Path) -> None:
    """Write one line for each row, with its clicks as `i j k +` or `i j k -`, separated by `;`.

    Infinity is written `inf`, a missing number `nan`. Times are left out, so that the same seed gives the same file.
    """
    lines = []
    for row in evaluation.rows:
        points = ";".join(f"{i} {j} {k} {'+' if positive else '-'}" for (i, j, k), positive in row.points)
        lines.append({**{key: getattr(row, key) for key in KEYS}, **asdict(row.scores), "points": points})
    pd.DataFrame(lines).to_csv(path, **CSV)


def write_cases(evaluation: Evaluation, path: Path) -> None:
    """Write one line for each case, kind and number of clicks: means over trials and lesions (for HD95 the median)."""
    lines = []
    for line in summarise(evaluation):
        masks = {case: len(own) for case, own in grouped(line.rows).items()}
        for case, numbers in _by_case(line):
            lines.append({"case": case, "kind": line.kind, "clicks": line.clicks, "masks": masks[case], **numbers})
    pd.DataFrame(lines).to_csv(path, **CSV)


def _by_case(line: Line) -> Iterator[tuple[str, dict[str, float]]]:
    """Each case with its CASE_NUMBERS."""
    columns = {name: line.by_case(name) for name in CASE_NUMBERS}
    for case in columns["dice"]:
        yield case, {name: column[case] for name, column in columns.items()}


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """Everything but the rows, in JSON types only; an infinite or missing number is null."""
    lines = summarise(evaluation)
    cases: dict[str, list[dict[str, Any]]] = {case: [] for case in evaluation.cases}
    for line in lines:
        for case, numbers in _by_case(line):
            cases[case].append({"kind": line.kind, "clicks": line.clicks, **_rounded(numbers)})
    return {
        "kind": KIND,
        "voxsam": __version__,
        "system": evaluation.system,
        "parameters": evaluation.parameters,
        "dataset": evaluation.dataset,
        "settings": asdict(evaluation.settings),
        "lines": [_line(line) for line in lines],
        "cases": cases,
        "skipped": evaluation.skipped,
        "areas": {
            kind: {name: _rounded(asdict(one)) for name, one in own.items()} for kind, own in areas(evaluation).items()
        },
        "overlap": evaluation.overlap,
        "facts": evaluation.facts,
        "trained_on": evaluation.trained_on,
        "examples": {name: row.case for name, row in choose_examples(evaluation).items()},
    }


def _line(line: Line) -> dict[str, Any]:
    numbers = {name: _rounded(asdict(estimate)) for name, estimate in line.numbers.items()}
    counts = {"kind": line.kind, "clicks": line.clicks, "cases": line.cases, "masks": line.masks}
    return {**counts, "empty_masks": line.empty_masks, **numbers, "seconds_per_mask": round(line.seconds, 4)}


def _rounded(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(float(value), 6) if math.isfinite(value) else None for name, value in numbers.items()}


def _is_evaluation(folder: Path) -> bool:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND
