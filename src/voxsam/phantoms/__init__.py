"""Generated CT scans with one labelled soft-tissue tumour, for the demo, for tests and for pretraining.

Nothing here comes from a patient. Anatomy is drawn in millimetres (body, anatomy), a lesion is placed in it,
and the scanner's noise and streaks are added. The same seed gives the same voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from voxsam.boxes import bounding_box
from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.phantoms.anatomy import render_body
from voxsam.phantoms.body import (
    Body,
    Field,
    Frame,
    Tissue,
    coverage,
    draw_body,
    draw_site,
    ellipsoid,
    lattice_noise,
    paint,
    smooth_union,
)
from voxsam.resample import resample
from voxsam.volume import Volume

SMALLEST_ML, LARGEST_ML = 5.0, 900.0
SMALL_ML = (1.0, 60.0)  # if a small one is asked for
FAINT_HU = 8.0  # of contrast to muscle, below which a lesion needs a capsule or a halo to have a border at all


@dataclass(frozen=True)
class Lesion:
    """The random parameters of one lesion; lengths in mm."""

    radius_mm: float  # of the sphere of the same volume, before deformation
    form: str  # "blob", "lobulated" or "infiltrative"
    hu: float
    border_mm: float  # width of the border beyond partial volume
    texture_hu: float
    texture_mm: float
    necrosis: float  # fraction of the radius that is necrotic, 0 for none
    rim_hu: float
    capsule_hu: float | None
    halo_hu: float
    specks: bool


def draw_lesion(rng: np.random.Generator, muscle_hu: float, largest_radius_mm: float, small: bool = False) -> Lesion:
    """A random lesion; its volume is log-uniform between 5 and 900 mL, or up to what `largest_radius_mm` allows.

    With `small`, between 1 and 60 mL.
    """
    smallest, most = SMALL_ML if small else (SMALLEST_ML, LARGEST_ML)
    largest = np.clip(4 / 3 * np.pi * largest_radius_mm**3 / 1000, smallest * 1.5, most)
    volume_ml = np.exp(rng.uniform(np.log(smallest), np.log(largest)))
    matter = rng.choice(["cellular", "myxoid", "lipomatous", "enhancing"], p=[0.6, 0.15, 0.1, 0.15])
    fixed = {"myxoid": (5, 30), "lipomatous": (-80, 0), "enhancing": (70, 115)}
    hu = rng.uniform(*fixed.get(matter, (muscle_hu - 32, muscle_hu + 4)))
    rim = rng.uniform(10, 50) if rng.random() < 0.25 else 0.0
    faint = abs(hu - muscle_hu) < FAINT_HU and rim < FAINT_HU
    return Lesion(
        radius_mm=float(np.cbrt(volume_ml * 1000 * 3 / 4 / np.pi)),
        form=str(rng.choice(["blob", "lobulated", "infiltrative"], p=[0.5, 0.3, 0.2])),
        hu=hu,
        border_mm=0.0 if faint or rng.random() < 0.6 else rng.uniform(1, 7),
        texture_hu=rng.uniform(15, 35) if matter == "lipomatous" else rng.uniform(0, 14),
        texture_mm=rng.uniform(5, 25),
        necrosis=rng.uniform(0.3, 0.75) if matter != "lipomatous" and rng.random() < 0.35 else 0.0,
        rim_hu=rim,
        capsule_hu=rng.uniform(-90, -20) if rng.random() < (0.6 if faint else 0.25) else None,
        halo_hu=rng.uniform(-25, -8) if rng.random() < 0.25 else 0.0,
        specks=bool(rng.random() < 0.12),
    )


def lesion_distance(rng: np.random.Generator, lesion: Lesion, frame: Frame, centre_mm: NDArray) -> Field:
    """Signed distance (mm) of the lesion on the frame."""
    radius = lesion.radius_mm
    if lesion.form == "lobulated":
        distance = _lobules(rng, frame, centre_mm, radius)
        rough, period = 0.08, 0.8
    else:
        stretch = np.exp(rng.normal(0, 0.25, 3))
        radii = radius * stretch / np.cbrt(np.prod(stretch))
        distance = ellipsoid(frame.place, centre_mm, radii, _random_turn(rng))
        rough, period = (0.12, 1.1) if lesion.form == "blob" else (0.22, 0.6)
    distance += np.float32(rng.uniform(0.5, 1) * rough * radius) * lattice_noise(rng, frame, max(period * radius, 8))
    if lesion.form == "infiltrative":
        distance += np.float32(0.1 * radius) * lattice_noise(rng, frame, max(0.3 * radius, 5))
    return distance


def paint_lesion(rng: np.random.Generator, lesion: Lesion, frame: Frame, image: Field, distance: Field) -> None:
    """Draw the lesion into `image` (HU), in place."""
    edge = frame.edge_mm
    if lesion.halo_hu:
        soft = np.abs(image) < 100  # oedema shows in muscle, not in fat, bone or air
        image += soft * np.float32(lesion.halo_hu) * coverage(distance - 6, 16.0)
    if lesion.capsule_hu is not None:
        paint(image, np.abs(distance - np.float32(1.2)) - 1.0, lesion.capsule_hu, edge)
    texture = lattice_noise(rng, frame, lesion.texture_mm) + np.float32(0.6) * lattice_noise(
        rng, frame, 4 + lesion.texture_mm / 4
    )
    matter = np.float32(lesion.hu) + np.float32(lesion.texture_hu) * texture
    if lesion.necrosis:
        depth = distance + np.float32((1 - lesion.necrosis) * lesion.radius_mm)
        depth += np.float32(0.15 * lesion.radius_mm) * lattice_noise(rng, frame, max(lesion.radius_mm * 0.6, 6))
        paint(matter, depth, rng.uniform(2, 22), 6.0)
    if lesion.rim_hu:
        matter += np.float32(lesion.rim_hu) * coverage(np.abs(distance + 2.5) - np.float32(rng.uniform(1.5, 3)), 2.0)
    if lesion.specks:
        specks = lattice_noise(rng, frame, 4)
        matter += np.float32(rng.uniform(80, 250)) * np.maximum(specks - np.float32(2.2), 0) * 3
    inside = coverage(distance, edge + lesion.border_mm)
    image += inside * (matter - image)


def largest_part(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component (through faces) of a mask; all False if it is empty."""
    parts = np.asarray(ndimage.label(inside)[0])  # type: ignore[index]
    if parts.max() < 2:
        return inside
    return parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))


