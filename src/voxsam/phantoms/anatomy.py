"""Paint a phantom's body into a volume: trunk, organs and bones; hips, legs and arms for whole cross-sections."""

from __future__ import annotations

import numpy as np

from voxsam.phantoms.body import (
    AIR_HU,
    BESIDE,
    FAR_MM,
    FAT_HU,
    LEG_HALF,
    PAIRS,
    SKIN_HU,
    SKIN_MM,
    Body,
    Field,
    Frame,
    Tissue,
    ellipsoid,
    lattice_noise,
    paint_muscles,
    smooth_union,
    superellipse,
    tube,
)

PART_MM = 14.0  # over which the trunk becomes two legs, along z
PELVIS_MM = 90.0  # from the crotch up to the middle of the iliac wings
FAT_ONLY_HU = -60.0  # anything darker that is not air is fat


def part_into_legs(body: Body, frame: Frame, trunk: Field, x: Field, y: Field) -> Field:
    """The outline of hips: `trunk` above the crotch, two legs below, a cleft between the buttocks behind."""
    leg = superellipse(np.abs(x) - body.leg_x, y, LEG_HALF * body.half_x, 0.92 * body.half_y, 2.2)
    above = 1 / (1 + np.exp(np.clip((body.crotch_z - frame.z) / PART_MM, -30, 30)))
    outline = above * trunk + (1 - above) * leg
    high = np.abs(frame.z - body.crotch_z - 30) - 75
    cleft = np.maximum(np.maximum(np.abs(x) - 2 + 0.08 * np.minimum(y + body.half_y, 40), y + 0.45 * body.half_y), high)
    return np.maximum(outline, -cleft).astype(np.float32)


def hips_inside(tissue: Tissue, outline: Field, x: Field, y: Field) -> Field:
    """Paint muscles, vessels and bones, alike on both sides; returns the cavity, still to be filled with organs."""
    rng, body, z = tissue.rng, tissue.body, tissue.frame.z - np.float32(tissue.body.crotch_z)
    folded = np.abs(x) - np.float32(body.leg_x)
    fascia = outline + np.float32(body.fat_mm) * (1 + np.float32(0.3) * tissue.noise(45))
    paint_muscles(tissue, fascia, folded, y, LEG_HALF * body.half_x - body.fat_mm, rng.uniform(1, 5))
    wall = np.float32(body.wall_mm) * (1 + np.float32(0.25) * tissue.noise(35))
    cavity = np.maximum(np.maximum(fascia + wall, 25 + 8 * tissue.noise(30) - z), np.float32(-0.45 * body.half_y) - y)
    tissue.paint(cavity, FAT_HU + 5 + 8 * tissue.noise(10))
    front = 0.5 * body.half_y  # femoral artery and vein in a bed of fat in the groin
    tissue.paint(tube(folded, y, -8, front, 17), FAT_HU + 12)
    for value, at in ((body.artery_hu, 0.0), (body.vein_hu, -15.0)):
        tissue.paint(tube(folded, y, at, front + rng.uniform(-4, 4), rng.uniform(4, 7)), value)
    _hip_bones(tissue, folded, x, y, z)
    return cavity


def _hip_bones(tissue: Tissue, folded: Field, x: Field, y: Field, z: Field) -> None:
    """Femurs with their heads, iliac wings, ischia, pubis and sacrum; `z` is measured from the crotch."""
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
    """Both arms, lying beside the trunk."""
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
    """A curved table of two hard shells with foam between them, sometimes with a pad on it."""
    rng, body, frame = tissue.rng, tissue.body, tissue.frame
    level = -(body.half_y + rng.uniform(3, 14)) + ((frame.x - body.middle_x) / rng.uniform(28, 60)) ** 2
    depth, width = level - frame.y, np.abs(frame.x - body.middle_x) - rng.uniform(190, 240)
    thick, shell = rng.uniform(18, 50), rng.uniform(1.5, 3.5)
    free = (tissue.hu - np.float32(AIR_HU + 150)) / 50  # whatever is not air stays
    block = np.maximum(np.maximum(-depth, depth - np.float32(thick)), width)
    tissue.paint(np.maximum(block, free), rng.uniform(-985, -880))
    hard = np.maximum(np.abs(block + np.float32(shell / 2)) - np.float32(shell / 2), free)
    tissue.paint(hard, rng.uniform(-250, 350))
    if rng.random() < 0.5:
        pad = np.maximum(np.maximum(depth, -depth - rng.uniform(4, 14)), width + 20)
        tissue.paint(np.maximum(pad, free), rng.uniform(-980, -800))


def add_to_fat(tissue: Tissue) -> None:
    """Small nodes, veins and septa in the fat: soft tissue that is not tumour."""
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


