"""Generated CT scans with one labelled soft-tissue tumour, for the demo, for tests and for pretraining.

Nothing here comes from a patient. Anatomy is drawn in millimetres (phantom_body, phantom_anatomy), a lesion is put
into it (phantom_lesion), then the scanner adds its noise and streaks. The same seed gives the same voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from voxsam.errors import GeometryError
from voxsam.geometry import Grid
from voxsam.phantoms.anatomy import render_body
from voxsam.phantoms.body import Body, Tissue, draw_body, draw_site
from voxsam.phantoms.lesion import Lesion, draw_lesion, largest_part, lesion_distance, paint_lesion
from voxsam.phantoms.shapes import Field, Frame, lattice_noise
from voxsam.resample import resample
from voxsam.volume import Volume

ATTEMPTS = 8  # a lesion that bone, air or the border of the view leaves too little of is drawn anew
LEAST_SHARE, LEAST_ML = 0.25, 1.5  # of the drawn volume, and at all, that must be left
LEAST_SMALL_ML = 0.7  # of a small lesion


@dataclass(frozen=True)
class Scene:
    """What is asked of phantoms: the probability of each.

    `wide`: a body with all that lies around it (two legs, hips, arms, table), seen as a scan of the whole patient shows
    it; else mostly a limb, seen close to the tumour. `small`: a lesion of 1 to 60 mL.
    """

    wide: float = 0.0
    small: float = 0.0

    def draw(self, rng: np.random.Generator) -> tuple[bool, bool]:
        """Whether one phantom is wide, and whether its lesion is small."""
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

    All shapes are drawn in mm: another spacing over the same field of view shows the same patient under other noise.
    The tumour has 1 to 900 mL, as far as the view holds it. `scene` says how often the view is wide or the tumour
    small. Raises GeometryError for axes, a shape or a
    spacing that make no sense.
    """
    upright = Grid.from_spacing((1, 1, 1), (1, 1, 1)).reorient(axes).permutation_to("RAS")[0]
    size = tuple(int(shape[a]) for a in upright)
    spacing = tuple(float(spacing_mm[a]) for a in upright)
    extent = np.array(size) * spacing
    grid = Grid.from_spacing(size, spacing, (-(extent - spacing) / 2).tolist())
    for attempt in range(ATTEMPTS):
        # One stream per stage: a stage that draws more numbers leaves the others as they were.
        streams = [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence([seed, attempt]).spawn(7)]
        image, inside, enough = _draw(streams[:5], size, spacing, scene.draw(streams[6]))
        if enough or (attempt == ATTEMPTS - 1 and inside.any()):
            return _phantom(image, inside, grid, axes, streams[5])
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
    # What bone or the deformation cut off is not drawn: it would be the same tumour without a label.
    near = ndimage.binary_dilation(inside, iterations=2)
    distance = np.where(near, distance, np.maximum(distance, frame.edge_mm * 2))
    _distractors(paint_rng, lesion, body, tissue, frame, distance)
    paint_lesion(paint_rng, lesion, frame, tissue.hu, distance)
    left_ml = np.count_nonzero(inside) * np.prod(spacing) / 1000
    whole_ml = 4 / 3 * np.pi * lesion.radius_mm**3 / 1000
    enough = left_ml > max(LEAST_SHARE * whole_ml, LEAST_SMALL_ML if small else LEAST_ML)
    return _scanned(scanner_rng, tissue.hu, body, frame), inside, bool(enough)


def _view_centre(rng: np.random.Generator, body: Body, site: NDArray, extent: NDArray) -> NDArray[np.float64]:
    """Where the field of view has its middle: about the lesion, but not further into the air than needed."""
    centre = site + rng.uniform(-0.33, 0.33, 3) * extent
    if body.wide:
        # Views of the whole body, with the tumour not too near to the border.
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
    """Other blobs, some of the same matter as the lesion, never touching it."""
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
    """The image with correlated noise, at times streaks, as whole HU."""
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
    """Noise of s.d. 1 as filtered back projection leaves it: few low frequencies, a kernel, at times fine stripes.

    Stripes lie where the body is thickest to the beam (along two thighs, say): there the noise power is high in a
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


def _phantom(image: Field, inside: NDArray[np.bool_], grid: Grid, axes: str, rng: np.random.Generator) -> Phantom:
    final = grid.reorient(axes)
    scan = resample(Volume(image, grid, "CT"), final, "nearest").astype(np.int16)
    label = resample(Volume(inside, grid, "SEG"), final, "nearest").astype(np.uint8)
    i, j, k = np.rint(grid.index_in(final, _click(inside, grid.spacing_mm, rng))).astype(int).tolist()
    return Phantom(Volume(scan, final, "CT"), Volume(label, final, "SEG"), (i, j, k))


def _click(inside: NDArray[np.bool_], spacing: NDArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """An index at least 0.6 times as deep in the mask as its deepest voxel."""
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(inside[box], 1), sampling=spacing)[1:-1, 1:-1, 1:-1]  # type: ignore[index]
    deep = np.argwhere(depth >= 0.6 * depth.max())
    return deep[rng.integers(len(deep))] + [s.start for s in box]


DEMO_SHAPE, DEMO_SPACING_MM, DEMO_SEED = (160, 160, 80), (1.5, 1.5, 3.0), 10


def demo_phantom(seed: int = DEMO_SEED) -> Phantom:
    """What `voxsam demo` clicks and the page offers: a CT of one tumour, its mask, and a click in it."""
    return make_phantom(seed, DEMO_SHAPE, DEMO_SPACING_MM)
