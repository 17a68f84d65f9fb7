"""What a wide view shows of a phantom: hips that part into two legs, arms, the table, nodes and veins in fat."""

from __future__ import annotations

import numpy as np

from voxsam.phantoms.body import LEG_HALF, Body
from voxsam.phantoms.shapes import Field, Frame, ellipsoid, smooth_union, superellipse, tube
from voxsam.phantoms.tissue import AIR_HU, FAT_HU, SKIN_HU, SKIN_MM, Tissue, paint_muscles

PART_MM = 14.0  # over which the trunk becomes two legs, along z
PELVIS_MM = 90.0  # from the crotch up to the middle of the iliac wings
FAT_ONLY_HU = -60.0  # what is darker (and not air) is fat


def part_into_legs(body: Body, frame: Frame, trunk: Field, x: Field, y: Field) -> Field:
    """The outline of hips: `trunk` above the crotch, two legs below, a cleft between the buttocks behind."""
    leg = superellipse(np.abs(x) - body.leg_x, y, LEG_HALF * body.half_x, 0.92 * body.half_y, 2.2)
    above = 1 / (1 + np.exp(np.clip((body.crotch_z - frame.z) / PART_MM, -30, 30)))
    outline = above * trunk + (1 - above) * leg
    high = np.abs(frame.z - body.crotch_z - 30) - 75
    cleft = np.maximum(np.maximum(np.abs(x) - 2 + 0.08 * np.minimum(y + body.half_y, 40), y + 0.45 * body.half_y), high)
    return np.maximum(outline, -cleft).astype(np.float32)


def hips_inside(tissue: Tissue, outline: Field, x: Field, y: Field) -> Field:
    """Muscles, vessels and bones, alike on both sides; returns the cavity, still to be filled with organs."""
    rng, body, z = tissue.rng, tissue.body, tissue.frame.z - np.float32(tissue.body.crotch_z)
    folded = np.abs(x) - np.float32(body.leg_x)
    fascia = outline + np.float32(body.fat_mm) * (1 + np.float32(0.3) * tissue.noise(45))
    paint_muscles(tissue, fascia, folded, y, LEG_HALF * body.half_x - body.fat_mm, rng.uniform(1, 5))
    wall = np.float32(body.wall_mm) * (1 + np.float32(0.25) * tissue.noise(35))
    cavity = np.maximum(np.maximum(fascia + wall, 25 + 8 * tissue.noise(30) - z), np.float32(-0.45 * body.half_y) - y)
    tissue.paint(cavity, FAT_HU + 5 + 8 * tissue.noise(10))
    _vessels(tissue, folded, y)
    _hip_bones(tissue, folded, x, y, z)
    return cavity


def _vessels(tissue: Tissue, folded: Field, y: Field) -> None:
    """Femoral artery and vein in a bed of fat in the groin, on both sides."""
    rng, body = tissue.rng, tissue.body
    front = 0.5 * body.half_y
    tissue.paint(tube(folded, y, -8, front, 17), FAT_HU + 12)
    for value, at in ((body.artery_hu, 0.0), (body.vein_hu, -15.0)):
        tissue.paint(tube(folded, y, at, front + rng.uniform(-4, 4), rng.uniform(4, 7)), value)


def _hip_bones(tissue: Tissue, folded: Field, x: Field, y: Field, z: Field) -> None:
    """Femurs, heads, iliac wings, seat bones and sacrum; `z` counts from the crotch."""
    rng, body, spongy = tissue.rng, tissue.body, tissue.rng.uniform(110, 230)
    place = folded + np.float32(body.leg_x), y, z  # the right half, seen from either side
    out = rng.uniform(2, 14)
    shaft = np.maximum(tube(folded, y, out + 0.1 * np.minimum(z, 0), rng.uniform(-8, 12), rng.uniform(12, 16)), z - 30)
    trochanter = ellipsoid(place, np.array([body.leg_x + out + 14, -5, 38]), np.array([17, 20, 24.0]))
    head = ellipsoid(place, np.array([body.leg_x - 4, 2, 62]), np.full(3, rng.uniform(22, 27)))
    wing = np.abs(ellipsoid(place, np.array([18.0, 10, PELVIS_MM + 40]), np.array([body.leg_x + 22, 72, 105])))
    wing = np.maximum(np.maximum(wing - np.float32(rng.uniform(3.5, 7)), 75 - z), np.abs(y + 12) - 55)
    seat = ellipsoid(place, np.array([0.62 * body.leg_x, -0.3 * body.half_y, 22]), np.array([12, 15, 26.0]))
    pubis = np.maximum(ellipsoid(place, np.array([14, 0.3 * body.half_y, 52]), np.array([30, 9, 14.0])), 3 - np.abs(x))
    sacrum = ellipsoid((x, y, z), np.array([0, -0.52 * body.half_y, 120]), np.array([42, 18, 55.0]))
    eaten = -tissue.lesion - 2 if rng.random() < 0.7 else np.float32(-1e3)  # thin bones that the lesion destroyed
    tissue.add_bone(smooth_union(shaft, smooth_union(trochanter, head, 10), 8), 4.0, rng.uniform(-60, 120))
    for bone in (wing, seat, pubis, sacrum):
        tissue.add_bone(np.maximum(bone, eaten), 2.0, spongy)