def render_body(rng: np.random.Generator, body: Body, frame: Frame, lesion: Field) -> Tissue:
    """The patient without the lesion, whose distance `lesion` makes the skin bulge and takes thin bones away."""
    warp = rng.uniform(1.5, 5.0)
    x = frame.x + np.float32(warp) * lattice_noise(rng, frame, 45)
    y = frame.y + np.float32(warp) * lattice_noise(rng, frame, 45)
    grow = np.exp(np.float32(body.taper / 100) * frame.z)
    outline = superellipse(x, y, body.half_x * grow, body.half_y * grow, body.power)
    if body.kind == "hips":
        outline = part_into_legs(body, frame, outline, x, y)
    skin = smooth_union(outline, lesion - np.float32(max(0.5 * body.fat_mm, 4)), 12.0)
    hu = np.full(frame.shape, AIR_HU, np.float32)
    tissue = Tissue(rng, body, frame, hu, skin, np.full_like(hu, FAR_MM), np.full_like(hu, FAR_MM), lesion)
    if body.kind in PAIRS:
        beside = x - np.float32(BESIDE * body.half_x)
        other = superellipse(beside, y, body.half_x * grow, body.half_y * grow, body.power)
        tissue.paint(other, SKIN_HU)
        tissue.paint(other + SKIN_MM, FAT_HU)
        _limb_inside(tissue, other, beside, y)
    tissue.paint(skin, SKIN_HU)
    tissue.paint(skin + SKIN_MM, FAT_HU + 6 * tissue.noise(8))
    if body.kind == "hips":
        _organs(tissue, hips_inside(tissue, outline, x, y), x, y)
    else:
        (_limb_inside if body.limb else _trunk_inside)(tissue, outline, x, y)
    if body.wide:
        add_to_fat(tissue)
        if not body.limb and rng.random() < 0.35:
            add_arms(tissue, x, y)
        if body.table:
            add_table(tissue)
    elif body.table:
        level = -(body.half_y + rng.uniform(4, 12)) + (frame.x / 60) ** 2
        board = np.maximum(np.abs(frame.y - level) - 1.5, np.abs(frame.x) - 220)
        tissue.paint(board, rng.uniform(-200, 150))
    return tissue


def _limb_inside(tissue: Tissue, outline: Field, x: Field, y: Field) -> None:
    rng, body, frame = tissue.rng, tissue.body, tissue.frame
    fascia = outline + np.float32(body.fat_mm) * (1 + np.float32(0.2) * tissue.noise(40))
    reach = body.half_x - body.fat_mm
    paint_muscles(tissue, fascia, x, y, reach, rng.uniform(1, 5) if body.wide else 1.0)
    joint = rng.random() < 0.25  # near a joint bones are wide, with a thin cortex and spongy marrow
    for bone_x, bone_y, radius in body.bones:
        slant = np.float32(rng.uniform(-0.06, 0.06)) * frame.z
        shaft = superellipse(x - bone_x - slant, y - np.float32(bone_y), radius, radius * rng.uniform(0.8, 1.2), 2.0)
        if joint:
            flare = np.float32(rng.uniform(6, 18)) / (1 + np.exp((frame.z - np.float32(rng.uniform(-60, 60))) / 12))
            tissue.add_bone(shaft - flare, 2.0, rng.uniform(60, 200))
        else:
            tissue.add_bone(shaft, rng.uniform(0.25, 0.5) * radius, rng.uniform(-60, 60))
    near_x, near_y, radius = body.bones[0]
    for value in (body.artery_hu, body.vein_hu):
        angle, away = rng.uniform(0, 2 * np.pi), radius + rng.uniform(6, 16)
        line = 5 * np.sin(frame.z / np.float32(40) + np.float32(rng.uniform(0, 6)))
        at = near_x + away * np.cos(angle) + line, near_y + away * np.sin(angle) - line
        around = rng.uniform(2.5, 5)
        tissue.paint(tube(x, y, *at, around + 2.5), FAT_HU + 20)
        tissue.paint(tube(x, y, *at, around), value)


def _trunk_inside(tissue: Tissue, outline: Field, x: Field, y: Field) -> None:
    rng, body, frame = tissue.rng, tissue.body, tissue.frame
    fascia = outline + np.float32(body.fat_mm) * (1 + np.float32(0.15) * tissue.noise(50))
    cavity = fascia + np.float32(body.wall_mm) * (1 + np.float32(0.25) * tissue.noise(35))
    paint_muscles(tissue, fascia, x, y, body.half_x - body.fat_mm)
    spine_y = -(body.half_y - body.fat_mm - rng.uniform(48, 60))
    # The cavity spares the muscles beside the spine.
    back = smooth_union(tube(x, y, -38, spine_y - 22, 30), tube(x, y, 38, spine_y - 22, 30), 15)
    cavity = np.maximum(cavity, -back)
    tissue.paint(cavity, FAT_HU + 5 + 8 * tissue.noise(10))
    _organs(tissue, cavity, x, y)
    for side in (-1, 1):
        if body.kind != "chest":
            psoas = tube(x, y, side * (40 + 0.15 * np.abs(frame.z - 60)), spine_y + 5, rng.uniform(14, 22))
            tissue.paint(psoas, rng.normal(body.muscle_hu, 2))
    for value, side, radius in ((body.artery_hu, -1, rng.uniform(8, 12)), (body.vein_hu, 1, rng.uniform(8, 13))):
        line = 4 * np.sin(frame.z / np.float32(50) + np.float32(rng.uniform(0, 6)))
        tissue.paint(tube(x, y, side * 14 + line, spine_y + 34, radius), value)
    _skeleton(tissue, fascia, spine_y, x, y)


