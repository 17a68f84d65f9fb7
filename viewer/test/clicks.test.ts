// Prompts become clicks, and what cannot be used is said in words.
import { describe, expect, it } from "vitest";
import type { Index } from "../src/engine/engine";
import { distances } from "../src/local/distance";
import { boxOf, clicksOf, knownPrompt, MAX_CLICKS, spread } from "../src/local/prompts";
import { regionOf } from "../src/local/region";

const SCAN = { shape: [20, 12, 8] as Index, spacing_mm: [1, 2, 5] as Index };

describe("distances", () => {
  it("are those to the nearest voxel outside, in mm", () => {
    const shape: Index = [5, 4, 3];
    const spacing = [1, 1.5, 4];
    const inside = Uint8Array.from({ length: 60 }, (_, n) => Number(n % 7 !== 3 && n % 11 !== 5));
    const at = (n: number) => [n % 5, Math.floor(n / 5) % 4, Math.floor(n / 20)].map((v, axis) => v * spacing[axis]!);
    const outside = [...inside.keys()].filter((n) => !inside[n]);
    const expected = [...inside.keys()].map((n) => Math.min(...outside.map((m) => Math.hypot(...at(n).map((v, axis) => v - at(m)[axis]!)))));
    distances(inside, shape, spacing).forEach((mm, n) => expect(mm).toBeCloseTo(expected[n]!, 12));
    expect(distances(new Uint8Array(2).fill(1), [2, 1, 1], spacing)).toEqual(new Float64Array(2).fill(Infinity));
  });
});

describe("clicks", () => {
  it("of a box lie in its middle, whatever its corners' order", () => {
    const box = { kind: "box", low: [9, 2, 6], high: [4, 8, 1] } as const;
    expect(clicksOf({ ...box, low: [...box.low], high: [...box.high] }, SCAN)).toEqual([{ index: [6.5, 5, 3.5], positive: true }]);
    expect(boxOf({ low: [9, 2, 6], high: [4, 8, 1] }, SCAN.shape)).toEqual({ low: [4, 2, 1], high: [10, 9, 7] });
    expect(knownPrompt({ kind: "box", low: [9, 2, 6], high: [4, 8, 1] }, SCAN.shape)).toEqual({ kind: "box", low: [4, 2, 1], high: [9, 8, 6] });
  });

  it("of a stroke begin where it is deepest and lie far apart, each once", () => {
    const voxels = Array.from({ length: 15 }, (_, n): Index => [3 + n, 5, 4]);
    const clicks = clicksOf({ kind: "scribble", voxels: [...voxels, ...voxels], positive: false }, SCAN);
    expect(clicks).toHaveLength(MAX_CLICKS);
    expect(clicks.every(({ positive }) => !positive)).toBe(true);
    expect(clicks.slice(0, 2).map(({ index }) => index)).toEqual([[4, 5, 4], [17, 5, 4]]);
    expect(new Set(clicks.map(({ index }) => index.join())).size).toBe(MAX_CLICKS);
    expect(knownPrompt({ kind: "scribble", voxels: [...voxels, ...voxels], positive: false }, SCAN.shape)).toEqual({ kind: "scribble", count: 15, positive: false });
  });

  it("of a mask lie deep in it, measured in mm", () => {
    const slab = regionOf(new Uint8Array(7 * 5 * 3).fill(1), [7, 5, 3], [2, 3, 1]);
    const [deepest, ...others] = spread(slab, SCAN.spacing_mm, true);
    expect(deepest).toEqual([5, 4, 1]); // 4 mm from the sides; of equal ones the first
    for (const [i] of others) expect(i).toBeGreaterThan(2);
    expect(clicksOf({ kind: "hint", region: slab }, SCAN)[0]).toEqual({ index: [5, 4, 1], positive: true });
  });

  it("outside the scan are refused in words", () => {
    const outside = () => clicksOf({ kind: "point", index: [20, 3, -1], positive: true }, SCAN);
    expect(outside).toThrow("a click outside the scan, at voxel (20, 3, -1); expected a voxel from (0, 0, 0) to (19, 11, 7); check the order");
    expect(() => clicksOf({ kind: "scribble", voxels: [[0, 0, 0], [0, 12, 0]], positive: true }, SCAN)).toThrow("a scribble with the voxel [0, 12, 0]; expected voxels from (0, 0, 0) to (19, 11, 7)");
    expect(() => clicksOf({ kind: "scribble", voxels: [], positive: true }, SCAN)).toThrow("draw a stroke");
    const wide = { ...SCAN, shape: [400, 400, 400] as Index };
    expect(() => clicksOf({ kind: "scribble", voxels: [[0, 0, 0], [399, 399, 399]], positive: true }, wide)).toThrow("a scribble all over the scan; expected a box of 8,388,608 voxels");
    expect(clicksOf({ kind: "point", index: [19.5, -0.5, 0], positive: true }, SCAN)).toHaveLength(1); // outer faces belong to it
  });
});