def add_arms(tissue: Tissue, x: Field, y: Field) -> None:
    """Both arms, laid beside the trunk."""
    rng, body = tissue.rng, tissue.body
    radius = rng.uniform(32, 48)
    away, height = body.half_x + radius + rng.uniform(3, 25), rng.uniform(-0.4, 0.2) * body.half_y
    arm = superellipse(np.abs(x) - np.float32(away), y - np.float32(height), radius, 1.1 * radius, 2.2)
    tissue.paint(arm, SKIN_HU)
    tissue.paint(arm + SKIN_MM, FAT_HU + 6 * tissue.noise(8))
    tissue.paint(arm + rng.uniform(5, 14), rng.normal(body.muscle_hu, 3) + 6 * tissue.noise(9))
    bone = tube(np.abs(x), y, away + rng.uniform(-6, 6), height + rng.uniform(-6, 6), rng.uniform(8, 11))
    tissue.add_bone(bone, 3.5, rng.uniform(-60, 60))


def add_table(tissue: Tissue) -> None:
    """A curved table of two hard shells with foam between them, at times a pad on it."""
    rng, body, frame = tissue.rng, tissue.body, tissue.frame
    level = -(body.half_y + rng.uniform(3, 14)) + ((frame.x - body.middle_x) / rng.uniform(28, 60)) ** 2
    depth, width = level - frame.y, np.abs(frame.x - body.middle_x) - rng.uniform(190, 240)
    thick, shell = rng.uniform(18, 50), rng.uniform(1.5, 3.5)
    free = (tissue.hu - np.float32(AIR_HU + 150)) / 50  # what is not air keeps its place
    block = np.maximum(np.maximum(-depth, depth - np.float32(thick)), width)
    tissue.paint(np.maximum(block, free), rng.uniform(-985, -880))
    hard = np.maximum(np.abs(block + np.float32(shell / 2)) - np.float32(shell / 2), free)
    tissue.paint(hard, rng.uniform(-250, 350))
    if rng.random() < 0.5:
        pad = np.maximum(np.maximum(depth, -depth - rng.uniform(4, 14)), width + 20)
        tissue.paint(np.maximum(pad, free), rng.uniform(-980, -800))


def add_to_fat(tissue: Tissue) -> None:
    """Small nodes, veins and septa in the fat: soft tissue that is no tumour."""
    rng, frame = tissue.rng, tissue.frame
    fat = (tissue.hu < FAT_ONLY_HU) & (tissue.hu > -150) & (tissue.skin < -4)
    soft = np.float32(rng.uniform(25, 60))
    nodes = np.float32(rng.uniform(2.6, 3.4)) - tissue.noise(rng.uniform(9, 16))
    septa = np.abs(tissue.noise(rng.uniform(14, 28))) - np.float32(rng.uniform(0.0, 0.06))
    fraction = np.clip(0.5 - nodes * 2.5, 0, 1) + np.clip(0.5 - septa * 8, 0, 0.5)
    wave = np.float32(rng.uniform(5, 15)) * np.sin(frame.z / np.float32(rng.uniform(30, 60)))
    for _ in range(int(rng.integers(1, 5))):
        angle, deep = rng.uniform(0, 2 * np.pi), rng.uniform(0.82, 0.96)
        at_x = tissue.body.middle_x + deep * np.cos(angle) * tissue.body.reach_x + wave
        vein = tube(frame.x, frame.y, at_x, deep * np.sin(angle) * tissue.body.half_y, rng.uniform(1.5, 3.5))
        fraction = np.maximum(fraction, np.clip(0.5 - vein / np.float32(frame.edge_mm), 0, 1))
    tissue.hu += fat * np.clip(fraction, 0, 1) * (soft - tissue.hu)
