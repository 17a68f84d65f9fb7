"""Training crops per second: read and resampled from .nii.gz for every crop, or read from the prepared store.

    python -m benchmarks.sampling                    # a volume of 512 x 512 x 300, crops of 128 at 1 mm
    python -m benchmarks.sampling --zlib             # the same, .nii.gz unpacked as without the extra "speed"
    python -m benchmarks.sampling --shape 64,64,40 --crop 32 --crops 3

Both ways give the same crops: normalised image and label around a random voxel of the tumour. Files are read whole, as
a loader without a store must; "whole scan" resamples all of it, as the released loader does, "crop only" just the crop.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import available_cores, describe_machine
from voxsam.geometry import Grid
from voxsam.io import gunzip, read_volume, write_mask, write_volume
from voxsam.lab.data.prepare import Options, prepare
from voxsam.lab.data.sampling import Labelled
from voxsam.lab.data.store import PreparedData
from voxsam.lab.evaluation.tables import markdown_table
from voxsam.phantoms import make_phantom
from voxsam.preprocess import Preprocessing, Window, read_crop
from voxsam.resample import resample
from voxsam.volume import Volume

SPACING_MM = (0.8, 0.8, 1.0)
TILE = (128, 128, 100)  # drawing a large phantom takes minutes; tiles have the same noise, and compress alike
Crop = tuple[NDArray[np.float32], NDArray[np.float32]]


def make_raw(folder: Path, shape: Sequence[int]) -> Path:
    """Write a data set of one scan of `shape` in nnU-Net raw layout: a tiled phantom, its tumour in the first tile."""
    phantom = make_phantom(0, TILE, tuple(4 * s for s in SPACING_MM), axes="RAS")
    tiles = [-(-n // t) for n, t in zip(shape, TILE, strict=True)]
    box = tuple(slice(n) for n in shape)
    middle = np.argwhere(phantom.label.array).mean(0).astype(int)
    shift = [min(n, t) // 2 - at for n, t, at in zip(shape, TILE, middle, strict=True)]
    scan, label = (np.tile(np.roll(v.array, shift, (0, 1, 2)), tiles)[box] for v in (phantom.scan, phantom.label))
    grid = Grid.from_spacing(shape, SPACING_MM)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    write_volume(Volume(scan, grid, "CT"), folder / "imagesTr" / "a_0000.nii.gz")
    write_mask(Volume(label, grid, "SEG"), folder / "labelsTr" / "a.nii.gz")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return folder


def from_store(case: Labelled, preprocessing: Preprocessing, click: NDArray, side: int) -> Crop:
    """The crop around `click` (a voxel of the store), read from the store."""
    window = Window.around(preprocessing.model_grid(case.scan.grid), click, (side,) * 3)
    label = preprocessing.model_copy(update={"clip": (0.0, 1.0), "mean": 0.0, "sd": 1.0})
    return read_crop(case.scan, window, preprocessing), read_crop(case.label, window, label)


def from_files(raw: Path, preprocessing: Preprocessing, click: NDArray, side: int, whole: bool) -> Crop:
    """The same crop from the files, with the `whole` scan resampled first or only the crop."""
    scan = read_volume(raw / "imagesTr" / "a_0000.nii.gz")
    label = read_volume(raw / "labelsTr" / "a.nii.gz", labels=True)
    if whole:
        model_grid = preprocessing.model_grid(scan.grid)
        scan, label = (Volume(resample(v, model_grid), model_grid) for v in (scan, label))
    case = Labelled(scan, label, np.empty((0, 3), np.int32))
    return from_store(case, preprocessing, click, side)


def seconds_per_crop(draw: Callable[[NDArray], Crop], clicks: Sequence[NDArray]) -> tuple[float, float]:
    """Mean seconds per crop of `draw`: wall-clock time, and processor time of this process over all cores."""
    start, busy = time.perf_counter(), time.process_time()
    for click in clicks:
        draw(click)
    return (time.perf_counter() - start) / len(clicks), (time.process_time() - busy) / len(clicks)


def measure(shape: Sequence[int], side: int, crops: int) -> list[dict[str, object]]:
    """Measure all ways; return the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        raw = make_raw(Path(folder) / "raw", shape)
        start = time.perf_counter()
        store: PreparedData = prepare(raw, Path(folder) / "store", Options(spacing_mm=(1.0, 1.0, 1.0), workers=1)).store
        seconds = time.perf_counter() - start
        case, preprocessing = store.load("a"), store.preprocessing
        rng = np.random.default_rng(0)
        clicks = [case.foreground[rng.integers(len(case.foreground))] for _ in range(crops)]
        few = clicks[: max(1, crops // 20)]
        ours = f"the store (prepared once in {seconds:.0f} s)"
        ways: dict[str, tuple[Callable[[NDArray], Crop], Sequence[NDArray]]] = {
            ours: (
                lambda c: from_store(case, preprocessing, c, side),
                clicks,
            ),
            ".nii.gz, whole scan resampled": (lambda c: from_files(raw, preprocessing, c, side, True), few),
            ".nii.gz, crop only resampled": (lambda c: from_files(raw, preprocessing, c, side, False), few),
        }
        taken = {title: seconds_per_crop(*way) for title, way in ways.items()}
    (best, least), *_ = taken.values()
    return [
        {"crops from": title, "crops/s": 1 / clock, "CPU s a crop": busy}
        | {"times the store's, clock": clock / best, "CPU": busy / least}
        for title, (clock, busy) in taken.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="512,512,300", help="of the scan, voxels")
    parser.add_argument("--crop", type=int, default=128, help="side of a crop, voxels")
    parser.add_argument(
        "--crops", type=int, default=60, help="drawn from the store; a twentieth of them from the files"
    )
    parser.add_argument("--zlib", action="store_true", help="unpack with zlib, also where ISA-L is installed")
    options = parser.parse_args(arguments)
    if options.zlib:
        gunzip.inflate = zlib
    shape = [int(n) for n in options.shape.split(",")]
    machine = describe_machine(available_cores())
    size = " x ".join(map(str, shape))
    unpacked = "zlib" if gunzip.inflate is zlib else "ISA-L"
    print(f"{machine['cpu']}, {machine['cores']} cores; scan of {size}, crops of {options.crop}³ with their label.")
    print(f".nii.gz unpacked by {unpacked}.\n")
    print(markdown_table(measure(shape, options.crop, options.crops)))


if __name__ == "__main__":
    main()
