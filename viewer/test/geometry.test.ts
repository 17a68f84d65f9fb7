// The maps between the scan's voxels and RAS order: known answers for a flipped, permuted, anisotropic grid.
import { describe, expect, it } from "vitest";
import { clamp, fromRas, isEmpty, line, normalAxis, orientationOf, rasShape, sizeOf, step, toRas, toWorld, type Orientation } from "../src/stage/geometry";
import type { Index } from "../src/engine/engine";

// Stored (posterior, left, superior): RAS axis 0 runs against array axis 1, RAS axis 1 against array axis 0.
const PLS: Orientation = { shape: [5, 4, 3], axes: [-2, -1, 3] };

function* everyAxes(): Generator<Index> {
  for (const order of [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]]) {
    for (let signs = 0; signs < 8; signs++) yield order.map((axis, p) => ((signs >> p) & 1 ? -axis : axis)) as Index;
  }
}

describe("voxels in RAS order", () => {
  it("knows one grid by heart", () => {
    expect(rasShape(PLS)).toEqual([4, 5, 3]);
    expect(toRas(PLS, [1, 0, 2])).toEqual([3, 3, 2]);
    expect(fromRas(PLS, [3, 3, 2])).toEqual([1, 0, 2]);
    expect(["axial", "coronal", "sagittal"].map((plane) => normalAxis(PLS, plane as "axial"))).toEqual([2, 0, 1]);
  });

  it("comes back from all 48 orientations, and no two voxels meet", () => {
    for (const axes of everyAxes()) {
      const orientation: Orientation = { shape: [2, 3, 4], axes };
      const seen = new Set<string>();
      for (let n = 0; n < 24; n++) {
        const index: Index = [n % 2, Math.floor(n / 2) % 3, Math.floor(n / 6)];
        const ras = toRas(orientation, index);
        expect(fromRas(orientation, ras)).toEqual(index);
        expect(ras.every((v, p) => v >= 0 && v < rasShape(orientation)[p]!)).toBe(true);
        seen.add(ras.join());
      }
      expect(seen.size).toBe(24);
    }
  });

  it("finds how an array lies, turned too, and with sides of many lengths", () => {
    const pls = [[0, -2, 0, 9], [-0.5, 0, 0, 8], [0, 0, 5, 7], [0, 0, 0, 1]];
    expect(orientationOf(pls, [5, 4, 3])).toEqual(PLS);
    // Axis i runs to the left and up, by 40 degrees; a long third column does not win by its length.
    const [c, s] = [Math.cos(0.7), Math.sin(0.7)];
    const turned = [[-c, 0, 9 * s, 0], [0, 1, 0, 0], [s, 0, 9 * c, 0], [0, 0, 0, 1]];
    expect(orientationOf(turned, [2, 2, 2]).axes).toEqual([-1, 2, 3]);
  });

  it("knows a box's size", () => {
    const box = { low: [0, 2, 0] as Index, high: [4, 4, 2] as Index };
    expect(sizeOf(box)).toEqual([4, 2, 2]);
    expect(isEmpty({ low: [2, 0, 0], high: [2, 4, 4] })).toBe(true);
    expect(isEmpty(box)).toBe(false);
  });
});

describe("millimetres", () => {
  it("follow the file's affine, oblique too", () => {
    const affine = [[0, 0.8, -0.6, 10], [0, 0.6, 0.8, -20], [2, 0, 0, 30], [0, 0, 0, 1]];
    const world = toWorld(affine, [1, 10, 5]);
    [15, -10, 32].forEach((mm, axis) => expect(world[axis]).toBeCloseTo(mm));
  });
});

describe("steps of the cursor", () => {
  it("go as the screen shows them: the patient's left is on the right, the nose is on the left", () => {
    const middle: Index = [2, 2, 1];
    expect(step(PLS, middle, "axial", "right")).toEqual([2, 3, 1]); // towards the patient's left
    expect(step(PLS, middle, "axial", "up")).toEqual([1, 2, 1]); // towards anterior
    expect(step(PLS, middle, "axial", "forward")).toEqual([2, 2, 2]); // towards superior
    expect(step(PLS, middle, "coronal", "up")).toEqual([2, 2, 2]);
    expect(step(PLS, middle, "coronal", "forward")).toEqual([1, 2, 1]);
    expect(step(PLS, middle, "sagittal", "left")).toEqual([1, 2, 1]);
    expect(step(PLS, middle, "sagittal", "forward")).toEqual([2, 1, 1]);
  });

  it("stay on the scan", () => {
    expect(step(PLS, [4, 3, 2], "axial", "right", 10)).toEqual([4, 3, 2]);
    expect(clamp([-1, 9, 1.4], [5, 4, 3])).toEqual([0, 3, 1]);
  });
});

describe("strokes", () => {
  it("have no holes", () => {
    expect(line([0, 0, 0], [4, 2, 0])).toEqual([[0, 0, 0], [1, 1, 0], [2, 1, 0], [3, 2, 0], [4, 2, 0]]);
    expect(line([1, 2, 3], [1, 2, 3])).toEqual([[1, 2, 3]]);
  });
});
