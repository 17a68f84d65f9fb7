"""An evaluation as one self-contained HTML page: what was done, the tables, the figures."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from voxsam.lab.evaluation.markdown import NOTHING
from voxsam.lab.evaluation.protocol import Evaluation
from voxsam.lab.evaluation.tables import additional_rows, case_rows, describe, paper_rows
from voxsam.report.page import bullets, image, png_size, write_page

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
    """Write the page with all figures (PNG) inside it; it loads nothing else, and all text is escaped.

    Raises FileError if it cannot be written.
    """
    charts = [figure for figure in figures if not figure.name.startswith("overlay_")]
    overlays = [figure for figure in figures if figure.name.startswith("overlay_")]
    sections = [
        f"<p>{escape(describe(evaluation))}</p>",
        "<h2>Results</h2>",
        "<p>Dice and NSD in per cent: mean over cases with its 95 % interval.</p>",
        _table(paper_rows([evaluation])),
        _table(additional_rows(evaluation)),
        f'<div class="charts">{"".join(map(_figure, charts))}</div>',
        f"<h2>{_heading(overlays)}</h2>",
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
    body = "".join(_row([str(row.get(name, NOTHING)) for name in columns]) for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}</table></div>'


def _row(cells: Sequence[str]) -> str:
    kind = ' class="mean"' if cells[0] == "mean" else ""
    return f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>\n"


def _heading(overlays: Sequence[Path]) -> str:
    """Best, median and worst case, as far as there are overlays of them."""
    names = [path.stem.removeprefix("overlay_") for path in overlays]
    listed = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
    return f"{listed} case".strip().capitalize()


def _figure(path: Path) -> str:
    """A figure and its caption; one more than twice as wide as high needs the page's whole width."""
    caption = CAPTIONS.get(path.name, path.stem)
    width, height = png_size(path)
    kind = ' class="broad"' if width > 2 * height else ""
    return f"<figure{kind}>{image(path, caption)}<figcaption>{escape(caption)}</figcaption></figure>\n"
