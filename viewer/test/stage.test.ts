// Measured lines and surfaces, against lengths and volumes that are known.
import { describe, expect, it } from "vitest";
import type { Index } from "../src/engine/engine";
import { lengthMm, Ruler } from "../src/stage/ruler";
import { extentOf, surfaceOf, type Surface } from "../src/stage/surface";

// Turned by 3-4-5 about the last axis, 2 x 2.5 x 3.5 mm: columns (1.6, 1.2, 0), (-1.5, 2, 0), (0, 0, 3.5).
const OBLIQUE = [
  [1.6, -1.5, 0, 7],
  [1.2, 2, 0, -3],
  [0, 0, 3.5, 11],
  [0, 0, 0, 1],
];
const ORIENTATION = { shape: [10, 10, 10] as Index, axes: [1, 2, 3] as Index };

describe("the ruler", () => {
  it("measures in mm on an oblique grid", () => {
    expect(lengthMm(OBLIQUE, { from: [0, 0, 0], to: [3, 0, 0] })).toBeCloseTo(6);
    expect(lengthMm(OBLIQUE, { from: [1, 1, 2], to: [1, 5, 2] })).toBeCloseTo(10);
    expect(lengthMm(OBLIQUE, { from: [0, 0, 0], to: [3, 4, 0] })).toBeCloseTo(Math.hypot(6, 10));
    expect(lengthMm(OBLIQUE, { from: [0, 0, 0.5], to: [0, 0, 2.5] })).toBeCloseTo(7);
  });

  it("keeps lines, drops what has no length, and takes the last one back", () => {
    const ruler = new Ruler();
    ruler.begin(ORIENTATION, "axial", [1, 1, 4]);
    expect(ruler.end()).toBeNull();
    for (const to of [[2, 1, 4], [3, 1, 4]] as Index[]) {
      ruler.begin(ORIENTATION, "axial", [1, 1, 4]);
      ruler.follow([9, 9, 4]); // drawn by the mouse: the cursor does not move it
      ruler.move(to);
      expect(ruler.end()).toEqual({ from: [1, 1, 4], to, axis: 2 });
    }
    ruler.begin(ORIENTATION, "sagittal", [1, 1, 4], true);
    ruler.follow([1, 2, 4]);
    expect(ruler.draft).toEqual({ from: [1, 1, 4], to: [1, 2, 4], axis: 0 });
    ruler.remove();
    expect([ruler.draft, ruler.lines.length]).toEqual([null, 2]);
    ruler.remove();
    expect(ruler.lines.map(({ to }) => to[0])).toEqual([2]);
  });
});

describe("a surface", () => {
  // Signed volume (divergence theorem): positive if the triangles face outwards.
  const volumeOf = ({ points, triangles }: Surface) => {
    const at = (n: number) => [points[3 * n]!, points[3 * n + 1]!, points[3 * n + 2]!] as const;
    let sum = 0;
    for (let t = 0; t < triangles.length; t += 3) {
      const [a, b, c] = [at(triangles[t]!), at(triangles[t + 1]!), at(triangles[t + 2]!)];
      sum += a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
    }
    return sum / 6;
  };
  const ball = (shape: Index, centre: Index, radius: number, label: number) => {
    const labels = new Uint8Array(shape[0] * shape[1] * shape[2]);
    for (let n = 0; n < labels.length; n++) {
      const [x, y, z] = [n % shape[0], Math.floor(n / shape[0]) % shape[1], Math.floor(n / (shape[0] * shape[1]))];
      if (Math.hypot(x - centre[0], y - centre[1], z - centre[2]) <= radius) labels[n] = label;
    }
    return labels;
  };

  it("is closed, faces outwards and holds the ball", () => {
    const shape: Index = [24, 22, 26];
    const labels = ball(shape, [11, 10, 13], 8, 3);
    const box = extentOf(labels, shape, 3)!;
    expect(box).toEqual({ low: [3, 2, 5], high: [20, 19, 22] });
    const surface = surfaceOf(labels, shape, 3, box);
    const ratio = volumeOf(surface) / ((4 / 3) * Math.PI * 8 ** 3);
    expect(ratio).toBeGreaterThan(0.93);
    expect(ratio).toBeLessThan(1.03);
    const edges = new Map<string, number>();
    const { triangles } = surface;
    for (let t = 0; t < triangles.length; t++) {
      const [a, b] = [triangles[t]!, triangles[t % 3 === 2 ? t - 2 : t + 1]!];
      edges.set(`${a} ${b}`, (edges.get(`${a} ${b}`) ?? 0) + 1);
    }
    for (const [edge, count] of edges) {
      const [a, b] = edge.split(" ");
      expect([count, edges.get(`${b} ${a}`)]).toEqual([1, 1]);
    }
  });

  it("of one voxel at the array's corner is there too, and other labels are not in it", () => {
    const labels = new Uint8Array(27);
    labels[0] = 1;
    labels[1] = 2;
    const surface = surfaceOf(labels, [3, 3, 3], 1, extentOf(labels, [3, 3, 3], 1)!);
    expect(surface.points.length / 3).toBe(8);
    expect(volumeOf(surface)).toBeGreaterThan(0);
    expect(Math.max(...surface.points)).toBeLessThanOrEqual(0.5);
    expect(extentOf(labels, [3, 3, 3], 7)).toBeNull();
  });
});
