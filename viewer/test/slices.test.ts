// Slices of the scan and of the masks: what is seen where, worked out by hand; coarse scans; outlines.
import { describe, expect, it } from "vitest";
import { pointsOf, Painter } from "../src/input/painter";
import { fromRas, type Orientation, PLANES, rasShape } from "../src/stage/geometry";
import { cutOf, rimsOf } from "../src/stage/slices";
import { SIDES } from "../src/stage/camera";
import { Voxels } from "../src/stage/voxels";
import type { Index } from "../src/engine/engine";

const ORIENTATIONS: Index[] = [[1, 2, 3], [-1, -2, 3], [-2, -1, 3], [3, -1, 2], [-3, 2, -1]];

describe("a cut", () => {
  it.each(ORIENTATIONS)("shows the patient from the feet and facing left (axes %i %i %i)", (...axes) => {
    const orientation: Orientation = { shape: [4, 5, 6], axes };
    const shape = rasShape(orientation);
    const ras = shape.map((n) => Math.floor(n / 2)) as Index;
    for (const plane of PLANES) {
      const { width, height, across, up, start } = cutOf(orientation, plane, ras, (k) => k);
      const [a, u] = SIDES[plane];
      expect([width, height]).toEqual([shape[a], shape[u]]);
      for (let row = 0; row < height; row++) {
        for (let column = 0; column < width; column++) {
          const at = [...ras] as Index;
          at[a] = width - 1 - column; // to the patient's right, or front, on the left
          at[u] = height - 1 - row; // their front, or head, on top
          const [i, j, k] = fromRas(orientation, at);
          expect(start + across[column]! + up[row]!).toBe(i + 4 * (j + 5 * k));
        }
      }
    }
  });
});

describe("voxels that come", () => {
  const slice = (k: number) => ({ k, bytes: new Uint8Array(Int16Array.from([k, -k]).buffer) });

  it("are shown by the nearest slice that is here, until all are", () => {
    const voxels = new Voxels("int16", [2, 1, 9]);
    const shown = () => Array.from({ length: 9 }, (_, k) => voxels.shown(k));
    for (const k of [0, 8]) voxels.put(slice(k));
    expect(shown()).toEqual([0, 0, 0, 0, 0, 8, 8, 8, 8]);
    voxels.put(slice(4));
    expect(shown()).toEqual([0, 0, 0, 4, 4, 4, 8, 8, 8]);
    expect([voxels.at([1, 0, 3]), voxels.at([0, 0, 7]), voxels.count, voxels.isComplete]).toEqual([-4, 8, 3, false]);
    for (const k of [0, 1, 2, 3, 5, 6, 7]) voxels.put(slice(k)); // one of them again
    expect(shown()).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
    expect([voxels.count, voxels.isComplete]).toEqual([9, true]);
  });

  it("are refused if they are not of this scan", () => {
    const voxels = new Voxels("float32", [2, 1, 3]);
    expect(() => voxels.put({ k: 3, bytes: new Uint8Array(8) })).toThrow("slice 3 of 8 bytes came for a scan of 2 × 1 × 3");
    expect(() => voxels.put({ k: 0, bytes: new Uint8Array(4) })).toThrow("of 4 bytes");
  });

  it("have a window of their own, from the slices that are here", () => {
    const voxels = new Voxels("float32", [100, 1, 2]);
    const values = Float32Array.from({ length: 100 }, (_, n) => (n === 99 ? 5000 : n - 10));
    voxels.put({ k: 1, bytes: new Uint8Array(values.buffer) });
    const { lowest, window } = voxels.range();
    expect(lowest).toBe(-10);
    expect(window).toEqual({ low: -8, high: 87 });
    const even = new Voxels("int16", [1, 1, 1]);
    even.put({ k: 0, bytes: new Uint8Array(2) });
    expect(even.range().window).toEqual({ low: 0, high: 1 }); // never empty
  });
});

describe("outlines", () => {
  it("go round each label, also where two meet and at the border", () => {
    // 1 1 0
    // 1 2 0
    const rims = rimsOf(Uint8Array.from([1, 1, 0, 1, 2, 0]), 3, 2);
    const lines = (label: number) => {
      const found = rims.get(label)!;
      return Array.from({ length: found.length / 4 }, (_, n) => found.slice(4 * n, 4 * n + 4).join()).sort();
    };
    expect(lines(2)).toEqual(["1,1,1,2", "1,1,2,1", "1,2,2,2", "2,1,2,2"]);
    expect(lines(1)).toEqual(["0,0,0,2", "0,0,2,0", "0,2,1,2", "1,1,1,2", "1,1,2,1", "2,0,2,1"]);
    expect(rimsOf(new Uint8Array(6), 3, 2).size).toBe(0);
  });
});

describe("the painter", () => {
  const orientation: Orientation = { shape: [9, 9, 9], axes: [1, 2, 3] };

  it("makes strokes in a slice or in 3D, as it was set when they began", () => {
    const painter = new Painter();
    painter.setRadius(3);
    painter.begin("brush", orientation, "coronal", [1.234, 4, 2], true);
    painter.follow([9, 9, 9]); // drawn by the mouse: the cursor does not move it
    painter.move([1.2301, 4, 2]);
    painter.move([2, 4, 3.14159]);
    painter.setRadius(8);
    const stroke = { kind: "brush", stroke: [[1.23, 4, 2], [2, 4, 3.14]], radius_mm: 3, add: true, axis: 1, intensities: null };
    expect(painter.end()).toEqual(stroke);
    expect([painter.end(), painter.draft]).toEqual([null, null]);
    Object.assign(painter, { ball: true, intensities: [-50, 150] });
    painter.begin("eraser", orientation, "axial", [1, 1, 1], false);
    expect(painter.end()).toEqual({ ...stroke, stroke: [[1, 1, 1]], radius_mm: 8, add: false, axis: null, intensities: [-50, 150] });
  });

  it("closes outlines of three points or more, through as many slices as are asked for", () => {
    const painter = new Painter();
    painter.begin("lasso", orientation, "axial", [1, 1, 5], true, true);
    painter.follow([4, 1, 5]);
    expect(painter.end()).toBeNull();
    painter.slices = 3;
    painter.begin("lasso", orientation, "axial", [1, 1, 5], false, true);
    for (const at of [[4, 1, 5], [4, 4, 5]] as Index[]) painter.follow(at);
    const lasso = painter.end()!;
    expect([lasso, pointsOf(lasso).length]).toEqual([{ kind: "lasso", polygon: [[1, 1, 5], [4, 1, 5], [4, 4, 5]], axis: 2, add: false, slices: 3 }, 3]);
  });

  it("has a radius within bounds", () => {
    const painter = new Painter();
    for (let n = 0; n < 40; n++) painter.resize(1);
    expect(painter.radius_mm).toBe(50);
    for (let n = 0; n < 60; n++) painter.resize(-1);
    expect(painter.radius_mm).toBe(0.5);
    painter.setRadius(NaN);
    expect(painter.radius_mm).toBe(0.5);
  });
});
