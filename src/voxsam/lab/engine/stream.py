"""EngineStream: the training samples of the data engine; sample n of a seed is always the same.

Each is a crop, the target in it, and the first clicks. Targets are painted lesions, real nodules pasted into a lung
with room, organs, stable regions of scans, sarcomas, and lesions in MR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from torch.utils.data import Dataset

from voxsam.errors import InputError, InternalError
from voxsam.lab.data.sampling import Sample, draw_points
from voxsam.lab.engine.crops import EngineSettings, Frame, cut_to, draw_frame, draw_spacing, normalised
from voxsam.lab.engine.painting import (
    BONE,
    FAT,
    LUNG,
    SOFT,
    Site,
    draw_abutting,
    draw_look,
    draw_shape,
    like,
    paint,
    tissue_of,
)
from voxsam.lab.engine.scans import GAP, ORGAN, WALL, Scan
from voxsam.lab.engine.voxels import Image, Mask, dilated, eroded, parts_of, sampled, smoothed
from voxsam.preprocess import Preprocessing

TRIES = 60  # to draw one sample: there may be no room for a lesion, or no region around a voxel
# Where lesions are painted, how large they may be there, and in which tissue they lie.
PLACES = {ORGAN: 0.42, SOFT: 0.13, LUNG: 0.14, FAT: 0.06, BONE: 0.05, GAP: 0.12, WALL: 0.08}
LARGEST_MM = {ORGAN: 150.0, SOFT: 150.0, LUNG: 90.0, FAT: 150.0, BONE: 70.0, GAP: 35.0, WALL: 90.0}
TISSUE = {ORGAN: SOFT, GAP: FAT, WALL: LUNG}
SHORTEST, LONGEST = 4.0, 1.8  # length of a lesion at any scale: at least in voxels, at most in crops
FILM = 0.4  # of the lesions that abut soft tissue: a voxel of fat or lung is left between
PUSHING_MM = 40.0  # larger lesions grow into other tissues, or push them away
PUSHED = ((SOFT, FAT), ())  # tissues that such a lesion stays in
OTHERS = 5  # most other lesions beside the painted one
APART = 2  # voxels between it and those, at least
PASTE_VOXELS = 1.0  # over which a pasted nodule fades into the lung
FINER = 0.7  # finest spacing of a crop, as a fraction of a labelled scan's spacing
FILLED = 0.35  # of the crops that reach beyond a sarcoma's scan: filled with other tissue
SMALLEST_NODULE = 12  # voxels
# Regions
TOLERANCES_HU = 12.0 * 1.45 ** np.arange(6)  # between the seed and the threshold
SMALLEST, LARGEST = 40, 30_000  # voxels
GROWTH = 0.6  # of the log size from one tolerance to the next: a region that grows faster has no border of its own
AT_BORDER = 0.02  # fraction of the crop's outermost voxels that a region may take
WINDOW_HU = (-250.0, 250.0)  # intensities beyond are not distinguished: lung from air, bone from bone


@dataclass(frozen=True)
class Nodule:
    """A real nodule: `image` in HU and `mask`, both (D, H, W) at 1 mm, SAR."""

    image: Image
    mask: Image


@dataclass(frozen=True)
class Sources:
    """The data that samples are made from."""

    backgrounds: Sequence[Scan]
    organs: Sequence[Scan] = ()  # with labels 1..n
    nodules: Sequence[Nodule] = ()
    sarcomas: Sequence[Scan] = ()  # with label 1
    mr: Sequence[Scan] = ()  # with label 1, standardised: as if they were HU
    seen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # folder -> case -> its content (voxsam.seen)


Drawn = tuple[Image, Mask, Mask, Frame]  # image in HU, target, mask of the scan, the crop's axes


class EngineStream(Dataset[Sample]):
    """`length` samples with crops of `side` voxels. Raises InputError if a source with a share has no data."""

    def __init__(
        self,
        sources: Sources,
        settings: EngineSettings,
        preprocessing: Preprocessing,
        side: int,
        length: int,
        seed: int,
    ) -> None:
        self.sources, self.settings, self.preprocessing = sources, settings, preprocessing
        self.side, self.length, self.seed = side, length, seed
        self._draw: dict[str, Callable[[np.random.Generator], Drawn | None]] = {
            "painted": self._painted,
            "nodules": self._nodule,
            "regions": self._region,
            "organs": self._organ,
            "sarcomas": self._sarcoma,
            "mr": self._mr,
        }
        self._shares = settings.shares()
        have = {name: getattr(sources, name) for name in ("nodules", "organs", "sarcomas", "mr")}
        for source, share in self._shares.items():
            if share and not have.get(source, sources.backgrounds):
                given = f"a share of {share:.2f} of {source}, of which the data has none"
                raise InputError(given, "data for each source with a share", "give its folder, or set the share to 0")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, number])
        kinds = list(self._shares)
        for _ in range(TRIES):
            kind = kinds[int(rng.choice(len(kinds), p=list(self._shares.values())))]
            drawn = self._draw[kind](rng)
            if drawn is not None:
                return {**self._finish(*drawn, rng), "number": np.array(number)}
        raise InternalError(f"sample {number} of seed {self.seed} could not be drawn in {TRIES} tries")

    def _finish(self, image: NDArray, label: Mask, seen: Mask, frame: Frame, rng: np.random.Generator) -> Sample:
        if rng.random() < self.settings.cut:
            seen = seen & cut_to(label, np.linalg.norm(frame, axis=0), rng)
        label = label & seen
        crop = normalised(image, seen, self.settings, self.preprocessing, rng)
        centred = bool(label[(self.side // 2,) * 3])
        points, labels = draw_points("clicks", label, False, centred, rng)
        return {"crop": crop[None], "label": label[None].astype(np.float32), "points": points, "labels": labels}

    def _read(
        self,
        scan: Scan,
        place: NDArray[np.float64],
        frame: Frame,
        rng: np.random.Generator,
        aside: NDArray[np.float64] | float = 0.0,
    ) -> tuple[Image, NDArray[np.uint8] | None, Mask, NDArray[np.floating]]:
        """A crop around the click at `place` + `aside` (mm): image, label, mask of the scan, and `place` in its voxels.

        The click is at the crop's centre or, in some crops, anywhere inside.
        """
        middle = place + aside
        if rng.random() < self.settings.off_centre:
            middle = middle + frame @ rng.uniform(-0.4, 0.4, 3) * self.side
        image, label, seen = scan.read(middle, frame, self.side)
        return image, label, seen, np.linalg.solve(frame, place - middle) + self.side // 2

    # Painted lesions

    def _painted(self, rng: np.random.Generator) -> Drawn | None:
        kind = int(rng.choice(list(PLACES), p=list(PLACES.values())))
        scan, place = self._place([*self.sources.backgrounds, *self.sources.organs], kind, rng)
        if scan is None:
            return None
        diameter, frame = self._size(LARGEST_MM[kind], rng)
        aside = rng.standard_normal(3)  # the click at the crop's centre may be anywhere in the lesion
        aside *= diameter / 2 * rng.uniform(0, 0.8) / np.linalg.norm(aside)
        image, _, seen, centre = self._read(scan, place, frame, rng, aside)
        return self._paint(image, seen, frame, centre, kind, diameter, rng)

    def _size(self, largest_mm: float, rng: np.random.Generator) -> tuple[float, Frame]:
        """A lesion's diameter (mm) and the axes of its crop: the size sets the spacing, or sometimes the reverse."""
        low, high = self.settings.diameter_mm
        high = min(high, largest_mm)
        if rng.random() >= self.settings.any_scale:
            diameter = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            own = self.settings.model_copy(update={"any_scale": 0.0})  # this was decided just now
            return diameter, draw_frame(draw_spacing(diameter, own, rng), self.settings, rng)
        spacing = float(np.exp(rng.uniform(*np.log(self.settings.spacing_mm))))
        across = np.exp(rng.uniform(np.log(SHORTEST), np.log(LONGEST * self.side)))
        return float(np.clip(across * spacing, low, high)), draw_frame(spacing, self.settings, rng)

    def _place(
        self, scans: Sequence[Scan], kind: int, rng: np.random.Generator
    ) -> tuple[Scan | None, NDArray[np.float64]]:
        """A random scan and a place of this kind in it, in mm."""
        able = [scan for scan in scans if len(scan.places.get(kind, ()))]
        if not able:
            return None, np.zeros(3)
        scan = able[int(rng.integers(len(able)))]
        places = scan.places[kind]
        return scan, places[rng.integers(len(places))] + rng.uniform(-1.5, 1.5, 3)

    def _paint(
        self,
        image: Image,
        seen: Mask,
        frame: Frame,
        centre: NDArray[np.floating],
        kind: int,
        diameter: float,
        rng: np.random.Generator,
    ) -> Drawn | None:
        """The crop with a lesion painted around `centre` (voxels), and sometimes others, similar or not."""
        site = Site.of(image, np.linalg.norm(frame, axis=0))
        at = np.rint(centre).astype(int).clip(0, self.side - 1)
        around = site.smooth[tuple(slice(max(0, a - 2), a + 3) for a in at)]
        tissue, avoid = TISSUE.get(kind, kind), ~seen
        if kind in (GAP, WALL):
            soft = tissue_of(site.smooth) == SOFT
            look = draw_abutting(diameter, tissue, float(np.median(site.smooth[soft])) if soft.any() else 40.0, rng)
            if rng.random() < FILM:
                avoid = avoid | dilated(soft)
        else:
            look = draw_look(diameter, tissue, float(around.mean()), rng)
            if diameter > PUSHING_MM and tissue in (SOFT, FAT):
                look = replace(look, keeps=PUSHED[int(rng.integers(len(PUSHED)))])
        done = paint(site, centre, draw_shape(diameter, rng), look, rng, avoid)
        if done is None:
            return None
        site, label = done
        if rng.random() < self.settings.neighbours:
            avoid = ~seen | dilated(label, APART)
            for _ in range(int(rng.integers(1, OTHERS + 1))):
                at = rng.integers(0, self.side, 3)
                if tissue_of(site.smooth[tuple(at)][None])[0] != tissue or avoid[tuple(at)]:
                    continue
                alike = (
                    like(look, rng) if rng.random() < 0.8 else draw_look(diameter, tissue, float(around.mean()), rng)
                )
                size = max(5.0, diameter * rng.uniform(0.3, 1.1))
                other = paint(site, at.astype(float), draw_shape(size, rng), alike, rng, avoid)
                if other is not None:
                    site, avoid = other[0], avoid | dilated(other[1], APART)
        return site.image, label, seen, frame

    # Real targets

    def _nodule(self, rng: np.random.Generator) -> Drawn | None:
        scan, place = self._place(self.sources.backgrounds, LUNG, rng)
        if scan is None:
            return None
        nodule = self.sources.nodules[int(rng.integers(len(self.sources.nodules)))]
        voxels = np.argwhere(nodule.mask > 0.5)
        diameter = float(np.ptp(voxels, axis=0).max() + 1)
        frame = draw_frame(draw_spacing(diameter, self.settings, rng), self.settings, rng)
        clicked = voxels[rng.integers(len(voxels))]
        image, _, seen, at = self._read(scan, place, frame, rng)
        # The nodule has its own rotation; its clicked voxel ends up at `place`.
        own = np.linalg.qr(rng.standard_normal((3, 3)))[0] if rng.random() < 0.5 else np.eye(3)
        matrix = own @ frame
        offset = clicked - matrix @ at
        size = (self.side,) * 3
        mask = sampled(nodule.mask, matrix, offset, size)  # 0 at its edge, hence also beyond it
        label = mask > 0.5
        if label.sum() < SMALLEST_NODULE:
            return None
        weight = (2 * smoothed(mask, PASTE_VOXELS)).clip(0, 1)
        image += weight * (sampled(nodule.image, matrix, offset, size) - image)
        return image, label & seen, seen, frame

    def _region(self, rng: np.random.Generator) -> Drawn | None:
        kind = int(rng.choice([ORGAN, SOFT, BONE], p=[0.3, 0.6, 0.1]))
        scan, place = self._place([*self.sources.backgrounds, *self.sources.sarcomas], kind, rng)
        if scan is None:
            return None
        frame = draw_frame(float(np.exp(rng.uniform(*np.log(self.settings.spacing_mm)))), self.settings, rng)
        image, _, seen, at = self._read(scan, place, frame, rng)
        d, h, w = np.rint(at).astype(int).clip(0, self.side - 1).tolist()
        region = stable_region(np.where(seen, image, np.float32(-1024)), (d, h, w), rng.uniform(0.6, 1.4), rng)
        return None if region is None else (image, region & seen, seen, frame)

    def _organ(self, rng: np.random.Generator) -> Drawn | None:
        scan = self.sources.organs[int(rng.integers(len(self.sources.organs)))]
        return self._labelled(scan, int(rng.choice(list(scan.labelled))), rng)

    def _sarcoma(self, rng: np.random.Generator) -> Drawn | None:
        drawn = self._labelled(self.sources.sarcomas[int(rng.integers(len(self.sources.sarcomas)))], 1, rng)
        if drawn is None:
            return None
        image, label, seen, frame = drawn
        if rng.random() < 0.7:
            seen = seen & cut_to(label, np.linalg.norm(frame, axis=0), rng)
        if rng.random() < FILLED and not seen.all():
            scan, place = self._place(self.sources.backgrounds, SOFT, rng)
            if scan is not None:
                other, _, there = scan.read(place, frame, self.side)
                image, seen = np.where(seen, image, other), seen | there
        return image, label, seen, frame

    def _mr(self, rng: np.random.Generator) -> Drawn | None:
        return self._labelled(self.sources.mr[int(rng.integers(len(self.sources.mr)))], 1, rng)

    def _labelled(self, scan: Scan, value: int, rng: np.random.Generator) -> Drawn | None:
        """A crop around a voxel of a label; the target is the connected part that the voxel belongs to."""
        if value not in scan.labelled:
            return None
        voxels, diameters = scan.labelled[value]
        chosen = int(rng.integers(len(voxels)))
        place = voxels[chosen] + rng.uniform(-0.4, 0.4, 3) * scan.levels[-1].spacing_mm
        finest = FINER * float(scan.levels[0].spacing_mm.max())  # labels drawn on coarse voxels have steps
        spacing = max(finest, draw_spacing(float(diameters[chosen]), self.settings, rng))
        frame = draw_frame(spacing, self.settings, rng)
        image, label, seen, at = self._read(scan, place, frame, rng)
        assert label is not None
        parts, _ = parts_of(label == value)
        number = parts[tuple(np.rint(at).astype(int).clip(0, self.side - 1))]
        return None if not number else (image, parts == number, seen, frame)


