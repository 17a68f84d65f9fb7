"""Training samples: an augmented crop on or off a tumour, its label, and the first clicks; and the stream of them.

The stream mixes real and generated scans; sample n is always the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from voxsam.errors import FileError, ImageError, InputError
from voxsam.io import read_channels, read_volume
from voxsam.lab.data.augmentation import Augmentation, apply
from voxsam.lab.data.cases import Case, Labelled, find_cases
from voxsam.lab.data.store import PreparedData, find_description
from voxsam.phantoms import CLOSE, Scene, make_phantom
from voxsam.preprocess import Preprocessing, Slices, Window, standardised_as
from voxsam.resample import resample
from voxsam.seen import content

Prompts = Literal["clicks", "paper", "released", "none"]
Points = tuple[NDArray[np.float32], NDArray[np.int64]]  # (N, 3) crop voxels; (N,) 1, or -1 for padding

IN_TUMOUR, IN_BACKGROUND = 40, 10  # points per step (paper, Sec. 3.3)
RELEASED_IN_TUMOUR, RELEASED_ANYWHERE = 10, 20  # docs/released.md, "Training"
MAX_CLICKS = 10
SEVERAL = 0.3  # probability of more than one click


def draw_points(
    prompts: Prompts, label: NDArray[np.bool_], beside: bool, centred: bool, rng: np.random.Generator
) -> Points:
    """Draw points on the label (D, H, W) of a crop; `beside` marks a crop drawn around a voxel outside the tumour.

    "clicks": one click in the tumour, sometimes up to ten, or one outside it in a crop `beside` it; the first is next
    to the centre if the crop is `centred` or `beside`, as in a session's first crop. "paper": 40 points in the tumour,
    or 10 in the background of a crop without tumour (Sec. 3.3). "released": 10 in the tumour, if there is any, and 20
    anywhere (docs/released.md, "Training"). "none": no points at all.
    """
    if prompts == "none":
        return np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    if prompts == "clicks":
        several = not beside and rng.random() < SEVERAL
        count = int(rng.integers(2, MAX_CLICKS + 1)) if several else 1
        points, labels = some_voxels(label, count, rng, MAX_CLICKS)
        if beside or centred:
            middle = np.array(label.shape) // 2
            voxels = np.argwhere(label != beside)
            points[0] = voxels[np.abs(voxels - middle).sum(1).argmin()] if len(voxels) else middle
            labels[0] = 1
        return points, labels
    if prompts == "paper":
        tumour = bool(label.any())
        return some_voxels(label if tumour else ~label, IN_TUMOUR if tumour else IN_BACKGROUND, rng, IN_TUMOUR)
    inner, labels = some_voxels(label, RELEASED_IN_TUMOUR, rng, RELEASED_IN_TUMOUR)
    outer = rng.integers(0, label.shape[0], (RELEASED_ANYWHERE, 3)).astype(np.float32)
    return np.concatenate([inner, outer]), np.concatenate([labels, np.ones(RELEASED_ANYWHERE, np.int64)])


def some_voxels(region: NDArray[np.bool_], count: int, rng: np.random.Generator, length: int) -> Points:
    """Draw `count` voxels of a region with replacement, as points and labels padded to `length`."""
    points, labels = np.zeros((length, 3), np.float32), np.full(length, -1, np.int64)
    voxels = np.argwhere(region)
    if len(voxels):
        points[:count], labels[:count] = voxels[rng.integers(len(voxels), size=count)], 1
    return points, labels


SEAM = 3  # voxels beyond the block over which its border fades into the other tissue
OTHERS = 4  # scans to try, until nothing is left to fill
PLACES = 6  # places to try in each
AT_TUMOUR = 0.5  # fraction of places where the block covers the other scan's tumour


def find_place(
    other: Labelled, preprocessing: Preprocessing, shape: tuple[int, int, int], block: Slices, rng: np.random.Generator
) -> Window | None:
    """A window of `shape` on the model grid of `other` whose tissue can surround `block` (in the window's voxels).

    No tumour of `other` lies in the window outside the block: it would be unlabelled. None if no such place is found.
    """
    model_grid = preprocessing.model_grid(other.scan.grid)
    tumour = other.scan.grid.index_in(model_grid, other.foreground)
    first, last = np.array([[part.start, part.stop - 1] for part in block]).T
    for _ in range(PLACES):
        voxel = other.tumour_voxel(rng) if rng.random() < AT_TUMOUR else other.background_voxel(rng)
        if voxel is None:
            continue
        start = np.rint(other.scan.grid.index_in(model_grid, voxel) - (first + last) / 2).astype(int)
        at = tumour - start
        shown = ((at > -1) & (at < np.array(shape))).all(1) & ~((at >= first) & (at <= last)).all(1)
        if not shown.any():
            a, b, c = start.tolist()
            return Window(model_grid, (a, b, c), shape)
    return None


def fill(
    image: NDArray[np.float32],
    seen: NDArray[np.bool_],
    block: Slices,
    tissue: NDArray[np.float32],
    known: NDArray[np.bool_],
) -> None:
    """Put `tissue` (C, ...) into `image` (C, ...) in place where it is `known` (...) and not `seen`; update `seen`.

    Voxels already seen are unchanged. The outermost voxels of `block` fade out over SEAM voxels beyond it.
    """
    lines = [np.arange(n) for n in seen.shape]
    inner = [line.clip(part.start, part.stop - 1) for line, part in zip(lines, block, strict=True)]
    apart = np.ix_(*(np.square(a - b, dtype=np.float32) for a, b in zip(lines, inner, strict=True)))
    distance = np.sqrt(apart[0] + apart[1] + apart[2])
    own = np.clip(1 - distance / np.float32(SEAM + 1), 0, 1)
    use = known & ~seen
    edge = image[:, *np.ix_(*inner)]
    image[:, use] = (own * edge + (1 - own) * tissue)[:, use]
    seen |= use


Sample = dict[str, NDArray]
UNIT_SD = 40.0  # HU, s.d. of a typical tumour: intensities of other modalities are scaled to it for augmentation
TUMOUR, SEEN = 1, 2  # bits of the array that the transforms take as the label


class Sampler:
    """Draws samples for one model: crops of `side` voxels, and their first points (`draw_points`).

    With "clicks", the training step adds clicks where the model is wrong. With "none" the model has to find every
    tumour by itself: the target is all tumour in the crop, wherever the crop was drawn.
    """

    def __init__(
        self, preprocessing: Preprocessing, side: int, augmentation: Augmentation, prompts: Prompts = "clicks"
    ) -> None:
        self.preprocessing, self.side, self.augmentation = preprocessing, side, augmentation
        self.prompts: Prompts = prompts
        channels = (preprocessing.channel(number) for number in range(preprocessing.channels))
        self._units = np.array([1.0 if c.modality == "CT" else c.sd / UNIT_SD for c in channels], np.float32)
        self._transform, self._shifter = augmentation.transform(side), augmentation.shifter()

    def draw(self, case: Labelled, rng: np.random.Generator, others: Sequence[Labelled] = ()) -> Sample:
        """`crop` (C, D, H, W) float32, `label` (1, D, H, W) float32 0/1, `points` (N, 3) float32, `labels` (N,) int64.

        `points` are crop voxels; their labels are 1, or -1 for padding. A click outside the tumour has an empty label.
        `others` are scans whose tissue may surround the case's.
        Raises ImageError for a case of too few channels.
        """
        a, use = self.augmentation, self.preprocessing
        if len(case.images) < use.channels:
            given, expected = f"a case of {len(case.images)} image channels", f"{use.channels}, as in the recipe"
            raise ImageError(given, expected, "prepare the data set with all its channels")
        beside = case.background_voxel(rng) if rng.random() < a.background else None
        voxel = case.tumour_voxel(rng) if beside is None else beside
        model_grid = use.model_grid(case.scan.grid)
        centre = case.scan.grid.index_in(model_grid, voxel)
        off_centre = beside is None and rng.random() < a.off_centre
        if off_centre:
            within = np.minimum(a.off_centre_mm / np.array(use.spacing_mm), self.side // 2 - 1)  # stay in the crop
            centre = centre + rng.uniform(-1, 1, 3) * within
        if a.body:
            centre = _into(case.scan.grid.index_in(model_grid, case.body), centre, a.room(self.side))
        window = Window.around(model_grid, centre, (a.reach(self.side),) * 3)
        image, bits, block = self._read(case, window, _limits(case, a, rng))
        if a.surroundings and rng.random() < a.surroundings:
            self._surround(case, others, image, bits, block, rng)
        at = np.rint(case.scan.grid.index_in(window.grid, voxel)).astype(int)
        if beside is None and ((at >= 0) & (at < window.shape)).all():
            bits[tuple(at)] |= TUMOUR  # a lesion thinner than the crop's voxels must not vanish under its click
        unit = self._units[:, None, None, None]
        image, bits = apply(self._transform, image / unit, bits, int(rng.integers(2**32)))
        return self._sample(image * unit, bits.astype(np.uint8), beside is not None, a.centred and not off_centre, rng)

    def _read(
        self, case: Labelled, window: Window, limits: tuple[NDArray, NDArray]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], Slices]:
        """Intensities (C, ...) less their mean, bits (...) of TUMOUR and SEEN, and the box where the scan is visible.

        The box ends at `limits` and at the scan's borders; outside it both are 0.
        """
        use = self.preprocessing
        image, bits = np.zeros((use.channels, *window.shape), np.float32), np.zeros(window.shape, np.uint8)
        at = case.scan.grid.index_in(window.grid, np.stack(limits))
        low, high = np.ceil(at.min(0)).astype(int), np.floor(at.max(0)).astype(int) + 1
        box: Slices = tuple(  # type: ignore[assignment]
            slice(max(p.start, a), max(p.start, a, min(p.stop, b)))
            for p, a, b in zip(window.inside(), low, high, strict=True)
        )
        if all(p.stop > p.start for p in box):
            grid = window.grid.crop([p.start for p in box], [p.stop - p.start for p in box])
            for number in range(use.channels):
                values = resample(case.images[number], grid, use.interpolation)
                image[number][box] = values - use.channel(number).mean
            bits[box] = SEEN
            bits[box] += np.uint8(TUMOUR) * (resample(case.label, grid, "area") > 0.5)
        return image, bits, box

    def _surround(
        self,
        case: Labelled,
        others: Sequence[Labelled],
        image: NDArray,
        bits: NDArray,
        block: Slices,
        rng: np.random.Generator,
    ) -> None:
        """Fill the crop outside `block` with tissue of scans of the same modality, in place; never with tumour."""
        own = [image.modality for image in case.images]
        alike = (other for other in others if [image.modality for image in other.images] == own)
        others = [other for other in alike if other.scan is not case.scan]
        seen = (bits & SEEN) > 0
        if not seen.any():
            return
        for number in rng.permutation(len(others))[:OTHERS]:
            if seen.all():
                break
            window = find_place(others[number], self.preprocessing, bits.shape, block, rng)  # type: ignore[arg-type]
            if window is not None:
                tissue, theirs, _ = self._read(others[number], window, _whole(others[number]))
                fill(image, seen, block, tissue, (theirs & SEEN) > 0)
        bits |= np.uint8(SEEN) * seen

    def _sample(self, image: NDArray, bits: NDArray, beside: bool, centred: bool, rng: np.random.Generator) -> Sample:
        use = self.preprocessing
        channels = [use.channel(number) for number in range(use.channels)]
        crop = np.stack([c.normalise(part + c.mean) for c, part in zip(channels, image, strict=True)])
        if self.augmentation.offset:
            self._shifter.set_random_state(int(rng.integers(2**32)))
            crop = np.asarray(self._shifter(crop), dtype=np.float32)
        crop = np.where(bits & SEEN, crop, np.float32(0))
        label = (bits & TUMOUR) > 0
        if not beside and not label.any():
            if centred:
                label[(self.side // 2,) * 3] = True  # the tumour was so thin that the transforms lost it
            beside = not centred
        points, labels = draw_points(self.prompts, label, beside, centred, rng)
        target = label & (not beside) if self.prompts == "clicks" else label
        return {"crop": crop, "label": target[None].astype(np.float32), "points": points, "labels": labels}


def _into(box: NDArray[np.float64], centre: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Move the centre (3,) of a crop so that the crop lies in a box (2, 3), or is centred on a box smaller than it."""
    low, high = box.min(0) + side // 2, box.max(0) + 1 - (side - side // 2)
    return np.where(low <= high, np.clip(centre, low, np.maximum(low, high)), (box.min(0) + box.max(0)) / 2)


def _limits(
    case: Labelled, a: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last visible index (3,) of a scan: random margins, so that its borders do not give the tumour away."""
    low, high = _whole(case)
    if a.body:
        return case.body[0] - 0.5, case.body[1] + 0.5
    if a.margin_mm is None or (a.uncut and rng.random() < a.uncut):
        return low, high
    margins = rng.uniform(*a.margin_mm, size=(2, 3)) / case.scan.grid.spacing_mm
    first, last = case.foreground.min(0) - margins[0], case.foreground.max(0) + margins[1]
    return np.where(first <= 0, low, first), np.where(last >= high - 0.5, high, last)


def _whole(case: Labelled) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last index (3,) of a scan, to the outer faces of its voxels."""
    return np.full(3, -0.5), np.array(case.scan.grid.shape) - 0.5


def load_cases(
    folder: Path,
    *,
    leave_out: Collection[str] = (),
    only: Collection[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> list[Labelled]:
    """The cases of a folder, except those in `leave_out`, or `only` those named.

    A prepared store (voxsam.lab.data.store) is read lazily as crops are drawn, and its test cases are left out unless
    named in `only`; if it has classes, a case comes once for each of its structures, with that one as its label. Any
    other folder must be in MSD / nnU-Net raw layout; each case is read once and kept in memory at its own spacing, its
    images standardised if `preprocessing` says so (in a store they are as prepared). Raises FileError for names that
    the folder does not have, InputError with a case's name for one that cannot be used.
    """
    description = find_description(folder)
    if description is not None:
        store = PreparedData(folder, description)
        if preprocessing is not None and _per_scan(preprocessing) != _per_scan(store.preprocessing):
            given = f"{folder}: images standardised scan by scan: {_per_scan(store.preprocessing)}"
            expected = f"{_per_scan(preprocessing)}, as the recipe has it (one word for each channel)"
            raise InputError(given, expected, "take the store's own preprocessing, or prepare it again")
        load, names, test = store.load, set(store.names), set(store.split["test"])
    else:
        cases = {case.name: case for case in find_cases(folder)}
        load, names, test = (lambda name: _load(cases[name], preprocessing)), set(cases), set()
    missing = sorted({*leave_out, *(only or ())} - names)
    if missing:
        raise FileError(
            f"{folder}: no case {', '.join(missing)}", "all cases that the recipe names", "check their names"
        )
    chosen = names - test - set(leave_out) if only is None else only
    return [structure for name in sorted(chosen) for structure in load(name).structures]


def data_set_name(folder: Path) -> str:
    """A data set's name on a card: that of its folder, for a prepared store that of the source folder."""
    description = find_description(folder)
    return Path(description.root if description and description.root else folder).resolve().name


def fingerprint(folder: Path) -> str:
    """16 hexadecimal digits that identify a data set, wherever it is stored; no voxels are read.

    For a prepared store, of its cases, their keys and the split; else of the names and sizes of its files.
    """
    found = find_description(folder)
    if found is not None:
        parts = [*((name, case.key) for name, case in sorted(found.cases.items())), *sorted(found.split.items())]
    else:
        files = sorted({path for case in find_cases(folder) for path in (*case.images, case.label)})
        parts = [(path.name, path.stat().st_size) for path in files]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _per_scan(preprocessing: Preprocessing) -> list[bool]:
    return [preprocessing.channel(number).per_scan for number in range(preprocessing.channels)]


def _load(case: Case, preprocessing: Preprocessing | None) -> Labelled:
    images = [channel for path in case.images for channel in read_channels(path)]
    known = None
    if preprocessing is not None and any(_per_scan(preprocessing)):
        known, wanted = content(images[0]), preprocessing.channels
        images = [*standardised_as(images[:wanted], preprocessing), *images[wanted:]]
    scan, *additional = images
    label = read_volume(case.label, labels=True, scan=scan)
    try:
        return replace(Labelled.make(scan, label, additional, case.choice, case.name), known_content=known)
    except InputError as error:
        raise type(error)(f"{case.name}: {error.given}", error.expected, error.remedy) from error


def make_phantoms(
    count: int, shape: Sequence[int], spacing_mm: Sequence[float], first_seed: int, scene: Scene = CLOSE
) -> list[Labelled]:
    """Generate `count` scans with seeds from `first_seed` on."""
    phantoms = (make_phantom(first_seed + i, shape, spacing_mm, scene=scene) for i in range(count))
    return [Labelled.make(p.scan, p.label) for p in phantoms]


PASSES = 2**31  # keeps the random numbers of the order apart from those of the samples


class SampleStream(Dataset[Sample]):
    """`length` samples; the fraction of generated scans changes linearly from `fraction[0]` to `fraction[1]`.

    Each sample is of a random scan; with `passes` the scans come in turn, in a new order on each pass over them.
    Sample n is always the same, whatever was drawn before. Raises InputError if there are neither scans nor phantoms.
    """

    def __init__(
        self,
        sampler: Sampler,
        scans: Sequence[Labelled],
        phantoms: Sequence[Labelled],
        length: int,
        fraction: tuple[float, float],
        seed: int,
        passes: bool = False,
    ) -> None:
        if not scans and not phantoms:
            raise InputError(
                "neither scans nor phantoms", "something to train on", "give --data, or phantoms in the recipe"
            )
        self.sampler, self.scans, self.phantoms, self.all = sampler, scans, phantoms, [*scans, *phantoms]
        self.length, self.fraction, self.seed, self.passes = length, fraction, seed, passes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Sample:
        rng = np.random.default_rng([self.seed, number])
        fraction = self.fraction[0] + (self.fraction[1] - self.fraction[0]) * number / self.length
        generated = bool(self.phantoms) and (not self.scans or rng.random() < fraction)
        pool = self.phantoms if generated else self.scans
        case = self._in_turn(number, len(pool)) if self.passes else int(rng.integers(len(pool)))
        sample = self.sampler.draw(pool[case], rng, self.all)
        return {**sample, "number": np.array(number)}

    def _in_turn(self, number: int, count: int) -> int:
        """The index, of `count` scans, of the one that sample `number` is drawn from."""
        done, place = divmod(number, count)
        return int(np.random.default_rng([self.seed, PASSES, done]).permutation(count)[place])


def validation_samples(sampler: Sampler, cases: Sequence[Labelled], seed: int) -> list[Sample]:
    """One crop of each case without augmentation; always the same for the same seed.

    However the model is trained, it is validated as it will be used: with one click on a voxel of the tumour, at the
    crop's centre. Without clicks the tumour lies anywhere in the crop: the centre would give it away.
    """
    clicks = sampler.prompts != "none"
    unchanged = Augmentation(
        **{"zoom": (1, 1), "rotate": 0, "flip": 0, "turn": 0, "shift": 0, "scale": 0, "noise": 0, "margin_mm": None},
        off_centre=0 if clicks else 1,
        off_centre_mm=0 if clicks else math.inf,
        background=0,
    )
    still = Sampler(sampler.preprocessing, sampler.side, unchanged, "clicks" if clicks else "none")
    samples = (still.draw(case, np.random.default_rng([seed, n])) for n, case in enumerate(cases))
    return [{**sample, "points": sample["points"][:1], "labels": sample["labels"][:1]} for sample in samples]
