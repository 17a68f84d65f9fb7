// The parts of the browser's predictor by known answers; tests/web compares the whole with Python's.
import { describe, expect, it } from "vitest";
import type { Index } from "../src/engine/engine";
import type { Card } from "../src/local/card";
import { condition, sampled } from "../src/local/conditioning";
import { paste } from "../src/local/crop";
import { Grid, Window } from "../src/local/grid";
import type { Network } from "../src/local/network";
import { rounded, roundedToEven, written } from "../src/local/numbers";
import { blend, chooseWindows, connected, nextWindows, clickedExtent } from "../src/local/pieces";
import { Prediction, Predictor } from "../src/local/predictor";
import { contains, voxelOf } from "../src/local/prompts";
import { cropRemarks } from "../src/local/remarks";
import { resample } from "../src/local/resample";
import { Scale } from "../src/local/scale";

// Stored (posterior, left, superior), 2 x 3 x 5 mm, the first voxel at (10, 20, 30) mm.
const PLS = new Grid([4, 6, 3], [[0, -3, 0, 10], [-2, 0, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]]);
const UNIT = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]];

describe("a grid", () => {
  it("knows its places", () => {
    expect(PLS.axes).toBe("PLS");
    expect(PLS.spacing).toEqual([2, 3, 5]);
    expect(PLS.toWorld([1, 2, 1])).toEqual([4, 18, 35]);
    expect(PLS.toIndex([4, 18, 35])).toEqual([1, 2, 1]);
    expect([PLS.axialAxis, PLS.voxelVolume]).toEqual([2, 0.03]);
    expect(PLS.reachOf(6).map((reach) => rounded(reach, 9))).toEqual([3, 2, 1.2]);
    expect(voxelOf([-3, 2.5, 9], PLS.shape)).toEqual([0, 3, 2]);
    expect(contains(PLS.shape, [3.5, 0, 0])).toBe(true);
    expect(contains(PLS.shape, [3.6, 0, 0])).toBe(false);
  });

  it("is turned and respaced over the same box", () => {
    const turned = PLS.reorient("RAS");
    expect(turned.shape).toEqual([6, 4, 3]);
    expect(turned.toWorld([0, 0, 0])).toEqual(PLS.toWorld([3, 5, 0]));
    expect(turned.toWorld([5, 3, 2])).toEqual(PLS.toWorld([0, 0, 2]));
    const finer = turned.respace([1.5, 4, 5]);
    expect(finer.shape).toEqual([12, 2, 3]);
    expect(finer.toWorld([-0.5, -0.5, -0.5])).toEqual(turned.toWorld([-0.5, -0.5, -0.5]));
  });

  it("finds the nearest axes of one that is oblique and sheared", () => {
    const sheared = new Grid([3, 3, 3], [[0.9, 0.1, 0, 0], [0.2, 1, -0.6, 0], [0, 0.1, 2, 0], [0, 0, 0, 1]]);
    expect(sheared.axes).toBe("RAS");
    const [cos, sin] = [Math.cos(1), Math.sin(1)]; // 57 degrees
    expect(new Grid([3, 3, 3], [[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]).axes).toBe("ALI");
  });
});

describe("resampling", () => {
  const values = Float32Array.from({ length: 72 }, (_, n) => (n % 4) + 10 * (Math.floor(n / 4) % 6) + 100 * Math.floor(n / 24));
  const at = (grid: Grid, index: Index) => PLS.toIndex(grid.toWorld(index)).reduce((sum, v, axis) => sum + v * 10 ** axis, 0);

  it("is exact for a ramp, along permuted and flipped axes, and oblique", () => {
    const target = PLS.reorient("RAS").crop([1, 1, 0], [3, 2, 3]);
    const found = resample(values, PLS, target);
    for (let n = 0; n < 18; n++) expect(found[n]).toBeCloseTo(at(target, [n % 3, Math.floor(n / 3) % 2, Math.floor(n / 6)]), 4);
    const oblique = new Grid([2, 2, 2], [[0.3, -1, 0, 4], [-1, -0.2, 0.1, 17], [0, 0.1, 1, 33], [0, 0, 0, 1]]);
    const turned = resample(values, PLS, oblique);
    for (let n = 0; n < 8; n++) expect(turned[n]).toBeCloseTo(at(oblique, [n % 2, (n >> 1) % 2, n >> 2]), 4);
  });

  it("averages where the target is coarser, and repeats the edge beyond it", () => {
    const line = new Grid([24, 1, 1], UNIT);
    const saw = Float32Array.from({ length: 24 }, (_, n) => 8 * (n % 2));
    const coarse = line.respace([4, 1, 1]);
    expect([...resample(saw, line, coarse, "area")].slice(1, 5)).toEqual([4, 4, 4, 4]);
    expect([...resample(saw, line, coarse)].slice(1, 5)).toEqual([4, 4, 4, 4]); // between two voxels
    expect([...resample(saw, line, line.respace([3, 1, 1]))].slice(1, 3)).toEqual([0, 8]); // on a voxel
    expect([...resample(saw.map((v, n) => v + n), line, line.crop([-2, 0, 0], [4, 1, 1]))]).toEqual([0, 0, 0, 9]);
    expect([...resample(saw, line, line.crop([0, 0, 0], [2, 1, 1]), "nearest")]).toEqual([0, 8]);
  });

  it("puts a crop back: its values, the border's at the end of the scan, nothing beyond", () => {
    const window = new Window(new Grid([8, 6, 6], UNIT), [-2, 1, 1], [4, 4, 4]);
    const { box, values: pasted } = paste(new Float32Array(64).fill(0.8), window, new Grid([8, 6, 6], UNIT));
    expect(box).toEqual({ low: [0, 0, 0], high: [3, 6, 6] });
    expect(pasted[(2 * 6 + 2) * 3]).toBeCloseTo(0.8, 6);
    expect(pasted[(2 * 6 + 2) * 3 + 2]).toBe(0);
  });
});

describe("crops", () => {
  const grid = new Grid([64, 64, 64], UNIT);
  const one = new Window(grid, [8, 8, 8], [16, 16, 16]);
  const ball = (centre: Index, radius: number) =>
    Float32Array.from({ length: 4096 }, (_, n) => (Math.hypot((n % 16) - centre[0], (Math.floor(n / 16) % 16) - centre[1], Math.floor(n / 256) - centre[2]) < radius ? 0.9 : 0.1));

  it("stay while clicks lie well inside, and split where clicks lie far apart", () => {
    expect(chooseWindows(grid, [[16, 16, 16]], 16, [one])).toEqual([one]);
    expect(chooseWindows(grid, [[9, 16, 16]], 16, [one])[0]!.start).toEqual([1, 8, 8]);
    expect(chooseWindows(grid, [[10, 10, 10], [50, 10, 10], [12, 12, 12]], 16, []).map((window) => window.start)).toEqual([[3, 3, 3], [42, 2, 2]]);
  });

  it("go on where the mask reaches a face behind which the scan goes on", () => {
    expect(nextWindows(one, ball([15, 8, 8], 3)).map((window) => window.start)).toEqual([[15, 8, 8]]);
    expect(nextWindows(one, ball([8, 8, 8], 3))).toEqual([]);
    expect(nextWindows(new Window(grid, [48, 8, 8], [16, 16, 16]), ball([15, 8, 8], 3))).toEqual([]);
  });

  it("become one, weighted towards their middles, without what was not there before", () => {
    const other = new Window(grid, [16, 8, 8], [16, 16, 16]);
    const pieces = [{ window: one, probability: new Float32Array(4096).fill(1) }, { window: other, probability: new Float32Array(4096) }];
    const mixed = blend(pieces, other);
    expect(mixed[(8 * 16 + 8) * 16]).toBeCloseTo(7.5 / 8, 5); // 7.5 steps from one's face, 0.5 from the other's
    expect(mixed[(8 * 16 + 8) * 16 + 15]).toBe(0);
    const [near, far] = [ball([4, 8, 8], 2), ball([12, 8, 8], 2)];
    const two = near.map((value, n) => Math.max(value, far[n]!));
    expect(connected({ window: one, probability: two }, near)).toEqual(Float32Array.from(two, (value, n) => (n % 16 > 8 && value > 0.5 ? 0 : value)));
  });

  it("say how large and how sure the clicked part is", () => {
    const count = ball([8, 8, 8], 4).filter((value) => value > 0.5).length;
    const pieces = [{ window: one, probability: ball([8, 8, 8], 4) }];
    const { across, sure } = clickedExtent(pieces, [[16, 16, 16]]);
    expect(across).toBeCloseTo(Math.cbrt((6 * count) / Math.PI), 9);
    expect(sure).toBeCloseTo(0.9, 5);
    expect(clickedExtent(pieces, [[9, 9, 9]])).toEqual({ across: 0, sure: 0 });
  });
});

describe("what a click means", () => {
  it("chooses another spacing for a lesion that is too small or too large", () => {
    const card = { preprocessing: { spacing_range_mm: [1, 4] }, config: { crop: 48 } } as unknown as Card;
    const scale = Scale.of(card)!;
    expect(scale.ladder).toEqual([1, 1.26, 1.587, 2, 2.52, 3.175, 4]);
    expect(scale.first([[0, 0, 0]], null)).toEqual([1, 2, 4]);
    expect(scale.first([[0, 0, 0]], 2.1)).toEqual([2]);
    expect(scale.first([[0, 0, 0], [100, 0, 0]], null)).toEqual([3.175, 4]);
    expect(Scale.preference({ across: 14, sure: 0.9 })).toBeGreaterThan(Scale.preference({ across: 14, sure: 0.8 }));
    expect(Scale.preference({ across: 24, sure: 0.88 })).toBeGreaterThan(Scale.preference({ across: 8, sure: 0.89 }));
    expect(scale.next(2, 22, [[0, 0, 0]])).toBe(2);
    expect(scale.next(2, 13, [[0, 0, 0]])).toBe(1.587);
    expect(scale.next(2, 13, [[0, 0, 0]], true)).toBe(2); // what negative clicks take away asks for no closer look
    expect(scale.next(2, 44, [[0, 0, 0]])).toBe(4);
    expect(scale.next(2, 0, [[0, 0, 0]])).toBe(1);
    expect(Scale.of({ ...card, preprocessing: { spacing_range_mm: null } } as unknown as Card)).toBeNull();
  });

  it("binds the prediction at its voxel and where it looks alike", () => {
    const size: Index = [9, 9, 9];
    const fused = { data: Float32Array.from({ length: 125 }, (_, n) => (n % 5 < 3 ? 1 : -1)), count: 1, size: [5, 5, 5] as Index };
    const use = { reach: 4, likeness: 0.5, margin: 5 };
    const found = condition(new Float32Array(729), size, fused, [{ at: [2, 4, 4], positive: true }], use);
    const at = (i: number) => found[(4 * 9 + 4) * 9 + i]!;
    expect(at(2)).toBeCloseTo(5 / 1.05, 4); // the nugget leaves a twentieth
    expect(at(0)).toBeGreaterThan(3);
    expect(at(8)).toBeLessThan(0.1);
    expect(condition(found, size, fused, [{ at: [2, 4, 30], positive: true }], use)).toBe(found);
  });

  it("is read between voxels, and is 0 beside the map", () => {
    const map = { data: Float32Array.from([0, 1, 2, 3, 4, 5, 6, 7, 10, 10, 10, 10, 10, 10, 10, 10]), count: 2, size: [2, 2, 2] as Index };
    expect([...sampled(map, [0.5, 0.5, 0.5])]).toEqual([3.5, 10]);
    expect([...sampled(map, [-0.5, 0, 0])]).toEqual([0, 5]);
  });

  it("is reported in words and numbers as Python writes them", () => {
    expect(cropRemarks(1, 3, "open", true)).toEqual([
      "the mask reached the border of its crop and was followed into 2 further crops",
      "the mask was not followed beyond 3 crops and may be incomplete",
    ]);
    expect([0.5, 1.5, 2.5, -0.5].map(roundedToEven)).toEqual([0, 2, 2, 0]);
    expect([rounded(1.0005, 3), rounded(-0.0001, 3)]).toEqual([1, 0]);
    expect([12.3456789, 3, -1024].map((v) => written(v))).toEqual(["12.3457", "3", "-1024"]);
  });
});

describe("a prediction", () => {
  it("that was kept is the same again", () => {
    const window = new Window(PLS, [1, 2, 0], [2, 3, 2]);
    const probability = Float32Array.from({ length: 12 }, (_, n) => (n % 5 ? 0.9 : 0.1));
    const clicks = [{ index: [1, 3, 1] as Index, positive: true }];
    const found = new Prediction(PLS, [{ kind: "point", ...clicks[0]! }], clicks, [window], [{ window, probability }], { low: [1, 2, 0], high: [3, 5, 1] }, ["a note"]);
    const card = { preprocessing: { modality: "CT", per_scan: false } } as unknown as Card;
    const scan = { data: new Int16Array(72), shape: PLS.shape, affine: PLS.affine, modality: "CT", remarks: [], slope: 1, intercept: 0, dicom: null, name: "scan" };
    const again = new Predictor({ card } as Network, scan).restored(found.prompts, structuredClone(found.kept()));
    expect(again.region(false)).toEqual(found.region(false));
    expect(again.region(false).inside).toContain(1);
    expect([again.windows[0]!.key, again.notes, again.clicks]).toEqual([window.key, ["a note"], clicks]);
  });
});
