"""How cost grows with crop size, model size, number of clicks and scan size: tables and a figure.

    python -m benchmarks.scaling [--threads N] [--large] [--quick] [-o FILE.json] [--plot FILE.png] [--write FILE.md]

Each case runs in its own process. `--large` adds ViT-B with a crop of 256^3 and ViT-H with one of 128^3, which fit into
24 GB of memory and take many minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.machine import available_cores, describe_machine
from benchmarks.run import CaseFailedError, run_in_child
from voxsam.lab.evaluation.tables import markdown_table, write_between_markers

MARKER = "scaling"
FORMS = {"short": "VoxSAM", "reference": "reference"}
COLOURS = {"short": "#0072b2", "reference": "#d55e00"}  # distinct for the colour-blind
NETWORKS = [("short", "vit_b", crop) for crop in (64, 96, 128)] + [
    ("reference", "vit_b", crop) for crop in (64, 96, 128)
]
NETWORKS += [("short", size, 64) for size in ("tiny", "vit_l", "vit_h")]
LARGE = [("short", "vit_b", 256), ("short", "vit_h", 128)]
QUICK = [("short", "tiny", 16), ("short", "tiny", 32), ("reference", "tiny", 16), ("reference", "tiny", 32)]
ENLARGED = (1, 2, 4)  # scans of 128 x 128 x 75 voxels, times this on each axis
DPI = 150

Results = dict[str, Any]


def measure(
    networks: Sequence[tuple[str, str, int]],
    enlarged: Sequence[int],
    threads: int,
    run_case: Callable[[str, Results], Results] = run_in_child,
) -> Results:
    """Time two clicks for each form, size and crop, and ten of voxsam-tiny on each scan; failures keep their reason."""
    rows = []
    for form, size, crop in networks:
        print(f"{FORMS[form]}, {size}, crop {crop}^3 ...", file=sys.stderr, flush=True)
        case: Results = {"form": form, "size": size, "crop": crop}
        try:
            case |= run_case(form, {"size": size, "crop": crop, "threads": threads})
        except CaseFailedError as error:
            case["failed"] = str(error).splitlines()[-1]
        case.pop("sample", None)
        rows.append(case)
    scans = [run_case("tiny", {"threads": threads, "enlarged": factor}) for factor in enlarged]
    for scan in scans:
        scan.pop("sample", None)
    return {"machine": describe_machine(threads), "networks": rows, "scans": scans}


def report(results: Results) -> str:
    """The tables, as Markdown."""
    machine = results["machine"]
    networks = [
        {
            "model": case["size"],
            "crop": f"{case['crop']}³",
            "form": FORMS[case["form"]],
            "first click, s": case.get("first_click_s", case.get("failed")),
            "next click, s": case.get("next_click_s"),
            "peak memory, GB": case["peak_memory_bytes"] / 1e9 if "peak_memory_bytes" in case else None,
        }
        for case in results["networks"]
    ]
    scans = [
        {
            "voxsam-tiny, scan of": " × ".join(map(str, case["scan_shape"])),
            "first click, s": case["first_click_s"],
            "next click, s": case["next_click_s"],
            "ten clicks, s": case["ten_clicks_s"],
            "peak memory, GB": case["peak_memory_bytes"] / 1e9,
        }
        for case in results["scans"]
    ]
    head = f"{machine['cpu']}, {machine['threads']} threads; torch {machine['torch']}, float32."
    return "\n\n".join([head, markdown_table(networks), markdown_table(scans)])


def figure(results: Results) -> Figure:
    """Four panels: seconds and memory against the crop's side, model sizes, clicks on each scan."""
    drawn = Figure(figsize=(9, 6.4), layout="constrained")
    FigureCanvasAgg(drawn)
    (seconds, memory), (sizes, clicks) = drawn.subplots(2, 2)
    done = [case for case in results["networks"] if "failed" not in case]
    size = done[0]["size"]
    for form, name in FORMS.items():
        cases = sorted((c for c in done if (c["form"], c["size"]) == (form, size)), key=lambda c: c["crop"])
        sides = [case["crop"] for case in cases]
        for key, what, style in (("first_click_s", "first click", "-o"), ("next_click_s", "next click", "--o")):
            line = [case[key] for case in cases]
            seconds.plot(sides, line, style, color=COLOURS[form], label=f"{name}, {what}", markersize=4)
        gigabytes = [case["peak_memory_bytes"] / 1e9 for case in cases]
        memory.plot(sides, gigabytes, "-o", color=COLOURS[form], label=name, markersize=4)
    seconds.set_yscale("log")
    _finish(seconds, f"{size}: seconds against the crop's side", "side of the crop, voxels", "s")
    _finish(memory, f"{size}: peak memory against the crop's side", "side of the crop, voxels", "GB")
    memory.set_ylim(bottom=0)
    _draw_sizes(sizes, done)
    for case in results["scans"]:
        each = case["each_click_s"]
        clicks.plot(range(1, len(each) + 1), each, "-o", markersize=4, label=" × ".join(map(str, case["scan_shape"])))
    clicks.set_ylim(bottom=0)
    _finish(clicks, "voxsam-tiny: each of ten clicks, by scan", "click", "s")
    return drawn


def _draw_sizes(axes: Axes, done: Sequence[Results]) -> None:
    """Draw a bar for every model size, at the smallest crop that all of VoxSAM's sizes share."""
    ours = [case for case in done if case["form"] == "short"]
    shared = set.intersection(*({c["crop"] for c in ours if c["size"] == case["size"]} for case in ours))
    crop = min(shared, default=ours[0]["crop"])
    cases = sorted((case for case in ours if case["crop"] == crop), key=lambda case: case["first_click_s"])
    bars = axes.bar([case["size"] for case in cases], [case["first_click_s"] for case in cases], color=COLOURS["short"])
    axes.bar_label(bars, [f"{case['peak_memory_bytes'] / 1e9:.1f} GB" for case in cases], fontsize=8, padding=2)
    axes.margins(y=0.15)
    _finish(axes, f"First click by size, crop {crop}³ (above: peak memory)", "", "s")


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--large", action="store_true", help="also ViT-B with a crop of 256^3 and ViT-H with 128^3")
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--write", type=Path, help=f"Markdown file with the markers <!-- {MARKER} -->")
    options = parser.parse_args(arguments)
    networks = QUICK if options.quick else [*NETWORKS, *(LARGE if options.large else [])]
    results = measure(networks, ENLARGED[:1] if options.quick else ENLARGED, options.threads)
    text = report(results)
    print(text)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        figure(results).savefig(options.plot, dpi=DPI)
    if options.write is not None:
        write_between_markers(options.write, MARKER, text)


if __name__ == "__main__":
    main()
