"""Scans per hour of a cohort: with reading, segmenting and writing overlapped, or one after the other, in one run.

    python -m benchmarks.cohort [--scans 8] [--auto-scans 2] [--device cpu] [--threads N] [--quick] [-o FILE.json]
                                [--write docs/performance.md]

Generated scans of 512 x 512 x 150 voxels are written as .nii.gz first. With clicks it runs voxsam-tiny; automatic mode
runs a network of the same size with random weights (time does not depend on them). It also measures what overlapping
windows could share: how much the encoder's features of the same tissue differ between two windows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import TINY_PREPROCESSING
from benchmarks.machine import available_cores, describe_machine
from benchmarks.reading import big_scan
from voxsam.batch.listing import ScanTask, TableClick
from voxsam.batch.run import run_cohort
from voxsam.batch.worker import AHEAD, BatchOptions, ScanResult
from voxsam.io import write_volume
from voxsam.lab.evaluation.tables import markdown_table, write_between_markers
from voxsam.network.card import Card
from voxsam.network.network import VoxSAMNetwork
from voxsam.network.promptable import Promptable
from voxsam.network.sizes import TINY
from voxsam.preprocess import Window, read_crop
from voxsam.volume import Volume
from voxsam.weights import load_model, save_model

MARKER = "cohort"
SLICES = 150
WAYS = {"one after the other": 0, "at once": AHEAD}
STEPS = ("reading_s", "segmenting_s", "writing_s")
REPEATS = 2

Results = dict[str, Any]


def write_scans(folder: Path, count: int, factor: int) -> list[ScanTask]:
    """Write scans of 128 x 128 x 37 voxels times `factor`, around their lesion, with a click in each."""
    jobs = []
    for seed in range(count):
        phantom = big_scan(seed, factor)
        slices = SLICES * factor // 4
        first = min(max(0, phantom.click[2] - slices // 2), phantom.scan.grid.shape[2] - slices)
        grid = phantom.scan.grid.crop((0, 0, first), (*phantom.scan.grid.shape[:2], slices))
        path = folder / f"scan{seed}.nii.gz"
        write_volume(Volume(phantom.scan.array[..., first : first + slices], grid, "CT"), path)
        i, j, k = phantom.click
        jobs.append(ScanTask(f"scan{seed}", (path,), (TableClick((i, j, k - first)),)))
    return jobs


def measure_ways(jobs: Sequence[ScanTask], output: Path, settings: BatchOptions, repeats: int = REPEATS) -> Results:
    """Seconds of the cohort in each way, the fastest of `repeats`; for one after the other also those of each step."""
    found: Results = {way: float("inf") for way in WAYS}
    for _ in range(repeats):
        for way, ahead in WAYS.items():
            start = time.perf_counter()
            outcome = run_cohort(jobs, output, replace(settings, ahead=ahead), again=True)
            seconds = time.perf_counter() - start
            print(f"  {way}: {seconds:.1f} s", file=sys.stderr, flush=True)
            if outcome.failed:
                raise RuntimeError(outcome.failed[0].error)
            if ahead == 0 and seconds < found[way]:
                found |= _steps(outcome.rows)
            found[way] = min(found[way], seconds)
    found["scans"], found["scans_per_hour"] = len(jobs), {way: 3600 * len(jobs) / found[way] for way in WAYS}
    return found


def _steps(rows: Sequence[ScanResult]) -> Results:
    """Mean seconds of each step of a scan."""
    return {step: sum(getattr(row, step) for row in rows) / len(rows) for step in STEPS}


def shared_features(model: Promptable, volume: Volume, step: int) -> dict[str, float]:
    """How much the deepest features of two windows differ where they overlap, as a fraction of their norm.

    The second window is shifted by `step` voxels (a multiple of the stride) on one axis. "all" are the tokens in both,
    "middle" those at least a quarter of the side away from any face of either window.
    """
    side, stride = model.config.crop, model.config.stride
    model_grid = model.card.preprocessing.model_grid(volume.grid)
    start = [(n - side) // 2 for n in model_grid.shape]
    found = []
    for shift in (0, step):
        window = Window(model_grid, (start[0], start[1], start[2] + shift), (side,) * 3)
        crop = torch.from_numpy(read_crop(volume, window, model.card.preprocessing))[None, None]
        with torch.inference_mode():
            found.append(model.encode(crop)[-1][0])
    tokens, inner = step // stride, side // stride // 4
    one, other = found[0][..., tokens:], found[1][..., : found[1].shape[-1] - tokens]
    middle = (slice(None), *[slice(inner, -inner)] * 2, slice(inner - tokens, one.shape[-1] + tokens - inner))
    return {name: float((one[part] - other[part]).norm() / one[part].norm()) for name, part in _parts(middle).items()}


def _parts(middle: tuple[slice, ...]) -> dict[str, tuple[slice, ...]]:
    return {"all": (slice(None),), "middle": middle}


def measure(scans: int, auto_scans: int, device: str, quick: bool, repeats: int = REPEATS) -> Results:
    """Measure both modes, and what windows could share."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("writing scans ...", file=sys.stderr, flush=True)
        jobs = write_scans(folder, max(scans, auto_scans), 1 if quick else 4)
        clicked = BatchOptions(device=device)
        run_cohort(jobs[:1], folder / "warm", clicked)
        print("clicks ...", file=sys.stderr, flush=True)
        results["clicks"] = measure_ways(jobs[:scans], folder / "clicks", clicked, repeats)
        if auto_scans:
            print("automatic ...", file=sys.stderr, flush=True)
            automatic = _automatic(folder / "auto.safetensors", device)
            without = [replace(job, clicks=()) for job in jobs[:auto_scans]]
            results["automatic"] = measure_ways(without, folder / "auto", automatic, 1)
    model = load_model("voxsam-tiny", "cpu")
    results["shared"] = shared_features(model, big_scan(0, 1).scan, model.config.stride)
    return results


