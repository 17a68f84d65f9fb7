"""Lesions painted into a scan: their shape, border, interior, and the tissues they stay in.

Lengths are in millimetres, intensities in Hounsfield units. Training only on synthetic lesions in healthy livers has
matched real labels (Hu et al., Label-Free Liver Tumor Segmentation, CVPR 2023); here lesions lie in any tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from voxsam.boxes import bounding_box
from voxsam.lab.engine.voxels import Image, Mask, dilated, eroded, largest_part, smoothed

LUNG, FAT, SOFT, BONE = range(4)  # tissues; air around the body and in the bowel counts as lung
BOUNDS_HU = (-300.0, -25.0, 190.0)  # between them
FEWEST = 12  # voxels of a lesion: smaller ones are not painted
THREADS_FROM = 200  # voxels: larger lesions have thin threads removed
CREASE = 0.15  # of the half axes: width over which a lobe and the rest merge
MAX_NODES = 48  # of noise on an axis: this limits how fine it gets
SPLINE_SD = 0.4795**1.5  # s.d. of a cubic B-spline with white noise as coefficients, averaged over positions, in 3D


@dataclass(frozen=True)
class Shape:
    """A lesion's outline: an ellipsoid of this diameter, its lobes, and its roughness (fractions of its radius)."""

    diameter_mm: float
    axes: tuple[float, float, float]  # half axes, the longest 1
    turn: NDArray[np.float64]  # (3, 3) rotation
    lobes: NDArray[np.float64]  # (n, 4) centre and radius of additional balls, in half axes
    rough: tuple[float, float, float]  # s.d. of the border's noise at three sizes, coarse to fine


@dataclass(frozen=True)
class Look:
    """A lesion's appearance; contrasts are added to `mean_hu`, the level of its interior."""

    mean_hu: float
    edge_mm: float  # over which it fades into its surroundings
    texture_hu: tuple[float, float]  # s.d. of its texture, coarse and fine
    slope_hu: float  # gradient across the lesion
    core_hu: float  # contrast of a necrotic or cystic core, 0 without
    core_depth: float  # where the core begins: depth below the border as a fraction of the radius
    rim_hu: float  # contrast of an enhancing rim, 0 without
    rim_mm: float
    halo_hu: float  # contrast of a faint zone around it that is not part of it
    flecks: float  # fraction of the interior that is calcified
    veil: float  # fraction of the original intensities that shows through
    keeps: tuple[int, ...]  # tissues it stays in; empty: all


def tissue_of(image_hu: Image) -> NDArray[np.uint8]:
    """LUNG, FAT, SOFT or BONE for each voxel of a smoothed scan."""
    return np.digitize(image_hu, BOUNDS_HU).astype(np.uint8)