def _organs(tissue: Tissue, cavity: Field, x: Field, y: Field) -> None:
    rng, body, warped = tissue.rng, tissue.body, (x, y, tissue.frame.z)
    room = np.array([body.half_x, body.half_y, 1.0]) * 0.55
    if body.kind == "chest":
        for side in (-1, 1):
            radii = np.array([body.half_x * 0.42, body.half_y * 0.72, 160])
            lung = np.maximum(ellipsoid(warped, np.array([side * body.half_x * 0.45, 5, 0]), radii), cavity + 2)
            texture = 40 * tissue.noise(7)
            tissue.paint(lung, rng.uniform(-880, -780) + texture)
            tissue.air = np.minimum(tissue.air, lung)
    enhanced = 40 if body.vein_hu > 80 else 0
    for _ in range(int(rng.integers(4, 9)) if body.kind != "chest" else 2):
        centre = rng.uniform(-1, 1, 3) * [room[0], room[1], 120]
        blob = ellipsoid(warped, centre, rng.uniform(15, 48, 3)) + 4 * tissue.noise(25)
        blob = np.maximum(blob, cavity + 3)
        value = rng.uniform(40, 75) + enhanced * rng.random()
        tissue.paint(blob, value + 3 * tissue.noise(12))
        if rng.random() < 0.35:  # a hollow organ: gas above, fluid or paste below
            wall = blob + np.float32(rng.uniform(2, 4))
            tissue.paint(wall, rng.uniform(0, 40))
            gas = np.maximum(wall, np.float32(centre[1] + rng.uniform(-8, 15)) - y)
            tissue.paint(gas, -950.0)
            tissue.air = np.minimum(tissue.air, gas)


def _skeleton(tissue: Tissue, fascia: Field, spine_y: float, x: Field, y: Field) -> None:
    rng, body, frame = tissue.rng, tissue.body, tissue.frame
    z, spongy = frame.z + np.float32(rng.uniform(0, 35)), rng.uniform(110, 230)
    discs = 4 - np.abs((z % 35) - 17.5)
    vertebra = np.maximum(superellipse(x, y - spine_y, 23.0, 17.0, 2.2), discs)
    tissue.paint(superellipse(x, y - spine_y, 22.0, 16.0, 2.2), 85.0)
    arch = np.abs(tube(x, y, 0, spine_y - 25, 12)) - 3
    spinous = np.maximum(np.abs(x) - 4, np.abs(y - (spine_y - 46)) - 12)
    processes = np.maximum(np.abs(y - (spine_y - 20)) - 4, np.abs(x) - 34)
    behind = np.maximum(smooth_union(np.minimum(arch, spinous), processes, 4), np.abs((z % 35) - 2) - 12)
    behind = np.maximum(behind, 9 - tube(x, y, 0, spine_y - 25, 0))  # the canal stays open
    tissue.add_bone(vertebra, 2.0, spongy)
    tissue.add_bone(behind, 2.0, spongy)
    # Ribs or pelvis. Most lesions destroy the thin bones that they reach.
    eaten = -tissue.lesion - 2 if rng.random() < 0.7 else np.float32(-FAR_MM)
    if body.kind in ("chest", "abdomen"):
        period = rng.uniform(26, 34)
        slices = np.abs((frame.z + np.float32(0.5) * y) % np.float32(period) - np.float32(period / 2)) - 5
        ribs = np.maximum(np.maximum(np.abs(fascia + 7) - 4, slices), 25 - np.abs(x))
        tissue.add_bone(np.maximum(ribs, eaten), 1.5, spongy * 0.6)
    if body.kind == "pelvis":
        for side in (-1, 1):
            big = np.array([side * 20.0, 10, 30])
            wing = np.abs(ellipsoid((x, y, frame.z), big, np.array([92, 78, 120]))) - np.float32(rng.uniform(3.5, 7))
            wing = np.maximum(np.maximum(np.maximum(wing, 45 - side * x), np.abs(y + 15) - 55), eaten)
            head = ellipsoid((x, y, frame.z), np.array([side * 92.0, 0, -60]), np.full(3, rng.uniform(22, 27)))
            tissue.add_bone(np.minimum(wing, head), 2.0, spongy)