def stable_region(image: Image, seed: tuple[int, int, int], blur: float, rng: np.random.Generator) -> Mask | None:
    """A region (D, H, W) that a person might click around a voxel of an image smoothed by `blur` voxels, or None.

    A stable extremal region (after Matas et al., BMVC 2002): the voxels brighter (or darker) than a threshold that are
    connected to the seed by more than a thin bridge, at a threshold where the region hardly grows.
    """
    smooth = smoothed(image.clip(*WINDOW_HU), blur)
    above = smooth - smooth[seed] if rng.random() < 0.6 else smooth[seed] - smooth
    bridge = int(rng.integers(1, 3))
    before, stable = None, []
    for tolerance in TOLERANCES_HU:
        region = _joined(above >= -tolerance, seed, bridge)
        size = int(region.sum())
        if size > LARGEST:
            break
        if before is not None and before.sum() >= SMALLEST and np.log(size / before.sum()) <= GROWTH:
            stable.append(region)
        before = region
    if not stable:
        return None
    region = np.asarray(scipy.ndimage.binary_fill_holes(stable[int(rng.integers(len(stable)))]), dtype=bool)
    border = np.ones(region.shape, dtype=bool)
    border[1:-1, 1:-1, 1:-1] = False
    return region if region[border].mean() <= AT_BORDER else None


def _joined(mask: Mask, seed: tuple[int, int, int], bridge: int) -> Mask:
    """The part of a mask connected to a voxel by bridges wider than `bridge` voxels on either side; may be empty."""
    parts, _ = parts_of(eroded(mask, bridge, beyond=True))
    near = parts[tuple(slice(max(0, s - bridge), s + bridge + 1) for s in seed)]
    if not near.any():
        return np.zeros_like(mask)
    return dilated(parts == near[near > 0][0], bridge + 1, within=mask)
