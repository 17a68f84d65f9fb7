// Regions and boxes of voxels: known answers, and every operation against a set of voxels.
import { describe, expect, it } from "vitest";
import type { Box, Index } from "../src/engine/engine";
import { boundingBox, grown, hull, intersection, joined, NOWHERE } from "../src/local/boxes";
import { label } from "../src/local/components";
import { common, componentsOf, differs, EMPTY, holds, minus, regionOf, union, voxelsOf, within, type Region } from "../src/local/region";

const SIZE: Index = [4, 3, 2];

function filled(voxels: Index[], size: Index = SIZE): Uint8Array {
  const out = new Uint8Array(size[0] * size[1] * size[2]);
  for (const [i, j, k] of voxels) out[(k * size[1] + j) * size[0] + i] = 7;
  return out;
}

function voxels(region: Region): string[] {
  const found: string[] = [];
  const { low, high } = region.box;
  for (let k = low[2]; k < high[2]; k++) {
    for (let j = low[1]; j < high[1]; j++) for (let i = low[0]; i < high[0]; i++) if (holds(region, [i, j, k])) found.push(`${i},${j},${k}`);
  }
  return found.sort();
}

/** Half of the voxels of the scan, drawn by a seed. */
function drawn(seed: number): Region {
  let state = seed;
  const random = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
  const size: Index = [3, 2, 4];
  return regionOf(Uint8Array.from({ length: 24 }, () => (random() < 0.5 ? 1 : 0)), size, [Math.floor(3 * random()), seed % 3, 1]);
}

describe("a region", () => {
  it("is kept as the smallest box, with ones", () => {
    const region = regionOf(filled([[1, 2, 0], [2, 1, 1]]), SIZE, [10, 20, 30]);
    expect(region.box).toEqual({ low: [11, 21, 30], high: [13, 23, 32] });
    expect([...region.inside]).toEqual([0, 0, 1, 0, 0, 1, 0, 0]);
    expect(voxelsOf(region)).toBe(2);
    expect(holds(region, [12, 21, 31])).toBe(true);
    expect(holds(region, [13, 21, 31])).toBe(false);
    expect([...within(region, { low: [12, 21, 31], high: [14, 22, 32] })]).toEqual([1, 0]);
  });

  it("without voxels is EMPTY", () => {
    expect(regionOf(filled([]), SIZE)).toBe(EMPTY);
    expect(minus(drawn(1), drawn(1))).toBe(EMPTY);
    expect(union(EMPTY, EMPTY)).toBe(EMPTY);
    expect(differs(drawn(1), drawn(1))).toEqual(NOWHERE);
  });

  it("is joined, shared and taken away as sets are, and its parts do not change", () => {
    for (let seed = 1; seed < 40; seed++) {
      const [a, b] = [drawn(seed), drawn(seed + 100)];
      const [inA, inB] = [voxels(a), voxels(b)];
      expect(voxels(union(a, b))).toEqual([...new Set([...inA, ...inB])].sort());
      expect(voxels(common(a, b))).toEqual(inA.filter((voxel) => inB.includes(voxel)));
      expect(voxels(minus(a, b))).toEqual(inA.filter((voxel) => !inB.includes(voxel)));
      expect(differs(a, b)).toEqual(union(minus(a, b), minus(b, a)).box);
      expect([voxels(a), voxels(b)]).toEqual([inA, inB]);
    }
  });

  it("has components that are joined through faces, not edges", () => {
    const region = regionOf(filled([[0, 0, 0], [1, 0, 0], [2, 1, 0], [2, 1, 1], [0, 2, 1]]), SIZE, [1, 0, 0]);
    expect(voxels(componentsOf(region, [[2, 0, 0]]))).toEqual(["1,0,0", "2,0,0"]);
    expect(voxels(componentsOf(region, [[3, 1, 1], [1, 2, 1]]))).toEqual(["1,2,1", "3,1,0", "3,1,1"]);
    expect(componentsOf(region, [[4, 2, 1]])).toBe(EMPTY);
    expect(label(filled([[0, 0, 0], [1, 0, 0], [2, 1, 0], [2, 1, 1], [0, 2, 1]]), SIZE).count).toBe(3);
  });

  it("may be one large component", () => {
    const size: Index = [60, 50, 40];
    const { labels, count } = label(new Uint8Array(120_000).fill(1), size);
    expect(count).toBe(1);
    expect(labels.every((number) => number === 1)).toBe(true);
  });
});

describe("boxes", () => {
  const a: Box = { low: [0, 0, 0], high: [4, 4, 4] };
  const b: Box = { low: [3, -2, 1], high: [6, 2, 9] };

  it("meet, are held and grow", () => {
    expect(intersection(a, b)).toEqual({ low: [3, 0, 1], high: [4, 2, 4] });
    expect(intersection(a, { low: [4, 0, 0], high: [5, 1, 1] })).toEqual(NOWHERE);
    expect(hull([a, NOWHERE, b])).toEqual({ low: [0, -2, 0], high: [6, 4, 9] });
    expect(grown(b, 1)).toEqual({ low: [2, -3, 0], high: [7, 3, 10] });
    expect(boundingBox(new Uint8Array(24), SIZE)).toEqual(NOWHERE);
  });

  it("become one where that takes no more voxels", () => {
    const beside: Box = { low: [4, 0, 0], high: [6, 4, 4] };
    const far: Box = { low: [90, 0, 0], high: [91, 1, 1] };
    expect(joined([a, far, beside])).toEqual([{ low: [0, 0, 0], high: [6, 4, 4] }, far]);
  });
});
