// Measurements of an object: its volume, and the axial diameters of RECIST 1.1, as in voxsam.report.metrics.
import type { Diameter, Index } from "../engine/engine";
import { sizeOf } from "../stage/geometry";
import { AXES, perAxis } from "./boxes";
import { cross, dot } from "./files/checks";
import { Grid } from "./grid";
import { type Region, voxelsOf } from "./region";
import type { Volume } from "./volume";

const SAME_MM = 1e-9; // lengths that differ by less are equal: the first such line counts

/** An object's measurements; ends of lines are indices of the scan, not rounded. Without voxels it has no diameters. */
export interface Measurement {
  volume_ml: number;
  longest: Diameter | null; // in an axial slice
  perpendicular: Diameter | null; // to it, in the same slice
}

/** The volume and diameters of an object, from outer face to outer face of its voxels; lines may cross a notch. */
export function measure(region: Region, { affine, shape }: Pick<Volume, "affine" | "shape">): Measurement {
  const grid = new Grid(shape, affine);
  const axis = grid.axialAxis;
  let longest: Diameter | null = null;
  let around: Index[] = []; // the slice's outline
  for (const outline of outlines(region, axis)) {
    const found = longestLine(outline, grid);
    if (longest && found.mm <= longest.mm + SAME_MM) continue;
    longest = found;
    around = outline;
  }
  return {
    volume_ml: voxelsOf(region) * grid.voxelVolume,
    longest,
    perpendicular: longest && perpendicularLine(longest, around, axis, grid),
  };
}

// The corners of the convex hull of each axial slice's voxels, from their outer faces, in order around it.
function* outlines({ box, inside }: Region, axis: 0 | 1 | 2): Generator<Index[]> {
  const size = sizeOf(box);
  const [u, v] = AXES.filter((a) => a !== axis) as [0 | 1 | 2, 0 | 1 | 2];
  const strides = [1, size[0], size[0] * size[1]] as const;
  for (let slice = 0; slice < size[axis]; slice++) {
    const faces: [number, number][] = [];
    for (let row = 0; row < size[u]; row++) {
      const start = slice * strides[axis] + row * strides[u];
      let first = 0;
      while (first < size[v] && !inside[start + first * strides[v]]) first++;
      if (first === size[v]) continue;
      let last = size[v] - 1; // only voxels at the ends of their row can touch the hull
      while (!inside[start + last * strides[v]]) last--;
      for (const end of new Set([first, last])) faces.push([row + 0.5, end], [row - 0.5, end], [row, end + 0.5], [row, end - 0.5]);
    }
    if (!faces.length) continue;
    yield convexHull(faces).map(([row, column]) => perAxis((a) => box.low[a] + (a === axis ? slice : a === u ? row : column)));
  }
}

// Andrew's monotone chain.
function convexHull(points: [number, number][]): [number, number][] {
  const sorted = points.sort(([a, b], [c, d]) => a - c || b - d);
  const half = (ordered: [number, number][]) => {
    const chain: [number, number][] = [];
    for (const point of ordered) {
      while (chain.length > 1 && turn(chain[chain.length - 2]!, chain[chain.length - 1]!, point) <= 0) chain.pop();
      chain.push(point);
    }
    return chain.slice(0, -1);
  };
  return [...half(sorted), ...half([...sorted].reverse())];
}

function turn([ax, ay]: [number, number], [bx, by]: [number, number], [cx, cy]: [number, number]): number {
  return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
}

// The longest line between two corners; of equally long ones, the one whose ends have the lowest indices.
function longestLine(outline: Index[], grid: Grid): Diameter {
  const corners = [...outline].sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  const places = corners.map((corner) => grid.toWorld(corner));
  let best: Diameter = { mm: 0, ends: [corners[0]!, corners[0]!] };
  places.forEach((place, n) => {
    for (let m = n + 1; m < places.length; m++) {
      const way = perAxis((row) => places[m]![row] - place[row]);
      const mm = Math.sqrt(dot(way, way));
      if (mm > best.mm + SAME_MM) best = { mm, ends: [corners[n]!, corners[m]!] };
    }
  });
  return best;
}

// Since the outline is convex, the longest perpendicular line begins at one of its corners.
function perpendicularLine({ mm, ends }: Diameter, outline: Index[], axis: 0 | 1 | 2, grid: Grid): Diameter {
  const [first, second] = ends.map((end) => grid.toWorld(end)) as [Index, Index];
  const along = perAxis((row) => (second[row] - first[row]) / mm);
  const sides = AXES.filter((a) => a !== axis).map((a) => perAxis((row) => grid.affine[row]![a]!)) as [Index, Index];
  const normal = cross(cross(...sides), along);
  const across = perAxis((row) => normal[row]! / Math.sqrt(dot(normal, normal)));
  const corners = outline.map((corner): [number, number] => {
    const place = grid.toWorld(corner);
    const way = perAxis((row) => place[row] - first[row]);
    return [dot(way, along), dot(way, across)];
  });
  let widest = { mm: -1, at: 0, low: 0, high: 0 };
  for (const [at] of corners) {
    const [low, high] = chord(corners, at);
    if (high - low > widest.mm + SAME_MM) widest = { mm: high - low, at, low, high };
  }
  const { at, low, high } = widest;
  const end = (side: number) => grid.toIndex(perAxis((row) => first[row] + at * along[row] + side * across[row]));
  return { mm: widest.mm, ends: [end(low), end(high)] };
}

// The lowest and highest y of a convex polygon at x = `at`, the x of one of its corners.
function chord(polygon: [number, number][], at: number): [number, number] {
  let [low, high] = [Infinity, -Infinity];
  polygon.forEach(([x0, y0], n) => {
    const [x1, y1] = polygon[(n + 1) % polygon.length]!;
    if (at < Math.min(x0, x1) || at > Math.max(x0, x1)) return;
    for (const y of x0 === x1 ? [y0, y1] : [y0 + ((at - x0) * (y1 - y0)) / (x1 - x0)]) {
      low = Math.min(low, y);
      high = Math.max(high, y);
    }
  });
  return [low, high];
}
