// Boxes of voxels: intersections, hulls, and where the rows of one lie in the array of another. Starts may be negative.
import type { Box, Index } from "../engine/engine";
import { isEmpty, sizeOf } from "../stage/geometry";

export const NOWHERE: Box = { low: [0, 0, 0], high: [0, 0, 0] };
export const AXES = [0, 1, 2] as const;

/** Three numbers, one for each axis. */
export function perAxis(of: (axis: 0 | 1 | 2) => number): Index {
  return [of(0), of(1), of(2)];
}

export function countOf(box: Box): number {
  return sizeOf(box).reduce((product, n) => product * Math.max(0, n), 1);
}

/** The voxels that two boxes share; NOWHERE if there is none. */
export function intersection(a: Box, b: Box): Box {
  const shared: Box = { low: perAxis((axis) => Math.max(a.low[axis], b.low[axis])), high: perAxis((axis) => Math.min(a.high[axis], b.high[axis])) };
  return isEmpty(shared) ? NOWHERE : shared;
}

/** The smallest box that holds all of `boxes`; empty ones do not count. */
export function hull(boxes: Iterable<Box>): Box {
  const filled = [...boxes].filter((box) => !isEmpty(box));
  if (filled.length === 0) return NOWHERE;
  return {
    low: perAxis((axis) => Math.min(...filled.map((box) => box.low[axis]))),
    high: perAxis((axis) => Math.max(...filled.map((box) => box.high[axis]))),
  };
}

/** The box with `margin` voxels more on every side. */
export function grown(box: Box, margin: number): Box {
  return { low: perAxis((axis) => box.low[axis] - margin), high: perAxis((axis) => box.high[axis] + margin) };
}

/** The boxes, any two of them merged if their hull has no more voxels than both together. */
export function joined(boxes: Box[]): Box[] {
  const waiting = [...boxes];
  const done: Box[] = [];
  for (let box = waiting.pop(); box; box = waiting.pop()) {
    const fits = (other: Box) => countOf(hull([box as Box, other])) <= countOf(box as Box) + countOf(other);
    const others = [waiting, done].find((list) => list.some(fits));
    if (others) waiting.push(hull([box, ...others.splice(others.findIndex(fits), 1)]));
    else done.push(box);
  }
  return done;
}

/** Visit each row (along i) of a box inside both `a` and `b`: where it starts in the array of each, and its length. */
export function eachRow(common: Box, a: Box, b: Box, visit: (inA: number, inB: number, length: number) => void): void {
  if (isEmpty(common)) return;
  const [sizeA, sizeB] = [sizeOf(a), sizeOf(b)];
  const length = common.high[0] - common.low[0];
  for (let k = common.low[2]; k < common.high[2]; k++) {
    for (let j = common.low[1]; j < common.high[1]; j++) {
      const inA = ((k - a.low[2]) * sizeA[1] + (j - a.low[1])) * sizeA[0] + common.low[0] - a.low[0];
      const inB = ((k - b.low[2]) * sizeB[1] + (j - b.low[1])) * sizeB[0] + common.low[0] - b.low[0];
      visit(inA, inB, length);
    }
  }
}

/** The number of voxels in a mask of 0 and 1. */
export function sumOf(inside: Uint8Array): number {
  let sum = 0;
  for (let n = 0; n < inside.length; n++) sum += inside[n]!;
  return sum;
}

/** The bounding box of the nonzero voxels of an array of `size`, i fastest; NOWHERE if there are none. */
export function boundingBox(inside: Uint8Array, [ni, nj, nk]: Index): Box {
  const low: Index = [ni, nj, nk];
  const high: Index = [0, 0, 0];
  for (let k = 0, row = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++, row += ni) {
      let first = 0;
      while (first < ni && !inside[row + first]) first++;
      if (first === ni) continue;
      let last = ni - 1;
      while (!inside[row + last]) last--;
      const ends: [Index, Index] = [[first, j, k], [last + 1, j + 1, k + 1]];
      for (const axis of AXES) {
        low[axis] = Math.min(low[axis], ends[0][axis]);
        high[axis] = Math.max(high[axis], ends[1][axis]);
      }
    }
  }
  return high[0] === 0 ? NOWHERE : { low, high };
}
