"""The paper's ablations as rows (Sec. 4.4, Fig. 7 and Table 3): VoxSAM with one part of its design changed each.

What they are compared with is the row "voxsam". Where clicks are drawn and how many there are is the evaluation's
(`voxsam evaluate --region, --clicks`), not another model's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voxsam.lab.systems.common_loop import CommonLoop
from voxsam.lab.systems.compared import About, ComparedSystem, register

LEVEL_SETS = ((4,), (1, 4), (2, 4), (3, 4), (1, 2, 3, 4))  # Table 3
MARKS = "marks come with the plan's model: give every row `model.marks: false` to compare prompts as the paper has them"


def _row(name: str, title: str, section: str, fixed: dict[str, Any], differences: str) -> None:
    """Register one ablation; `fixed` are keys of its recipe."""
    about = About(
        title=title,
        paper=f"Gong et al., 3DSAM-adapter, Medical Image Analysis 2024, {section}",
        source="https://github.com/med-air/3DSAM-adapter",
        licence="none stated",
        library="VoxSAM",
        differences=differences,
    )
    register(name)(_maker(name, about, fixed))


def _maker(name: str, about: About, fixed: dict[str, Any]) -> Callable[[], ComparedSystem]:
    return lambda: CommonLoop(name, about, fixed)


_row(
    "prompt-positional",
    "Positional prompt",
    "Sec. 4.4 and Fig. 7b",
    {"model": {"prompt_kind": "positional", "marks": False}, "unmarked": 0.0},
    "the original's code holds unused parts of positional prompts only: made here after SAM's prompt encoder and its"
    " two-way transformer, in 3D, without output tokens; a click is known in its own crop only: masks are not followed",
)
for _levels in LEVEL_SETS:
    _row(
        "prompt-levels-" + "".join(map(str, _levels)),
        f"Prompts at levels {', '.join(map(str, _levels))}" if len(_levels) > 1 else f"Prompts at level {_levels[0]}",
        "Sec. 4.4 and Table 3",
        {"model": {"prompt_levels": list(_levels)}},
        f"the original's code prompts level 4 alone; {MARKS}",
    )
_row(
    "no-aggregation",
    "No multi-layer aggregation",
    "Sec. 4.4 and Fig. 7c",
    {"model": {"multi_layer": False}},
    "the original's code has no such decoder: here the head of level 4, and the fusion with the crop as it is;"
    " the necks of levels 1 to 3 are not built",
)
