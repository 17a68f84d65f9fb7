// Panes and voxels: what is picked is what is drawn there, at one scale, about the pointer; worked out by hand.
import { describe, expect, it } from "vitest";
import type { Index } from "../src/engine/engine";
import { PLANES } from "../src/stage/geometry";
import { Tiles } from "../src/stage/tiles";

// The array's axes run to the left, to the feet and to the back; 20 x 12 x 30 voxels of 2 x 5 x 1 mm: in RAS order 40 x 30 x 60 mm.
const ORIENTATION = { shape: [20, 12, 30] as Index, axes: [-1, -3, -2] as Index };
const SPACING: Index = [2, 5, 1];

function tiles(width: number, height: number): Tiles {
  const made = new Tiles(() => ({ width, height }));
  made.open(ORIENTATION, SPACING);
  return made;
}

describe("a plane alone", () => {
  it("fills its pane, and the scan lies in its middle", () => {
    const made = tiles(400, 200);
    made.layout = "coronal"; // 40 mm across, 60 mm up: 200 / 60 pixels a mm
    expect(made.mmPerPixel).toBeCloseTo(0.3);
    expect(made.field("coronal")).toEqual({ low: [20 - 60, 30 - 30], high: [20 + 60, 30 + 30] });
    expect(made.pick({ x: 100, y: 100 })).toBeNull(); // beside the scan
    // Right of the patient is on the left: x = 200 - 20 / 0.3 + 1 is the right side, where i is highest.
    expect(made.pick({ x: 135, y: 1 })).toEqual({ pane: "coronal", index: [0, 0, 0] });
    expect(made.pick({ x: 265, y: 199 })).toEqual({ pane: "coronal", index: [19, 11, 0] });
  });

  it("is looked at in the slice of the cursor", () => {
    const made = tiles(400, 200);
    made.layout = "coronal";
    made.cursor = [3, 4, 17];
    expect(made.pick({ x: 200, y: 100 })).toEqual({ pane: "coronal", index: [10, 6, 17] });
  });
});

describe("places and indices", () => {
  it("are each other's inverse in every plane, between voxels too, whatever is enlarged", () => {
    const made = tiles(900, 600);
    made.cursor = [5, 7, 11];
    made.camera.enlarge(3, made.positionOf([4.2, 6.1, 10.9]));
    for (const plane of PLANES) {
      const place = made.projector(plane)!([5.25, 6.5, 11.75]);
      const back = made.locate(plane, place)!;
      const moved = { axial: [0, 2], coronal: [0, 1], sagittal: [2, 1] }[plane]; // axes of the array along the sides
      for (const axis of moved) expect(back[axis]).toBeCloseTo([5.25, 6.5, 11.75][axis]!);
      const normal = [0, 1, 2].find((axis) => !moved.includes(axis))!;
      expect(back[normal]).toBeCloseTo(made.cursor[normal]!);
    }
  });

  it("have one scale in all planes", () => {
    const made = tiles(900, 600);
    const pixels = (plane: (typeof PLANES)[number], from: Index, to: Index) => {
      const [a, b] = [made.projector(plane)!(from), made.projector(plane)!(to)];
      return Math.hypot(a.x - b.x, a.y - b.y);
    };
    const axial = pixels("axial", [0, 0, 0], [5, 0, 0]); // 10 mm each
    expect(pixels("coronal", [0, 0, 0], [5, 0, 0])).toBeCloseTo(axial);
    expect(pixels("coronal", [0, 0, 0], [0, 2, 0])).toBeCloseTo(axial);
    expect(pixels("sagittal", [0, 0, 0], [0, 0, 10])).toBeCloseTo(axial);
    expect(axial).toBeCloseTo(10 / made.mmPerPixel);
  });
});

describe("enlarging", () => {
  it("keeps what is under the pointer there", () => {
    const made = tiles(900, 600);
    const place = { x: 160, y: 90 };
    const before = made.locate("axial", place)!;
    made.camera.enlarge(2.5, made.position("axial", place)!);
    expect(made.camera.zoom).toBe(2.5);
    made.locate("axial", place)!.forEach((v, axis) => expect(v).toBeCloseTo(before[axis]!));
  });

  it("ends at the whole scan, which lies in the middle again", () => {
    const made = tiles(900, 600);
    made.camera.enlarge(4, [1, 2, 3]);
    made.camera.enlarge(0.1, [40, 30, 60]);
    expect(made.camera.zoom).toBe(1);
    expect(made.camera.middle).toEqual([20, 15, 30]);
  });

  it("moves with a drag, and not off the scan", () => {
    const made = tiles(900, 600);
    made.camera.enlarge(4, made.camera.middle);
    made.camera.drag([10, 10, 10], [12, 9, 10]);
    expect(made.camera.middle).toEqual([18, 16, 30]);
    made.camera.drag([0, 0, 0], [-1000, 0, 0]);
    expect(made.camera.middle[0]).toBe(40);
  });

  it("follows the cursor where it leaves what is shown, and only there", () => {
    const made = tiles(900, 600);
    made.camera.enlarge(10, made.camera.middle);
    made.cursor = [9, 0, 14]; // the top
    made.keepInView();
    expect(made.camera.middle).toEqual([20, 15, 60 - 2.5]);
  });
});

describe("panes", () => {
  it("are four, or the one that was chosen", () => {
    const made = tiles(1000, 500);
    expect(made.pane({ x: 10, y: 10 })).toBe("axial");
    expect(made.pane({ x: 990, y: 10 })).toBe("coronal");
    expect(made.pane({ x: 10, y: 490 })).toBe("sagittal");
    expect(made.pick({ x: 990, y: 490 })).toEqual({ pane: "render" });
    expect(made.pane({ x: 500, y: 250 })).toBeNull(); // the gap
    made.layout = "render";
    expect(made.rect("axial")).toBeNull();
    expect(made.rect("render")).toEqual({ x: 0, y: 0, width: 1000, height: 500 });
  });
});
