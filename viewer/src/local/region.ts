// A set of voxels of a scan: the smallest box that holds them, and a byte for each voxel of that box. Immutable.
import type { Box, Index } from "../engine/engine";
import { isEmpty, sizeOf } from "../stage/geometry";
import { boundingBox, countOf, eachRow, hull, intersection, NOWHERE, perAxis, sumOf } from "./boxes";
import { componentsAt } from "./components";

export interface Region {
  readonly box: Box;
  readonly inside: Uint8Array; // 0 or 1, i fastest
}

export const EMPTY: Region = { box: NOWHERE, inside: new Uint8Array() };

/** The nonzero voxels of an array of `size`, whose first voxel is voxel `low` of the scan. */
export function regionOf(inside: Uint8Array, size: Index, low: Index = [0, 0, 0]): Region {
  const found = boundingBox(inside, size);
  if (isEmpty(found)) return EMPTY;
  const kept = new Uint8Array(countOf(found));
  eachRow(found, { low: [0, 0, 0], high: size }, found, (from, to, length) => {
    for (let n = 0; n < length; n++) kept[to + n] = inside[from + n] ? 1 : 0;
  });
  return { box: { low: perAxis((axis) => found.low[axis] + low[axis]), high: perAxis((axis) => found.high[axis] + low[axis]) }, inside: kept };
}

/** The region as a mask on any box; a new array. */
export function within(region: Region, box: Box): Uint8Array {
  const out = new Uint8Array(countOf(box));
  eachRow(intersection(region.box, box), region.box, box, (from, to, length) => out.set(region.inside.subarray(from, from + length), to));
  return out;
}

/** The voxels of a box for which `keep` of their values (0 or 1) in the two regions is not 0. */
function combined(a: Region, b: Region, box: Box, keep: (inA: number, inB: number) => number): Region {
  const inside = within(a, box);
  const other = within(b, box);
  for (let n = 0; n < inside.length; n++) inside[n] = keep(inside[n]!, other[n]!);
  return regionOf(inside, sizeOf(box), box.low);
}

/** The voxels that either has. */
export function union(a: Region, b: Region): Region {
  if (isEmpty(a.box) || isEmpty(b.box)) return isEmpty(a.box) ? b : a;
  return combined(a, b, hull([a.box, b.box]), (inA, inB) => inA | inB);
}

/** The voxels that both have. */
export function common(a: Region, b: Region): Region {
  return combined(a, b, intersection(a.box, b.box), (inA, inB) => inA & inB);
}

/** Whether any two of the regions share voxels. */
export function overlapping(regions: Region[]): boolean {
  return regions.some((a, n) => regions.slice(n + 1).some((b) => !isEmpty(common(a, b).box)));
}

/** The voxels of `a` that are not in `b`. */
export function minus(a: Region, b: Region): Region {
  return isEmpty(intersection(a.box, b.box)) ? a : combined(a, b, a.box, (inA, inB) => inA & ~inB);
}

/** The bounding box of the voxels that only one of the two has. */
export function differs(a: Region, b: Region): Box {
  return combined(a, b, hull([a.box, b.box]), (inA, inB) => inA ^ inB).box;
}

/** How many voxels it has. */
export function voxelsOf(region: Region): number {
  return sumOf(region.inside);
}

export function holds(region: Region, voxel: Index): boolean {
  const { low, high } = region.box;
  if (!voxel.every((v, axis) => v >= (low[axis] as number) && v < (high[axis] as number))) return false;
  return region.inside[offset(region, voxel)] === 1;
}

/** The components (joined through faces) that hold any of the voxels; EMPTY if none does. */
export function componentsOf(region: Region, voxels: Index[]): Region {
  const held = voxels.filter((voxel) => holds(region, voxel));
  if (held.length === 0) return EMPTY;
  const size = sizeOf(region.box);
  return regionOf(componentsAt(region.inside, size, held.map((voxel) => offset(region, voxel))), size, region.box.low);
}

/** Where a voxel of the box lies in `inside`. */
function offset({ box }: Region, [i, j, k]: Index): number {
  const [ni, nj] = sizeOf(box);
  return ((k - box.low[2]) * nj + (j - box.low[1])) * ni + i - box.low[0];
}
