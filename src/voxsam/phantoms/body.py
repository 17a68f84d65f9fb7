"""The random body of a phantom and its tissue, and what they are drawn with: smooth shapes, noise and paint.

Shapes are signed distances (mm, negative inside), so that borders fall where they belong within a voxel and the same
shape can be drawn at any spacing. All arrays are float32 of the frame's shape; x, y, z increase towards Right,
Anterior, Superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating]  # float32 throughout
Place = tuple[Field, Field, Field]  # x, y and z in mm, to broadcast; warped coordinates make organic shapes
LATTICE_NODES = 32  # noise repeats after this many periods
SPLINE_SD = 0.479**1.5  # s.d. of white noise after cubic B-splines along three axes


@dataclass(frozen=True)
class Frame:
    """World coordinates (mm) of a box's voxels along its three axes, shaped to broadcast, and its spacing."""

    x: Field
    y: Field
    z: Field
    spacing_mm: tuple[float, float, float]

    @classmethod
    def around(cls, centre_mm: NDArray[np.float64], shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Frame:
        """The frame of `shape` voxels centred at `centre_mm`."""
        lines = [(np.arange(n) - (n - 1) / 2) * s + c for n, s, c in zip(shape, spacing_mm, centre_mm, strict=True)]
        x, y, z = (line.astype(np.float32) for line in lines)
        return cls(x[:, None, None], y[None, :, None], z[None, None, :], tuple(spacing_mm))  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.size, self.y.size, self.z.size

    @property
    def place(self) -> Place:
        return self.x, self.y, self.z

    @property
    def edge_mm(self) -> float:
        """Width of a border blurred by partial volume: about a voxel."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))


def lattice_noise(rng: np.random.Generator, frame: Frame, period_mm: float) -> Field:
    """Smooth noise of mean 0 and s.d. 1 with bumps of about `period_mm`, the same in mm at every spacing."""
    model_grid = rng.standard_normal((LATTICE_NODES,) * 3, dtype=np.float32)
    along_x, along_y, along_z = (_spline_weights(line.ravel() / period_mm) for line in (frame.x, frame.y, frame.z))
    noise = np.tensordot(along_x, model_grid, 1)
    return np.matmul(along_y, noise) @ along_z.T / np.float32(SPLINE_SD)


def _spline_weights(position: Field) -> Field:
    """(n,) positions in lattice units -> (n, nodes) weights of the periodic uniform cubic B-spline."""
    base = np.floor(position).astype(int)
    t = position - base
    weights = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    matrix = np.zeros((position.size, LATTICE_NODES), np.float32)
    for step, weight in enumerate(weights):
        matrix[np.arange(position.size), (base + step - 1) % LATTICE_NODES] += weight / 6
    return matrix


def ellipsoid(place: Place, centre_mm: NDArray, radii_mm: NDArray, turn: NDArray | None = None) -> Field:
    """Distance to an ellipsoid, first order; `turn` (3, 3) holds its axes as rows (default: the world's)."""
    x, y, z = (c - np.float32(m) for c, m in zip(place, centre_mm, strict=True))
    near, steep = np.float32(0), np.float32(0)
    for axis, radius in zip(np.eye(3) if turn is None else turn, radii_mm, strict=True):
        along = (
            (x * np.float32(axis[0]) + y * np.float32(axis[1]) + z * np.float32(axis[2])) / np.float32(radius)
        ) ** 2
        near, steep = near + along, steep + along / np.float32(radius**2)
    near, steep = np.sqrt(near), np.sqrt(steep)
    # At the very centre both vanish; there the distance is that of the shortest radius.
    return np.where(steep > 1e-6, near * (near - 1) / np.maximum(steep, 1e-6), -np.float32(np.min(radii_mm)))


def superellipse(x: Field, y: Field, half_x: Field | float, half_y: Field | float, power: float) -> Field:
    """Distance, first order, to the cylinder |x / half_x|^power + |y / half_y|^power = 1."""
    rho = (np.abs(x / half_x) ** np.float32(power) + np.abs(y / half_y) ** np.float32(power)) ** np.float32(1 / power)
    reach = np.sqrt(x * x + y * y)
    return np.where(rho > 1e-3, reach * (1 - 1 / np.maximum(rho, 1e-3)), -np.minimum(half_x, half_y)).astype(np.float32)


def tube(x: Field, y: Field, centre_x: Field | float, centre_y: Field | float, radius: Field | float) -> Field:
    """Distance to a tube that runs along z; its centre may be a (1, 1, z) line."""
    return np.sqrt((x - centre_x) ** 2 + (y - centre_y) ** 2) - np.float32(radius)


def smooth_union(a: Field, b: Field, blend_mm: float) -> Field:
    """The union of two distances with a fillet of about `blend_mm` (polynomial smooth minimum)."""
    overlap = np.maximum(np.float32(blend_mm) - np.abs(a - b), 0) / np.float32(blend_mm)
    return np.minimum(a, b) - overlap * overlap * np.float32(blend_mm / 4)


def coverage(distance: Field, width_mm: float) -> Field:
    """Fraction (0 to 1) of each voxel that lies inside: a linear step of `width_mm` across the border."""
    return np.clip(np.float32(0.5) - distance / np.float32(width_mm), 0, 1)


def paint(image: Field, distance: Field, value: Field | float, width_mm: float) -> None:
    """Blend `value` (HU) into `image`, in place, where `distance` is inside."""
    inside = coverage(distance, width_mm)
    image += inside * (value - image)


LIMBS = ("thigh", "thighs", "calf", "calves")
PAIRS = {"thighs": "thigh", "calves": "calf"}  # limbs that come in pairs: what each is
KINDS = {"thigh": 0.38, "thighs": 0.12, "calf": 0.14, "chest": 0.06, "abdomen": 0.12, "pelvis": 0.18}  # how often
WIDE_KINDS = {"hips": 0.34, "thighs": 0.24, "calves": 0.1, "chest": 0.08, "abdomen": 0.12, "pelvis": 0.12}
HALF_X_MM = {"thigh": (65, 105), "thighs": (65, 95), "calf": (40, 62), "calves": (40, 62)}
TRUNK_HALF_X_MM = (140, 190)
CROTCH_Z_MM = (-70.0, 110.0)  # of hips: the tumour lies at z = 0, above it or below
LEG_PLACE, LEG_HALF = 0.51, 0.47  # of hips: where a leg's axis lies and how wide the leg is, in half widths of the body
BESIDE = 2.15  # where the other limb of a pair lies, in half widths of a limb


@dataclass(frozen=True)
class Body:
    """The random parameters of one patient; lengths in mm, the long axis of the body along z through x = y = 0."""

    kind: str  # one of KINDS or WIDE_KINDS
    half_x: float
    half_y: float
    power: float  # of the superellipse: 2 is round, more is squarer
    taper: float  # per 100 mm
    fat_mm: float  # under the skin
    wall_mm: float  # muscle around the cavity of a trunk
    muscle_hu: float
    artery_hu: float
    vein_hu: float
    table: bool
    bones: tuple[tuple[float, float, float], ...]  # of a limb: x, y and radius of each shaft
    wide: bool = False  # drawn with everything around it: the other limb, arms, table, nodes and veins in the fat
    crotch_z: float = 0.0  # of hips: where the trunk divides into two legs

    @property
    def limb(self) -> bool:
        return self.kind in LIMBS

    @property
    def leg_x(self) -> float:
        """Of hips: how far the axis of a leg lies from the middle, on either side."""
        return LEG_PLACE * self.half_x

    @property
    def middle_x(self) -> float:
        """The middle between the two limbs of a pair, else 0."""
        return BESIDE / 2 * self.half_x if self.kind in PAIRS else 0.0

    @property
    def reach_x(self) -> float:
        """Distance from `middle_x` to the outermost skin."""
        return self.middle_x + self.half_x


def draw_body(rng: np.random.Generator, wide: bool = False) -> Body:
    """A random patient; with `wide`, one whose cross-section fills a wide field of view."""
    kinds = WIDE_KINDS if wide else KINDS
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    half_x = rng.uniform(*HALF_X_MM.get(kind, TRUNK_HALF_X_MM))
    limb = kind in LIMBS
    phase = rng.choice(["plain", "arterial", "venous"])
    artery, vein = {"plain": (40, 38), "arterial": (rng.uniform(180, 250), rng.uniform(50, 110))}.get(phase, (150, 140))
    fat = float(rng.uniform(3, 0.25 * half_x) if limb else rng.uniform(5, 40))
    reach = half_x - fat
    bones = {
        "thigh": ((rng.uniform(-0.2, 0.2) * reach, rng.uniform(-0.1, 0.2) * reach, rng.uniform(11, 17)),),
        "calf": ((0.35 * reach, 0.3 * reach, rng.uniform(9, 13)), (-0.45 * reach, -0.05 * reach, rng.uniform(5, 7))),
    }
    return Body(
        kind=kind,
        half_x=half_x,
        half_y=half_x * (rng.uniform(0.85, 1.1) if limb else rng.uniform(0.62, 0.78)),
        power=rng.uniform(2.0, 2.5) if limb else rng.uniform(2.1, 2.7),
        taper=rng.uniform(-0.12, 0.12) if limb else rng.uniform(-0.05, 0.05),
        fat_mm=fat,
        wall_mm=rng.uniform(25, 50) if kind == "pelvis" else rng.uniform(12, 30),
        muscle_hu=rng.uniform(38, 65),
        artery_hu=artery * rng.uniform(0.9, 1.1),
        vein_hu=vein * rng.uniform(0.9, 1.1),
        table=bool(rng.random() < 0.5),
        bones=bones[PAIRS.get(kind, kind)] if limb else (),
        wide=wide,
        crotch_z=rng.uniform(*CROTCH_Z_MM) if kind == "hips" else 0.0,
    )


def draw_site(rng: np.random.Generator, body: Body, radius_mm: float) -> NDArray[np.float64]:
    """(3,) position (mm) for a tumour of `radius_mm`: mostly in muscle, sometimes under the skin or retroperitoneal.

    In a limb it lies beside the bones: tumours push against a bone more often than they grow around it.
    """
    if body.kind == "hips":
        return _site_in_hips(rng, body)
    site = np.zeros(3)
    for _ in range(12):
        angle, place = rng.uniform(0, 2 * np.pi), rng.random()
        if place < 0.12:
            depth = body.fat_mm * 0.6
        elif body.limb:
            depth = body.fat_mm + rng.uniform(0.15, 0.6) * (body.half_x - body.fat_mm)
        elif place < 0.75:
            depth = body.fat_mm + body.wall_mm * rng.uniform(0.3, 0.8)
        else:
            depth = body.fat_mm + body.wall_mm + rng.uniform(10, 45)
        surface = np.array([np.cos(angle) * body.half_x, np.sin(angle) * body.half_y, 0.0])
        site = surface * (1 - depth / float(np.linalg.norm(surface)))
        if all(np.hypot(site[0] - x, site[1] - y) > r + 0.6 * radius_mm for x, y, r in body.bones):
            break
    return site


def _site_in_hips(rng: np.random.Generator, body: Body) -> NDArray[np.float64]:
    """In the muscles or the fat of a buttock above the crotch, or of a thigh below it."""
    side, angle = rng.choice([-1, 1]), rng.uniform(0, 2 * np.pi)
    leg = LEG_HALF * body.half_x
    depth = body.fat_mm * 0.6 if rng.random() < 0.2 else body.fat_mm + rng.uniform(0.1, 0.6) * (leg - body.fat_mm)
    return np.array([side * (body.leg_x + (leg - depth) * np.cos(angle)), (leg - depth) * np.sin(angle), 0.0])


FAR_MM = 1e3  # distance to a tissue that is not there
AIR_HU, FAT_HU, SKIN_HU = -1000.0, -108.0, 45.0
SKIN_MM = 2.0


@dataclass
class Tissue:
    """The image (HU) under construction, distances (mm) to what a lesion does not grow into, and to the lesion."""

    rng: np.random.Generator
    body: Body
    frame: Frame
    hu: Field
    skin: Field
    bone: Field
    air: Field
    lesion: Field

    def paint(self, distance: Field, value: Field | float) -> None:
        """Fill a shape with HU, its border blurred by partial volume."""
        paint(self.hu, distance, value, self.frame.edge_mm)

    def noise(self, period_mm: float) -> Field:
        """Smooth noise of s.d. 1, new at each call."""
        return lattice_noise(self.rng, self.frame, period_mm)

    def add_bone(self, distance: Field, cortex_mm: float, marrow_hu: float) -> None:
        """Add a bone with its cortical shell and marrow."""
        self.paint(distance, self.rng.uniform(500, 1200))
        self.paint(distance + np.float32(cortex_mm), marrow_hu + 25 * self.noise(6))
        self.bone = np.minimum(self.bone, distance)


def paint_muscles(tissue: Tissue, fascia: Field, x: Field, y: Field, reach: float, planes: float = 1.0) -> None:
    """Muscle bellies as cells around slanted lines, each with its own HU, between them films of fat times `planes`."""
    rng, frame = tissue.rng, tissue.frame
    count = int(rng.integers(6, 13)) if reach > 45 else int(rng.integers(4, 8))
    angles = np.arange(count) * 2.4 + rng.uniform(0, 6)  # the golden angle spreads the lines evenly
    radii = reach * np.sqrt((np.arange(count) + 0.5) / count) * 0.95
    first, second = np.full(frame.shape, FAR_MM, np.float32), np.full(frame.shape, FAR_MM, np.float32)
    values = np.zeros(frame.shape, np.float32)
    for angle, radius in zip(angles, radii, strict=True):
        slant = rng.uniform(-0.12, 0.12, 2).astype(np.float32)
        centre = radius * np.cos(angle) + slant[0] * frame.z, radius * np.sin(angle) + slant[1] * frame.z
        distance = tube(x, y, *centre, rng.uniform(-6, 6))
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        first = np.where(nearer, distance, first)
        values[nearer] = rng.normal(tissue.body.muscle_hu, 3)
    marbling = rng.uniform(0, 8)
    values += np.float32(marbling) * np.minimum(tissue.noise(5), 0)
    # Fat between bellies is a film that is missing in places (negative thickness).
    thickness = rng.uniform(0.2, 1.4) * (np.float32(rng.uniform(0.0, 1.0)) + tissue.noise(30))
    belly = np.maximum(fascia, np.float32(planes) * thickness - (second - first) / 2)
    tissue.paint(belly, values)
