"""Speed and memory of VoxSAM and of the reference implementation of the released computation, on this machine.

    python -m benchmarks.run [--size vit_b] [--crop 128] [--threads N] [--skip-reference] [--quick] [-o FILE.json]
                             [--write docs/performance.md]

Each case runs in its own process, so that its peak memory is its own. Weights are random: no file is needed, and time
does not depend on them. docs/performance.md explains the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import available_cores, describe_machine
from voxsam.lab.evaluation.tables import markdown_table, three_digits, write_between_markers
from voxsam.network.sizes import SIZES

MARKER = "bench"
LOWER = ("bf16", "int8")  # precisions
WHAT = {
    "encoder": "the image encoder alone, and the rate of matrix products",
    "voxsam": "VoxSAM: ten clicks, undo, a click that moves the crop",
    "reference": "the reference implementation: first click, next click (ViT-B at 128^3: minutes, and up to 8 GB)",
    "precision": "VoxSAM in every precision that this machine has",
    "tiny": "voxsam-tiny: ten clicks, undo, a click that moves the crop",
    "reading": "reading a large .nii.gz, to the first crop",
}
ROWS = (
    ("First click, s", "first_click_s", 1.0),
    ("Next click in the same crop, s", "next_click_s", 1.0),
    ("Peak memory, GB", "peak_memory_bytes", 1e9),
)
MORE_ROWS = (
    *ROWS[:2],
    ("Click that moves the crop, s", "moving_click_s", 1.0),
    ("Ten clicks in one crop, s", "ten_clicks_s", 1.0),
    ("Undo, s", "undo_s", 1.0),
    ROWS[2],
)

Results = dict[str, Any]


class CaseFailedError(Exception):
    """The process of a case ended without results."""


def run_in_child(name: str, settings: Results) -> Results:
    """The numbers of a case, measured in a fresh process. Raises CaseFailedError with its error output."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": str(settings["threads"]),
    }
    command = [sys.executable, "-m", "benchmarks.cases", name, json.dumps(settings)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode == -9:
        raise CaseFailedError(f"{name} was killed: most likely it ran out of memory")
    if done.returncode:
        raise CaseFailedError(f"{name} ended with status {done.returncode}\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    settings: Results, skip_reference: bool = False, run_case: Callable[[str, Results], Results] = run_in_child
) -> Results:
    """Run all cases, one after another, and derive ratios; a reference case that fails is left out."""
    cases: dict[str, Results] = {}
    for name in WHAT:
        if name == "reference" and skip_reference:
            continue
        print(f"{WHAT[name]} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            cases[name] = run_case(name, settings)
        except CaseFailedError as error:
            if name != "reference":
                raise
            print(f"  left out: {error}", file=sys.stderr, flush=True)
        else:
            print(f"  done in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    comparison = compare(cases.get("reference"), cases["voxsam"])
    rates = encoder_rates(cases["encoder"])
    lower = compare_precisions(cases["precision"])
    for numbers in (*cases.values(), *cases["precision"].values()):
        if isinstance(numbers, dict):
            numbers.pop("sample", None)
    return {
        "machine": describe_machine(settings["threads"]),
        "settings": settings,
        "cases": cases,
        "ratios": comparison,
        "encoder_rates": rates,
        "precisions": lower,
    }


def compare(reference: Results | None, voxsam: Results) -> Results | None:
    """reference / VoxSAM for every row of the table, and the largest difference of their probabilities."""
    if reference is None:
        return None
    ratios = {key: reference[key] / voxsam[key] for _, key, _ in ROWS}
    return {**ratios, "largest_difference_of_probability": _apart(reference, voxsam)}


def compare_precisions(case: Results) -> Results:
    """float32 / lower precision for the first click, and the largest difference of the probabilities."""
    exact = case["float32"]
    return {
        name: {
            "first_click_s": exact["first_click_s"] / found["first_click_s"],
            "largest_difference_of_probability": _apart(exact, found),
        }
        for name, found in case.items()
        if name in LOWER
    }


def _apart(one: Results, other: Results) -> float:
    return max(abs(a - b) for a, b in zip(one["sample"], other["sample"], strict=True))


def encoder_rates(encoder: Results) -> Results:
    """Operations per second of the blocks and of the whole encoder, also as fractions of the machine's rate.

    `share` is relative to the best measured product, plain or packed, `of_peak` to the processor's peak if known.
    """
    machine, peak = max(encoder["matrix_product_rates"].values()), encoder.get("peak_rate")
    rates: Results = {"matrix_product": machine}
    for part in ("blocks", "encoder"):
        rates[part] = encoder[f"{part}_operations"] / encoder[f"{part}_s"]
        rates[f"{part}_share"] = rates[part] / machine
        if peak:
            rates[f"{part}_of_peak"] = rates[part] / peak
    return rates


def report(results: Results) -> str:
    """The tables and the sentences around them, as Markdown."""
    machine, cases, ratios = results["machine"], results["cases"], results["ratios"]
    parts = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads; torch {machine['torch']}, float32,"
        f" {machine['system']}.",
        markdown_table(_click_rows(results)),
        markdown_table(_encoder_rows(cases["encoder"], results["encoder_rates"])),
        "The best matrix product of this machine, plain or packed, measured in the same process: "
        f"{three_digits(results['encoder_rates']['matrix_product'] / 1e9)} GFLOP/s.",
        markdown_table(_precision_rows(results)),
        markdown_table(_tiny_rows(cases["tiny"])),
        markdown_table(_reading_rows(cases["reading"])),
    ]
    if ratios:
        apart = ratios["largest_difference_of_probability"]
        parts.insert(2, f"The two differ by at most {apart:.0e} in the probabilities about the click.")
    return "\n\n".join(parts)


def _click_rows(results: Results) -> list[Results]:
    settings, cases, ratios = results["settings"], results["cases"], results["ratios"] or {}
    title, reference = f"{settings['size']}, crop {settings['crop']}³", cases.get("reference") or {}
    return [
        {
            title: row,
            "reference": reference[key] / unit if key in reference else None,
            "VoxSAM": cases["voxsam"][key] / unit,
            "reference / VoxSAM": ratios.get(key),
        }
        for row, key, unit in MORE_ROWS
    ]


def _precision_rows(results: Results) -> list[Results]:
    settings, case = results["settings"], results["cases"]["precision"]
    title = f"{settings['size']}, crop {settings['crop']}³, first click"
    rows: list[Results] = [{title: "float32", "s": case["float32"]["first_click_s"], "float32 / this": None}]
    for name, lower in results["precisions"].items():
        apart = f"{lower['largest_difference_of_probability']:.0e}"
        seconds, ratio = case[name]["first_click_s"], lower["first_click_s"]
        rows.append({title: name, "s": seconds, "float32 / this": ratio, "probabilities differ by at most": apart})
    return rows


def _encoder_rows(encoder: Results, rates: Results) -> list[Results]:
    return [
        {
            "image encoder": row,
            "TFLOP": encoder[f"{part}_operations"] / 1e12,
            "s": encoder[f"{part}_s"],
            "GFLOP/s": rates[part] / 1e9,
            "of the best matrix product": f"{100 * rates[f'{part}_share']:.0f} %",
            **({"of the peak": f"{100 * rates[f'{part}_of_peak']:.0f} %"} if f"{part}_of_peak" in rates else {}),
        }
        for row, part in (("blocks", "blocks"), ("whole", "encoder"))
    ]


def _tiny_rows(tiny: Results) -> list[Results]:
    shape = " × ".join(str(n) for n in tiny["scan_shape"])
    title = f"voxsam-tiny ({tiny['weights']} weights), scan of {shape} in memory"
    return [{title: row, "VoxSAM": tiny[key] / unit} for row, key, unit in MORE_ROWS]


def _reading_rows(case: Results) -> list[Results]:
    shape = " × ".join(str(n) for n in case["scan_shape"])
    title, unpacking = f".nii.gz of {shape}, {case['packed_bytes'] / 1e6:.0f} MB", case["unpacking_s"]
    rows = (
        ("Unpacked by Python's gzip", unpacking),
        ("Read by VoxSAM", case["reading_s"]),
        ("First crop cut and normalised", case["first_crop_s"]),
        ("Read, and first crop", case["reading_s"] + case["first_crop_s"]),
    )
    return [{title: row, "s": seconds, "of unpacking": f"{100 * seconds / unpacking:.0f} %"} for row, seconds in rows]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `--quick` sets size and crop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="vit_b")
    parser.add_argument("--crop", type=int, default=128, help="side of the crop, voxels")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--skip-reference", action="store_true", help="leave the reference implementation out")
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    parser.add_argument("--write", type=Path, help="Markdown file with the markers <!-- bench --> and <!-- /bench -->")
    options = parser.parse_args(arguments)
    if options.quick:
        options.size, options.crop = "tiny", 32
    stride = SIZES[options.size].stride
    if options.crop < stride or options.crop % stride:
        parser.error(f"--crop {options.crop}: must be a multiple of {stride}")
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    options = parse(arguments)
    settings = {key: getattr(options, key) for key in ("size", "crop", "threads", "quick")}
    results = measure(settings, options.skip_reference)
    text = report(results)
    print(text)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.write is not None:
        write_between_markers(options.write, MARKER, text)


if __name__ == "__main__":
    main()
