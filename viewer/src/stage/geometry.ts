// Voxel indices: the scan's own (i, j, k) to and from RAS order (growing to the right, anterior, superior).
import type { Box, Index } from "../engine/engine";

/**
 * How the scan's array is oriented. `axes[p]` is the array axis, counted from 1, that runs along RAS axis p; negative
 * if it runs against it.
 */
export interface Orientation {
  shape: Index;
  axes: Index;
}

/** The planes, and the RAS axis that each is perpendicular to. */
export const PLANES = ["axial", "coronal", "sagittal"] as const;
export type Plane = (typeof PLANES)[number];
export const NORMAL: Record<Plane, 0 | 1 | 2> = { axial: 2, coronal: 1, sagittal: 0 };

const ORDERS: Index[] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/** The orientation of an array: one array axis per RAS axis, as parallel as possible. `affine`: indices to RAS+ mm. */
export function orientationOf(affine: number[][], shape: Index): Orientation {
  const cosine = (p: number, axis: number) => affine[p]![axis]! / Math.hypot(...[0, 1, 2].map((row) => affine[row]![axis]!));
  const fit = (order: Index) => order.reduce((sum, axis, p) => sum + Math.abs(cosine(p, axis)), 0);
  const best = ORDERS.reduce((a, b) => (fit(b) > fit(a) + 1e-9 ? b : a));
  return { shape, axes: best.map((axis, p) => (cosine(p, axis) < 0 ? -1 : 1) * (axis + 1)) as Index };
}

function at(vector: readonly number[], axis: number): number {
  return vector[axis] as number;
}

/** The array axis, from 0, that is perpendicular to a plane. */
export function normalAxis(orientation: Orientation, plane: Plane): number {
  return Math.abs(orientation.axes[NORMAL[plane]]) - 1;
}

export function rasShape({ shape, axes }: Orientation): Index {
  return axes.map((axis) => at(shape, Math.abs(axis) - 1)) as Index;
}

export function toRas({ shape, axes }: Orientation, index: Index): Index {
  return axes.map((axis) => {
    const native = Math.abs(axis) - 1;
    return axis > 0 ? at(index, native) : at(shape, native) - 1 - at(index, native);
  }) as Index;
}

export function fromRas({ shape, axes }: Orientation, ras: Index): Index {
  const index: Index = [0, 0, 0];
  axes.forEach((axis, p) => {
    const native = Math.abs(axis) - 1;
    index[native] = axis > 0 ? at(ras, p) : at(shape, native) - 1 - at(ras, p);
  });
  return index;
}

export function sizeOf({ low, high }: Box): Index {
  return high.map((h, axis) => h - at(low, axis)) as Index;
}

export function isEmpty(box: Box): boolean {
  return sizeOf(box).some((n) => n <= 0);
}

/** Whether two voxels are the same. */
export function same(a: Index, b: Index): boolean {
  return a.every((v, axis) => v === b[axis]);
}

/** The nearest voxel of the scan. */
export function clamp(index: Index, shape: Index): Index {
  return index.map((v, axis) => Math.min(Math.max(Math.round(v), 0), at(shape, axis) - 1)) as Index;
}

/** RAS+ millimetres of a voxel's centre; `affine` as in the file. */
export function toWorld(affine: number[][], index: Index): Index {
  return [0, 1, 2].map((row) => {
    const a = affine[row] as number[];
    return at(a, 0) * index[0] + at(a, 1) * index[1] + at(a, 2) * index[2] + at(a, 3);
  }) as Index;
}

/** The voxels on a straight line, both ends included, each touching the next (sides, edges or corners). */
export function line(from: Index, to: Index): Index[] {
  const steps = Math.max(...from.map((v, axis) => Math.abs(at(to, axis) - v)));
  if (steps === 0) return [[...from]];
  return Array.from({ length: steps + 1 }, (_, n) =>
    from.map((v, axis) => Math.round(v + ((at(to, axis) - v) * n) / steps)) as Index,
  );
}

export type Direction = "left" | "right" | "up" | "down" | "forward" | "back";

// On the screen the patient faces you: their right is on your left, and in profile they face left.
const STEPS: Record<Plane, Record<Direction, Index>> = {
  axial: { right: [-1, 0, 0], left: [1, 0, 0], up: [0, 1, 0], down: [0, -1, 0], forward: [0, 0, 1], back: [0, 0, -1] },
  coronal: { right: [-1, 0, 0], left: [1, 0, 0], up: [0, 0, 1], down: [0, 0, -1], forward: [0, 1, 0], back: [0, -1, 0] },
  sagittal: { right: [0, -1, 0], left: [0, 1, 0], up: [0, 0, 1], down: [0, 0, -1], forward: [1, 0, 0], back: [-1, 0, 0] },
};

/** The voxel `count` steps away, as seen in a plane; stays on the scan. */
export function step(orientation: Orientation, index: Index, plane: Plane, direction: Direction, count = 1): Index {
  const move = STEPS[plane][direction];
  const ras = toRas(orientation, index).map((v, p) => v + count * at(move, p)) as Index;
  return fromRas(orientation, clamp(ras, rasShape(orientation)));
}