def _lobules(rng: np.random.Generator, frame: Frame, centre_mm: NDArray, radius: float) -> Field:
    count = int(rng.integers(3, 7))
    distance = None
    for n in range(count):
        size = radius * rng.uniform(0.5, 0.75)
        away = rng.normal(0, 1, 3)
        away *= 0 if n == 0 else size * rng.uniform(0.8, 1.25) / np.linalg.norm(away)
        lobule = ellipsoid(frame.place, centre_mm + away, size * rng.uniform(0.85, 1.2, 3), _random_turn(rng))
        distance = lobule if distance is None else smooth_union(distance, lobule, 0.2 * radius)
    assert distance is not None
    return distance


def _random_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    return np.linalg.qr(rng.normal(size=(3, 3)))[0].T


ATTEMPTS = 8  # a lesion is redrawn if bone, air or the border of the view leaves too little of it
LEAST_FRACTION, LEAST_ML = 0.25, 1.5  # that must be left: of the drawn volume, and in all
LEAST_SMALL_ML = 0.7  # of a small lesion


@dataclass(frozen=True)
class Scene:
    """The kinds of phantoms to draw: the probability of each.

    `wide`: a body with everything around it (two legs, hips, arms, table), as in a scan of the whole patient; else
    mostly a limb, seen close to the tumour. `small`: a lesion of 1 to 60 mL.
    """

    wide: float = 0.0
    small: float = 0.0

    def draw(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Draw whether a phantom is wide, and whether its lesion is small."""
        return bool(rng.random() < self.wide), bool(rng.random() < self.small)


CLOSE = Scene()


@dataclass(frozen=True)
class Phantom:
    """A scan (int16 HU, "CT"), its tumour (uint8 0/1, "SEG") on the same Grid, and an index well inside the tumour."""

    scan: Volume
    label: Volume
    click: tuple[int, int, int]


def make_phantom(
    seed: int,
    shape: Sequence[int] = (96, 96, 96),
    spacing_mm: Sequence[float] = (2.0, 2.0, 2.0),
    axes: str = "LPS",
    scene: Scene = CLOSE,
) -> Phantom:
    """The phantom of `seed` on a grid of `shape` and `spacing_mm`, both in the order of `axes` (Grid.axes).

    All shapes are drawn in mm: another spacing over the same field of view shows the same patient with other noise.
    The tumour has 1 to 900 mL, as far as it fits in the view. `scene` says how often the view is wide or the tumour
    small. Raises GeometryError for axes, a shape or a spacing that make no sense.
    """
    upright = Grid.from_spacing((1, 1, 1), (1, 1, 1)).reorient(axes).permutation_to("RAS")[0]
    size = tuple(int(shape[a]) for a in upright)
    spacing = tuple(float(spacing_mm[a]) for a in upright)
    extent = np.array(size) * spacing
    grid = Grid.from_spacing(size, spacing, (-(extent - spacing) / 2).tolist())
    for attempt in range(ATTEMPTS):
        # One stream per stage: a stage that draws more numbers does not change the others.
        streams = [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence([seed, attempt]).spawn(7)]
        image, inside, enough = _draw(streams[:5], size, spacing, scene.draw(streams[6]))
        if enough or (attempt == ATTEMPTS - 1 and inside.any()):
            final = grid.reorient(axes)
            scan = resample(Volume(image, grid, "CT"), final, "nearest").astype(np.int16)
            label = resample(Volume(inside, grid, "SEG"), final, "nearest").astype(np.uint8)
            click = np.rint(grid.index_in(final, _click(inside, grid.spacing_mm, streams[5])))
            i, j, k = click.astype(int).tolist()
            return Phantom(Volume(scan, final, "CT"), Volume(label, final, "SEG"), (i, j, k))
    raise GeometryError(
        f"a view of {extent[0]:.3g} x {extent[1]:.3g} x {extent[2]:.3g} mm",
        f"room for the lesion of phantom {seed}",
        "choose more voxels, a larger spacing or another seed",
    )


def _draw(
    streams: list[np.random.Generator], size: tuple[int, ...], spacing: tuple[float, ...], scene: tuple[bool, bool]
) -> tuple[Field, NDArray[np.bool_], bool]:
    """HU, tumour, and whether enough of the tumour is in view; in RAS order."""
    plan, shape_rng, body_rng, paint_rng, scanner_rng = streams
    extent, (wide, small) = np.array(size) * np.array(spacing), scene
    body = draw_body(plan, wide)
    room = min(0.36 * extent.min(), (0.62 if body.limb else 0.5) * body.half_x)
    lesion = draw_lesion(plan, body.muscle_hu, room, small)
    site = draw_site(plan, body, lesion.radius_mm)
    frame = Frame.around(_view_centre(plan, body, site, extent), size, spacing)
    distance = lesion_distance(shape_rng, lesion, frame, site)
    tissue = render_body(body_rng, body, frame, distance)
    distance = np.maximum(distance, -np.minimum(tissue.bone, tissue.air))
    inside = largest_part(distance < 0)
    # What bone or the deformation cuts off is not drawn: it would be the same tumour without a label.
    near = ndimage.binary_dilation(inside, iterations=2)
    distance = np.where(near, distance, np.maximum(distance, frame.edge_mm * 2))
    _distractors(paint_rng, lesion, body, tissue, frame, distance)
    paint_lesion(paint_rng, lesion, frame, tissue.hu, distance)
    left_ml = np.count_nonzero(inside) * np.prod(spacing) / 1000
    whole_ml = 4 / 3 * np.pi * lesion.radius_mm**3 / 1000
    enough = left_ml > max(LEAST_FRACTION * whole_ml, LEAST_SMALL_ML if small else LEAST_ML)
    return _scanned(scanner_rng, tissue.hu, body, frame), inside, bool(enough)


def _view_centre(rng: np.random.Generator, body: Body, site: NDArray, extent: NDArray) -> NDArray[np.float64]:
    """The centre of the field of view: near the lesion, but no further into the air than needed."""
    centre = site + rng.uniform(-0.33, 0.33, 3) * extent
    if body.wide:
        # Views of the whole body, with the tumour not too near the border.
        middle, half = np.array([body.middle_x, 0.0]), np.array([body.reach_x, body.half_y])
        slack = np.abs(half + 25 - extent[:2] / 2)
        near = np.clip(centre[:2], middle - slack, middle + slack)
        centre[:2] = np.clip(near, site[:2] - 0.4 * extent[:2], site[:2] + 0.4 * extent[:2])
        return centre
    for axis, half in enumerate((body.half_x, body.half_y)):
        slack = max(half + 15 - extent[axis] / 2, 0)
        if slack == 0 and body.kind != "thighs":
            slack = 0.1 * extent[axis]
        centre[axis] = np.clip(centre[axis], -slack, slack)
    return centre


def _distractors(
    rng: np.random.Generator, lesion: Lesion, body: Body, tissue: Tissue, frame: Frame, distance: Field
) -> None:
    """Paint other blobs, some of the same tissue as the lesion, that never touch it."""
    for _ in range(int(rng.integers(0, 4))):
        kin = draw_lesion(rng, body.muscle_hu, max(0.6 * lesion.radius_mm, 9))
        look = lesion if rng.random() < 0.5 else kin
        site = draw_site(rng, body, kin.radius_mm) + np.array([0, 0, rng.uniform(-80, 80)])
        look = replace(look, radius_mm=kin.radius_mm, form=kin.form, halo_hu=0.0)
        other = lesion_distance(rng, look, frame, site)
        for barrier in (tissue.bone, tissue.air, distance - 6):
            other = np.maximum(other, -barrier)
        paint_lesion(rng, look, frame, tissue.hu, np.maximum(other, tissue.skin + 3))


def _scanned(rng: np.random.Generator, image: Field, body: Body, frame: Frame) -> Field:
    """The image with correlated noise, sometimes with streaks, in whole HU."""
    sd = np.exp(rng.uniform(np.log(8), np.log(30)))
    image = image + np.float32(sd) * _ct_noise(rng, frame)
    image += np.float32(rng.uniform(0, 4)) * lattice_noise(rng, frame, 30)  # scatter and beam hardening: slow shading
    if rng.random() < 0.15:
        x, y = (rng.uniform(-0.6, 0.6) * h for h in (body.half_x, body.half_y))
        angle = np.arctan2(frame.y - np.float32(y), frame.x - np.float32(x))
        away = np.sqrt((frame.y - np.float32(y)) ** 2 + (frame.x - np.float32(x)) ** 2)
        rays = sum(np.cos(n * angle + np.float32(rng.uniform(0, 6))) for n in (5, 9, 14))
        slab = np.exp(-(((frame.z - np.float32(rng.uniform(-60, 60))) / np.float32(rng.uniform(5, 25))) ** 2))
        image += np.float32(rng.uniform(15, 50)) * rays * 40 / (away + 40) * slab
    return np.clip(np.rint(image), -1024, 3071)


def _ct_noise(rng: np.random.Generator, frame: Frame) -> Field:
    """Noise of s.d. 1 as filtered back projection leaves it: few low frequencies, a kernel, sometimes fine stripes.

    Stripes run where the beam crosses most of the body (along two thighs, say): there the noise power is high in a
    narrow fan of frequencies at right angles to them.
    """
    noise = rng.standard_normal(frame.shape, dtype=np.float32)
    kernel_mm, direction = rng.uniform(0.4, 1.3), rng.normal(0, 0.3) + np.pi / 2
    stripes = rng.uniform(1, 5) if rng.random() < 0.5 else 0.0
    along_x = fft.fftfreq(frame.shape[0], frame.spacing_mm[0]).astype(np.float32)[:, None]
    along_y = fft.rfftfreq(frame.shape[1], frame.spacing_mm[1]).astype(np.float32)[None, :]
    frequency = np.hypot(along_x, along_y)
    turn = np.arctan2(along_y, along_x) - np.float32(direction)
    fan = 1 + np.float32(stripes) * np.exp(-((np.sin(turn) / np.float32(0.12)) ** 2))
    pass_band = (
        (frequency + np.float32(0.03)) * np.exp(-((frequency * np.float32(2 * np.pi * kernel_mm)) ** 2) / 2) * fan
    )
    spectrum = np.asarray(fft.rfft2(noise, axes=(0, 1)))
    noise = np.asarray(fft.irfft2(spectrum * pass_band[:, :, None], frame.shape[:2], axes=(0, 1)))
    return noise / max(float(noise.std()), 1e-6)


def _click(inside: NDArray[np.bool_], spacing: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """An index at least 0.6 times as deep in the mask as its deepest voxel."""
    box = bounding_box(inside)
    depth = ndimage.distance_transform_edt(np.pad(inside[box], 1), sampling=spacing)[1:-1, 1:-1, 1:-1]  # type: ignore[index]
    deep = np.argwhere(depth >= 0.6 * depth.max())
    return deep[rng.integers(len(deep))] + [s.start for s in box]


DEMO_SHAPE, DEMO_SPACING_MM, DEMO_SEED = (160, 160, 80), (1.5, 1.5, 3.0), 10


def demo_phantom(seed: int = DEMO_SEED) -> Phantom:
    """The example of `voxsam demo` and of the page: a CT with one tumour, its mask, and a click in it."""
    return make_phantom(seed, DEMO_SHAPE, DEMO_SPACING_MM)
