"""Validation lesions: painted ones fixed before training, sarcomas and lesions_ct, each in its whole scan.

`python -m voxsam.lab.engine.validation DATA OUT` writes the painted ones as a data set, so that any system can be
scored on them: `voxsam evaluate OUT`, `voxsam benchmark OUT --server URL`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.ndimage

from voxsam.io import read_volume
from voxsam.lab.data.layouts import write_labelled
from voxsam.lab.engine.load import Part, cases
from voxsam.lab.engine.painting import BONE, FAT, LUNG, SOFT, Site, draw_look, draw_shape, paint
from voxsam.lab.engine.scans import ORGAN, Scan
from voxsam.volume import Volume

BINS_MM = ((10.0, 20.0), (20.0, 40.0), (40.0, 80.0), (80.0, 120.0))
PER_BIN = 8
KINDS = (ORGAN, ORGAN, LUNG, ORGAN, SOFT, ORGAN, LUNG, FAT)  # places of a bin's lesions, in turn
TISSUE = {ORGAN: SOFT, SOFT: SOFT, LUNG: LUNG, FAT: FAT, BONE: BONE}
TRIES = 200
SEED = 20_260  # of the painted lesions, never changed


@dataclass(frozen=True)
class Lesion:
    """A lesion of a scan: a name that begins with the scan's, a group in tables, a mask (uint8) on the scan's grid."""

    name: str
    group: str
    scan: Volume
    mask: Volume

    @property
    def diameter_mm(self) -> float:
        """The diameter of a sphere of its volume."""
        return float(np.cbrt(self.mask.volume_ml * 6000 / np.pi))


def sarcomas(folder: Path, part: Part = "validation") -> Iterator[Lesion]:
    """The sarcomas of a part of the split, each the whole label of its scan."""
    root = folder / "sarcoma_ct"
    for case in cases("sarcoma_ct", part):
        scan = read_volume(root / "imagesTr" / f"{case}_0000.nii.gz")
        label = read_volume(root / "labelsTr" / f"{case}.nii.gz", labels=True)
        yield Lesion(case, "sarcomas", scan, label.with_array((label.array > 0).astype(np.uint8)))


def whole_ct(folder: Path) -> Iterator[Lesion]:
    """The lesions of lesions_ct one by one."""
    root = folder / "lesions_ct"
    for case in cases("lesions_ct", "validation"):
        scan = read_volume(root / "imagesTr" / f"{case}_0000.nii.gz")
        numbers = read_volume(root / "labelsInstances" / f"{case}.nii.gz", labels=True)
        for number in range(1, int(numbers.array.max()) + 1):
            mask = numbers.with_array((numbers.array == number).astype(np.uint8))
            yield Lesion(f"{case} {number}", "lesions_ct", scan, mask)


def backgrounds(folder: Path, part: Part = "validation") -> list[tuple[Scan, Volume]]:
    """The scans without labels, as `upright`."""
    root = folder / "backgrounds_ct" / "imagesTr"
    return [upright(case, read_volume(root / f"{case}_0000.nii.gz")) for case in cases("backgrounds_ct", part)]


def upright(case: str, volume: Volume) -> tuple[Scan, Volume]:
    """A CT scan, and the volume in SAR order that its places refer to."""
    turned = volume.reorient("SAR")
    return Scan.of(case, volume), turned.with_array(np.ascontiguousarray(turned.array), "CT")


def painted(folder: Path, seed: int = SEED, per_bin: int = PER_BIN, part: Part = "validation") -> Iterator[Lesion]:
    """`per_bin` painted lesions for each range of diameters, in turn in the backgrounds of a part of the split."""
    scans = backgrounds(folder, part)
    for number, (low, high) in enumerate(BINS_MM):
        group = f"painted {low:.0f}-{high:.0f} mm" if high < BINS_MM[-1][1] else f"painted over {low:.0f} mm"
        for place in range(per_bin):
            rng = np.random.default_rng([seed, number, place])
            scan, volume = scans[place % len(scans)]
            kind = KINDS[place % len(KINDS)]
            yield _painted(f"{scan.name} {low:.0f} {place}", group, scan, volume, kind, (low, high), rng)


def _painted(
    name: str,
    group: str,
    scan: Scan,
    volume: Volume,
    kind: int,
    range_mm: tuple[float, float],
    rng: np.random.Generator,
) -> Lesion:
    """A scan with one lesion whose painted diameter is in a range; in soft tissue if there is no place of this kind."""
    kind = kind if len(scan.places[kind]) else SOFT  # with a sharp kernel no tissue is homogeneous
    spacing = volume.grid.spacing_mm
    for _ in range(TRIES):
        places = scan.places[kind]
        diameter = float(np.exp(rng.uniform(*np.log(range_mm))))
        at = places[rng.integers(len(places))] / spacing - 0.5
        reach = np.ceil((0.9 * diameter + 10) / spacing).astype(int)
        low = np.maximum(np.rint(at).astype(int) - reach, 0)
        box = tuple(slice(int(a), int(b)) for a, b in zip(low, np.rint(at).astype(int) + reach + 1, strict=True))
        site = Site.of(volume.array[box].astype(np.float32), spacing)
        around = scipy.ndimage.map_coordinates(site.smooth, (at - low)[:, None], order=0, mode="nearest")[0]
        look = draw_look(diameter, TISSUE[kind], float(around), rng)
        done = paint(site, at - low, draw_shape(diameter, rng), look, rng, None)
        if done is None:
            continue
        array, mask = volume.array.copy(), np.zeros(volume.array.shape, np.uint8)
        array[box], mask[box] = np.rint(done[0].image), done[1]
        lesion = Lesion(name, group, Volume(array, volume.grid, "CT"), Volume(mask, volume.grid, "SEG"))
        if range_mm[0] <= lesion.diameter_mm < range_mm[1] * 1.05:
            return lesion
    raise AssertionError(f"no lesion {name} in {TRIES} tries")


if __name__ == "__main__":
    written = ((lesion.name.replace(" ", "_"), lesion.scan, lesion.mask) for lesion in painted(Path(sys.argv[1])))
    write_labelled(Path(sys.argv[2]), written, "real CT scans, each with one painted lesion")