def draw_shape(diameter_mm: float, rng: np.random.Generator) -> Shape:
    """A random shape, from round and smooth to long, lobed and rough; small ones are rounder."""
    long = rng.uniform(0.55, 1.0) if diameter_mm < 25 else rng.uniform(0.4, 1.0)
    axes = (1.0, rng.uniform(long, 1.0), long)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    lobes = np.zeros((0, 4))
    if rng.random() < 0.4:
        count = int(rng.integers(1, 5))
        directions = rng.standard_normal((count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lobes = np.concatenate([directions * rng.uniform(0.5, 0.95, (count, 1)), rng.uniform(0.3, 0.65, (count, 1))], 1)
    calm = rng.uniform(0.1, 1.0)
    rough = (calm * rng.uniform(0.05, 0.22), calm * rng.uniform(0.0, 0.14), calm * rng.uniform(0.0, 0.07))
    return Shape(diameter_mm, axes, turn, lobes, rough)


def draw_look(diameter_mm: float, tissue: int, around_hu: float, rng: np.random.Generator) -> Look:
    """A random appearance for a lesion of this size in this tissue, whose local level is `around_hu`."""
    mean = _level(tissue, around_hu, rng)
    solid = mean > -60
    big = diameter_mm > 14
    core = big and solid and rng.random() < 0.35
    rim = big and solid and rng.random() < 0.25
    soft_edge = rng.random() < 0.25
    edge = rng.uniform(0.1, 0.3) * diameter_mm / 2 if soft_edge else rng.uniform(0.3, 1.8)
    return Look(
        mean_hu=mean,
        edge_mm=float(min(edge, 8.0)),
        texture_hu=(rng.gamma(2.0, 4.0) if solid else rng.uniform(15, 50), rng.gamma(2.0, 2.5)),
        slope_hu=rng.normal(0, 12) if rng.random() < 0.4 else 0.0,
        core_hu=-rng.uniform(12, 60) if core else 0.0,
        core_depth=rng.uniform(0.2, 0.55),
        rim_hu=rng.uniform(12, 70) if rim else 0.0,
        rim_mm=rng.uniform(1.0, max(1.5, 0.15 * diameter_mm)),
        halo_hu=rng.uniform(-25, 12) if solid and rng.random() < 0.2 else 0.0,
        flecks=rng.uniform(0.005, 0.06) if solid and rng.random() < 0.06 else 0.0,
        veil=rng.uniform(0.1, 0.45) if rng.random() < 0.3 else 0.0,
        keeps=_kept(tissue, rng),
    )


def _level(tissue: int, around_hu: float, rng: np.random.Generator) -> float:
    """A random level of a lesion's interior: darker, brighter, nearly the same, cystic, or altogether different."""
    draw = rng.random()
    if tissue == LUNG:
        return rng.uniform(-60, 80) if draw < 0.85 else rng.uniform(-500, -100)
    if tissue == FAT:
        return rng.uniform(-10, 90)
    if tissue == BONE:
        return rng.uniform(0, 130)
    if draw < 0.5:
        return around_hu - rng.uniform(15, 75)
    if draw < 0.75:
        return around_hu + rng.uniform(15, 90)
    if draw < 0.88:
        return around_hu + rng.choice([-1, 1]) * rng.uniform(9, 18)
    if draw < 0.95:
        return rng.uniform(-5, 22)
    return rng.uniform(-90, -20) if draw < 0.975 else rng.uniform(150, 260)


def _kept(tissue: int, rng: np.random.Generator) -> tuple[int, ...]:
    draw = rng.random()
    if tissue == LUNG:
        return (LUNG,) if draw < 0.6 else (LUNG, FAT, SOFT)
    if tissue == BONE:
        return (BONE,) if draw < 0.3 else (BONE, SOFT, FAT)
    if tissue == FAT:
        return (FAT, SOFT) if draw < 0.7 else (FAT,)
    return (SOFT,) if draw < 0.65 else ((SOFT, FAT) if draw < 0.92 else ())


def draw_abutting(diameter_mm: float, tissue: int, soft_hu: float, rng: np.random.Generator) -> Look:
    """A node in fat or a tumour in the lung, about as dense as the soft tissue (`soft_hu`) that it abuts.

    No border is visible there; the lesion ends where that tissue begins.
    """
    look = draw_look(diameter_mm, SOFT, soft_hu, rng)
    return replace(look, mean_hu=soft_hu + rng.normal(0, 12), veil=0.0, keeps=(tissue, FAT))


def like(look: Look, rng: np.random.Generator) -> Look:
    """The appearance of another lesion of the same patient: similar, but not the same."""
    return replace(look, mean_hu=look.mean_hu + rng.normal(0, 5), slope_hu=rng.normal(0, 6), rim_mm=look.rim_mm * 0.8)


@dataclass(frozen=True)
class Site:
    """Where a lesion is painted: a scan or a part of it, its smoothed original, and its noise level."""

    image: Image  # (D, H, W) HU
    smooth: Image  # the same, smoothed over about 3 mm
    spacing_mm: NDArray[np.float64]  # (3,)
    noise_hu: float  # s.d. of the scan's noise at this spacing

    @classmethod
    def of(cls, image: Image, spacing_mm: NDArray[np.float64], noise_hu: float | None = None) -> Site:
        """The site in an image, which is smoothed over about 3 mm, but at least a voxel; its noise is measured if None.

        Noise is measured by the interquartile range of the residuals in soft tissue; 8 HU without any.
        """
        smooth = smoothed(image, np.maximum(1.5 / spacing_mm, 0.7))
        if noise_hu is None:
            residual = (image - smooth)[(smooth > -20) & (smooth < 180)][::7]
            noise_hu = 8.0
            if len(residual) >= 200:
                low, high = np.percentile(residual, (25, 75))
                noise_hu = float(np.clip((high - low) / 1.35, 1.0, 60.0))
        return cls(image, smooth, spacing_mm, noise_hu)


def paint(
    site: Site, centre: NDArray[np.floating], shape: Shape, look: Look, rng: np.random.Generator, avoid: Mask | None
) -> tuple[Site, Mask] | None:
    """The site with a lesion around the index `centre`, and its mask; None if it has fewer than FEWEST voxels.

    It does not extend into `avoid`. The mask ends at its outline, halfway through a soft border.
    """
    depth_mm = _depth(site, centre, shape, rng)
    inside = _clean(depth_mm > 0, site, look.keeps, avoid)
    if inside is None:
        return None
    box = tuple(slice(max(0, along.start - 4), along.stop + 4) for along in bounding_box(inside))
    depth_mm, inside = depth_mm[box], inside[box]
    # From 0 outside to 1 inside, 0.5 at the mask's border, whether that is the outline or a tissue's border.
    soft = 1 / (1 + np.exp(-np.clip(depth_mm * (3 / look.edge_mm), -30, 30)))
    cut = smoothed(inside.astype(np.float32), 0.6)
    cut = np.where(inside, np.maximum(cut, 0.5), np.minimum(cut, 0.5))
    fade = np.minimum(soft, cut).astype(np.float32)
    before, smooth = site.image[box], site.smooth[box]
    tissue = _inside(depth_mm, shape.diameter_mm / 2, look, site, before, smooth, rng)
    fade = fade * (1 - look.veil)
    image = site.image.copy()
    painted = before * (1 - fade) + tissue * fade
    if look.halo_hu:
        away = np.exp(-np.square(np.minimum(depth_mm, 0) / (2 + 0.15 * shape.diameter_mm)))
        painted += look.halo_hu * (1 - fade) * away * (tissue_of(smooth) == SOFT)
    image[box] = painted
    mask = np.zeros(image.shape, dtype=bool)
    mask[box] = inside
    return replace(site, image=image), mask


def _depth(site: Site, centre: NDArray[np.floating], shape: Shape, rng: np.random.Generator) -> Image:
    """(D, H, W) depth of each voxel inside the outline, approximately in mm; negative outside."""
    radius = shape.diameter_mm / 2
    d, h, w = (
        ((np.arange(n) - c) * s).astype(np.float32)
        for n, c, s in zip(site.image.shape, centre, site.spacing_mm, strict=True)
    )
    turn = (shape.turn / np.array(shape.axes)[:, None] / radius).astype(np.float32)
    own = [r[0] * d[:, None, None] + r[1] * h[None, :, None] + r[2] * w[None, None, :] for r in turn]
    depth = 1 - np.sqrt(own[0] ** 2 + own[1] ** 2 + own[2] ** 2)
    for *middle, size in shape.lobes.tolist():
        ball = size - np.sqrt(sum(np.square(x - m) for x, m in zip(own, middle, strict=True)))
        # A polynomial smooth maximum: the larger value, with the crease between both rounded off.
        blend = np.clip(0.5 + (ball - depth) / (2 * CREASE), 0, 1)
        depth = (depth + (ball - depth) * blend + CREASE * blend * (1 - blend)).astype(np.float32)
    for amplitude, size in zip(shape.rough, (0.9, 0.4, 0.18), strict=True):
        correlation = size * radius
        if amplitude > 0 and correlation > 0.8 * site.spacing_mm.min():
            depth += np.float32(amplitude) * smooth_noise(depth.shape, site.spacing_mm.tolist(), correlation, rng)
    return (depth * (radius * np.mean(shape.axes))).astype(np.float32)


def _clean(inside: Mask, site: Site, keeps: tuple[int, ...], avoid: Mask | None) -> Mask | None:
    """The largest connected part inside the tissues in `keeps` and outside `avoid`; None if it is too small."""
    if keeps:
        inside = inside & np.isin(tissue_of(site.smooth), keeps)
    if avoid is not None:
        inside = inside & ~avoid
    part = largest_part(inside)
    if part.sum() > THREADS_FROM:
        part = largest_part(dilated(eroded(part)) & part)  # removes threads one voxel wide
    return part if part.sum() >= FEWEST else None


def _inside(
    depth_mm: Image,
    radius_mm: float,
    look: Look,
    site: Site,
    before: Image,
    smooth: Image,
    rng: np.random.Generator,
) -> Image:
    """The lesion's interior in HU, with the scan's own noise."""
    spacing = site.spacing_mm.tolist()
    coarse = smooth_noise(depth_mm.shape, spacing, max(0.5 * radius_mm, 1.5), rng)
    fine = smooth_noise(depth_mm.shape, spacing, max(0.15 * radius_mm, 1.2), rng)
    tissue = look.mean_hu + look.texture_hu[0] * coarse + look.texture_hu[1] * fine
    if look.slope_hu:
        along = rng.standard_normal(3)
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in depth_mm.shape), indexing="ij", sparse=True)
        tissue += look.slope_hu * (sum(a * x for a, x in zip(along, axes, strict=True)) / np.linalg.norm(along))
    if look.core_hu:
        deep = depth_mm / radius_mm - look.core_depth + 0.18 * coarse
        tissue += look.core_hu / (1 + np.exp(-np.clip(12 * deep, -30, 30)))
    if look.rim_hu:
        tissue += look.rim_hu * np.exp(-np.square((depth_mm - look.rim_mm / 2) / look.rim_mm)) * (1 + 0.4 * coarse)
    if look.flecks:
        grain = smooth_noise(depth_mm.shape, spacing, 2.0, rng)
        tissue += np.where(grain > np.quantile(grain, 1 - look.flecks), rng.uniform(100, 350), 0)
    grain = smoothed(rng.standard_normal(depth_mm.shape), 0.6)
    grain *= site.noise_hu / max(float(grain.std()), 1e-6)
    own = before - smooth
    calm = np.abs(smooth - before.mean()) < 150  # where the scan's residual is noise, not a vessel or edge
    return (tissue + np.where(calm & (np.abs(own) < 4 * site.noise_hu), own, grain)).astype(np.float32)


def smooth_noise(
    shape: Sequence[int], spacing_mm: Sequence[float], correlation_mm: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Smooth float32 noise of mean 0 and s.d. 1, with a correlation length of about `correlation_mm`: a spline.

    Its nodes have a random offset, so that no voxel of a crop is more likely than another to be a maximum.
    """
    matrices = [_spline(n, s / correlation_mm, rng.random()) for n, s in zip(shape, spacing_mm, strict=True)]
    field = rng.standard_normal([m.shape[1] for m in matrices]).astype(np.float32)
    for matrix in matrices:  # each product puts its axis last: after three they are in order again
        field = np.tensordot(field, matrix, axes=(0, 1))
    return field / np.float32(SPLINE_SD)


def _spline(count: int, step: float, offset: float) -> NDArray[np.float32]:
    """(count, nodes) weights of the uniform cubic B-spline at positions `step` nodes apart."""
    step = min(step, (MAX_NODES - 4) / max(1, count))
    at = offset + step * np.arange(count)
    first, t = np.floor(at).astype(int), at % 1
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], 1) / 6
    matrix = np.zeros((count, int(first[-1]) + 4), dtype=np.float32)
    matrix[np.arange(count)[:, None], first[:, None] + np.arange(4)] = weights
    return matrix
