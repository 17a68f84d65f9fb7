"""The figures of an evaluation, as PNG for print: Dice against clicks, a box for each case, Bland-Altman of volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from voxsam.atomic import atomic_path
from voxsam.lab.evaluation.protocol import Evaluation
from voxsam.lab.evaluation.tables import Line, grouped, summarise

COLOURS = {  # distinct for the colour-blind
    "random": "#0072b2",
    "corrective": "#d55e00",
    "automatic": "#0072b2",
    "per slice": "#009e73",
}
CASE_LINE, INK, FAINT = "#9aa5b1", "#1f2933", "#52606d"
DPI = 150
HALO = [withStroke(linewidth=2.5, foreground="white")]  # keeps names readable where a line crosses them
MAX_NAMED_CASES = 40  # with more, the boxes are not labelled
MAX_NAMED_DOTS = 12
MAX_BOX_INCHES = 16.0
DODGE = 0.04  # the second kind of click is shifted to the right by this fraction


def write_charts(evaluation: Evaluation, folder: Path) -> list[str]:
    """Write the figures into an existing folder and return their names.

    Dice against clicks is drawn if two or more numbers of clicks were scored. Raises FileError if writing fails.
    """
    lines = summarise(evaluation)
    figures = {"volumes.png": _bland_altman(evaluation, lines[0]), "case_boxes.png": _case_boxes(evaluation, lines[0])}
    if len({line.clicks for line in lines}) > 1:
        figures = {"dice_against_clicks.png": _dice_against_clicks(evaluation, lines), **figures}
    for name, figure in figures.items():
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")
    return list(figures)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _title(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=22, parse_math=False)
    style = {"transform": axes.transAxes, "fontsize": 9, "color": FAINT, "va": "bottom", "parse_math": False}
    axes.text(0, 1.015, note, **style)


def _dice_against_clicks(evaluation: Evaluation, lines: Sequence[Line]) -> Figure:
    figure, axes = _figure(6.4, 4.4)
    kinds = list(dict.fromkeys(line.kind for line in lines))
    for number, kind in enumerate(kinds):
        own = [line for line in lines if line.kind == kind]
        if number == 0:
            columns = [line.by_case("dice") for line in own]
            for case in evaluation.cases:
                dice = [column[case] for column in columns]
                axes.plot([line.clicks for line in own], dice, color=CASE_LINE, linewidth=0.9, alpha=0.7)
        clicks = [line.clicks * (1 + DODGE * number) for line in own]
        means = [line.numbers["dice"] for line in own]
        value, low, high = np.array([[mean.value, mean.low, mean.high] for mean in means]).T
        reach, colour = np.nan_to_num([value - low, high - value]), COLOURS[kind]
        bars = {"capsize": 3, "elinewidth": 1.3, "marker": "o", "markersize": 5, "linewidth": 2.2}
        axes.errorbar(clicks, value, yerr=reach, color=colour, label=f"{kind} clicks", zorder=3, **bars)
    counts = sorted({line.clicks for line in lines})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _label_dice(axes, [v for line in lines for v in line.by_case("dice").values()])
    axes.set_xlabel("clicks", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _title(
        axes,
        f"{evaluation.system}: Dice against clicks",
        f"bold: mean over cases, 95 % interval; thin: each case, {kinds[0]} clicks",
    )
    return figure


def _case_boxes(evaluation: Evaluation, line: Line) -> Figure:
    """A box for each case over its trials, ordered from the worst median to the best."""
    values = {case: [row.scores.dice for row in own] for case, own in grouped(line.rows).items()}
    order = sorted(values, key=lambda case: float(np.median(values[case])))
    figure, axes = _figure(min(MAX_BOX_INCHES, max(6.4, 0.42 * len(order) + 1.5)), 4.4)
    colour = COLOURS[line.kind]
    boxes = axes.boxplot(
        [values[case] for case in order],
        widths=0.55,
        patch_artist=True,
        showfliers=False,
        medianprops={"color": INK, "linewidth": 1.6},
        boxprops={"facecolor": colour + "33", "edgecolor": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
    )
    assert boxes
    jitter = np.random.default_rng(0)
    for place, case in enumerate(order, 1):
        x = place + jitter.uniform(-0.14, 0.14, len(values[case]))
        axes.plot(x, values[case], "o", color=colour, markersize=3.2, alpha=0.65, markeredgewidth=0)
    if len(order) <= MAX_NAMED_CASES:
        slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(order) > 8 else {}
        axes.set_xticks(range(1, len(order) + 1), order, fontsize=8, parse_math=False, **slant)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(order)} cases", color=INK)
    _label_dice(axes, [v for found in values.values() for v in found])
    _title(axes, f"{evaluation.system}: Dice of each case, {line.title}", "a dot for each trial; worst case first")
    return figure


def _bland_altman(evaluation: Evaluation, line: Line) -> Figure:
    """Volume of the mask against the truth: difference over mean, with the limits of agreement (mean +- 1.96 s.d.)."""
    masks, truths = line.by_case("mask_ml"), line.by_case("truth_ml")
    mask, truth = (np.array([column[case] for case in evaluation.cases]) for column in (masks, truths))
    figure, axes = _figure(6.4, 4.4)
    middle, difference = (mask + truth) / 2, mask - truth
    axes.plot(middle, difference, "o", color=COLOURS[line.kind], markersize=6, alpha=0.8, markeredgewidth=0)
    if len(middle) <= MAX_NAMED_DOTS:  # alternately above and below, from left to right: neighbours do not overlap
        style = {"ha": "center", "fontsize": 7.5, "color": FAINT, "parse_math": False, "path_effects": HALO}
        for turn, number in enumerate(np.argsort(middle, kind="stable")):
            at, offset = (float(middle[number]), float(difference[number])), (0, -13 if turn % 2 else 6)
            axes.annotate(evaluation.cases[number], at, offset, textcoords="offset points", **style)
    _draw_agreement(axes, difference)
    axes.margins(y=0.15)
    axes.set_xlim(0, 1.12 * float(middle.max()) or 1.0)
    axes.set_xlabel("mean of mask and truth, mL", color=INK)
    axes.set_ylabel("mask − truth, mL", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    _title(
        axes, f"{evaluation.system}: volume, {line.title}", "Bland-Altman, a dot for each case (its trials averaged)"
    )
    return figure


def _draw_agreement(axes: Axes, difference: NDArray[np.float64]) -> None:
    """Draw the mean difference and the limits of agreement, labelled at the right."""
    bias = float(difference.mean())
    levels = [(bias, "-", "mean")]
    if len(difference) > 1:
        spread = 1.96 * float(difference.std(ddof=1))
        levels += [(bias + spread, "--", "mean + 1.96 s.d."), (bias - spread, "--", "mean − 1.96 s.d.")]
    axes.axhline(0, color=CASE_LINE, linewidth=0.8)
    for level, style, name in levels:
        axes.axhline(level, color=INK, linewidth=1.1, linestyle=style)
        text = f"{name}\n{level:+.1f} mL".replace("-", "−")
        place = {"xytext": (6, 0), "textcoords": "offset points", "ha": "left", "va": "center"}
        axes.annotate(text, (1, level), xycoords=("axes fraction", "data"), fontsize=8, color=INK, **place)


def _label_dice(axes: Axes, values: Sequence[float]) -> None:
    """Label the Dice axis and let it start at 0, unless all values are high."""
    lowest = min(values)
    axes.set_ylim(0 if lowest < 0.45 else max(0.0, np.floor(lowest * 10 - 0.5) / 10), 1.0)
    axes.set_ylabel("Dice", color=INK)
