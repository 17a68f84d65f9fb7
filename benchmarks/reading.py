"""The time to open a scan: reading a large .nii.gz and cutting its first crop, compared with only decompressing it."""

from __future__ import annotations

import gzip
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from voxsam.io import read_volume, write_volume
from voxsam.phantoms import Phantom, make_phantom
from voxsam.preprocess import Preprocessing, Window, read_crop
from voxsam.volume import Volume

BIG_SCAN = (128, 128, 75)  # voxels of the phantom that is enlarged to 512 x 512 x 300
BIG_SCAN_MM = (3.2, 3.2, 4.0)
NOISE_HU = 12.0  # independent for each voxel: enlarged voxels would compress much better than a scan
REPEATS = 3
PIECE = 1 << 20


def big_scan(seed: int, factor: int = 4) -> Phantom:
    """A phantom of 512 x 512 x 300 voxels (`factor` 4), int16, with noise in every voxel."""
    small = make_phantom(seed, BIG_SCAN, BIG_SCAN_MM)
    array = small.scan.array.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)
    noise = np.random.default_rng(seed).standard_normal(array.shape, dtype=np.float32)
    array = array + (NOISE_HU * noise).astype(np.int16)
    scan = Volume(array, small.scan.grid.respace(small.scan.grid.spacing_mm / factor), "CT")
    return Phantom(scan, scan, tuple(factor * n for n in small.click))  # type: ignore[arg-type]


def measure_reading(preprocessing: Preprocessing, side: int, seed: int, quick: bool) -> dict[str, object]:
    """Least seconds to decompress a file with Python's gzip, to read it, and to cut a crop around the click."""
    phantom = big_scan(seed, 1 if quick else 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_volume(phantom.scan, path)
        packed = path.stat().st_size
        unpacking, reading, cropping = [], [], []
        for _ in range(REPEATS):
            unpacking.append(_seconds(lambda: _unpack(path)))
            start = time.perf_counter()
            volume = read_volume(path)
            reading.append(time.perf_counter() - start)
            model_grid = preprocessing.model_grid(volume.grid)
            window = Window.around(model_grid, volume.grid.index_in(model_grid, phantom.click), (side,) * 3)
            cropping.append(_seconds(lambda v=volume, w=window: read_crop(v, w, preprocessing)))
    return {
        "scan_shape": list(phantom.scan.array.shape),
        "packed_bytes": packed,
        "unpacking_s": min(unpacking),
        "reading_s": min(reading),
        "first_crop_s": min(cropping),
        "reading_and_crop_over_unpacking": (min(reading) + min(cropping)) / min(unpacking),
    }


def _unpack(path: Path) -> None:
    with gzip.open(path, "rb") as stream:
        while stream.read(PIECE):
            pass


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