def _automatic(path: Path, device: str) -> BatchOptions:
    torch.manual_seed(0)
    save_model(VoxSAMNetwork(Card(name="auto", config=TINY, preprocessing=TINY_PREPROCESSING, automatic=True)), path)
    return BatchOptions(model=str(path), device=device, automatic=True)


def report(results: Results) -> str:
    """The table and the sentences around it, as Markdown."""
    machine = results["machine"]
    rows = [
        {
            f"512 × 512 × {SLICES}, .nii.gz": f"{mode}, {results[mode]['scans']} scans",
            "reading, s": results[mode]["reading_s"],
            "network, s": results[mode]["segmenting_s"],
            "writing, s": results[mode]["writing_s"],
            **{f"{way}, scans per hour": results[mode]["scans_per_hour"][way] for way in WAYS},
            "ratio": results[mode]["one after the other"] / results[mode]["at once"],
        }
        for mode in ("clicks", "automatic")
        if mode in results
    ]
    head = (
        f"{machine['cpu']}, {machine['threads']} threads, {results['device']}; torch {machine['torch']}, voxsam-tiny."
    )
    shared = results["shared"]
    tail = (
        "Deepest features of the same tissue in two windows, one token apart: they differ by"
        f" {100 * shared['all']:.0f} % of their size, {100 * shared['middle']:.0f} % in the middle of both."
    )
    return "\n\n".join([head, markdown_table(rows), tail])


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of each way, in turn; the faster counts")
    parser.add_argument("--auto-scans", type=int, default=2, help="in automatic mode; 0 leaves it out")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything run?")
    parser.add_argument("-o", "--output", type=Path, help="JSON file")
    parser.add_argument("--write", type=Path, help=f"Markdown file with the markers <!-- {MARKER} -->")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    repeats = 1 if options.quick else options.repeats
    results = measure(options.scans, options.auto_scans, options.device, options.quick, repeats)
    results |= {"machine": describe_machine(options.threads), "device": options.device}
    text = report(results)
    print(text)
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if options.write is not None:
        write_between_markers(options.write, MARKER, text)


if __name__ == "__main__":
    main()
