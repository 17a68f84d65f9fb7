// The surface of a label as triangles, for the shaded 3D view: naive surface nets (Gibson 1998), smoothed within half a voxel.
import type { Box, Index } from "../engine/engine";

export interface Surface {
  /** x, y, z of each vertex, in voxels of the label array; whole numbers are voxels' centres. */
  points: Float32Array;
  /** Three vertices each, counterclockwise from outside if the axes are right-handed. */
  triangles: Uint32Array;
}

const ROUNDS = 15; // of smoothing, each towards the mean and back
const WEIGHTS = [0.5, -0.53] as const; // of the mean of the neighbours
const REACH = 0.5; // voxels that smoothing may move a vertex, on each axis

/** The box of the voxels that are `label`, in an array with x fastest; null if there is none. */
export function extentOf(labels: Uint8Array, [nx, ny]: Index, label: number): Box | null {
  const low: Index = [Infinity, Infinity, Infinity];
  const high: Index = [0, 0, 0];
  for (let first = labels.indexOf(label), end = 0; first >= 0; first = labels.indexOf(label, end)) {
    const row = first - (first % nx);
    end = first + 1;
    while (end < row + nx && labels[end] === label) end++;
    const [j, k] = [Math.floor(first / nx) % ny, Math.floor(first / (nx * ny))];
    const [from, to] = [[first - row, j, k], [end - row, j + 1, k + 1]];
    for (const axis of [0, 1, 2] as const) {
      low[axis] = Math.min(low[axis], from[axis]!);
      high[axis] = Math.max(high[axis], to[axis]!);
    }
  }
  return high[0] ? { low, high } : null;
}

/** The surface of the voxels that are `label`, all of which lie in `box`. */
export function surfaceOf(labels: Uint8Array, shape: Index, label: number, { low, high }: Box): Surface {
  const [nx, ny, nz] = shape;
  const inside = (x: number, y: number, z: number) =>
    x >= 0 && y >= 0 && z >= 0 && x < nx && y < ny && z < nz && labels[(z * ny + y) * nx + x] === label;
  // A cell has its lowest corner at (x, y, z) and its vertex between its eight corners.
  const [width, height] = [high[0] - low[0] + 1, high[1] - low[1] + 1];
  const points: number[] = [];
  const triangles: number[] = [];
  let before = new Int32Array(width * height); // the vertices, from 1, of the slab of cells below; 0: none
  let now = new Int32Array(width * height);
  const quad = (a: number, b: number, c: number, d: number, outward: boolean) => {
    const [p, q, r, s] = outward ? [a, b, c, d] : [a, d, c, b];
    triangles.push(p! - 1, q! - 1, r! - 1, p! - 1, r! - 1, s! - 1);
  };
  for (let z = low[2] - 1; z < high[2]; z++) {
    [before, now] = [now, before];
    now.fill(0);
    for (let y = low[1] - 1; y < high[1]; y++) {
      for (let x = low[0] - 1; x < high[0]; x++) {
        const at = (y - low[1] + 1) * width + x - low[0] + 1;
        const vertex = cellVertex(inside, x, y, z);
        if (!vertex) continue;
        points.push(...vertex);
        now[at] = points.length / 3;
        const here = inside(x, y, z);
        // Join the four cells around each edge that leaves the corner and crosses the surface.
        if (here !== inside(x + 1, y, z)) quad(now[at]!, now[at - width]!, before[at - width]!, before[at]!, here);
        if (here !== inside(x, y + 1, z)) quad(now[at]!, before[at]!, before[at - 1]!, now[at - 1]!, here);
        if (here !== inside(x, y, z + 1)) quad(now[at]!, now[at - 1]!, now[at - width - 1]!, now[at - width]!, here);
      }
    }
  }
  const surface = { points: Float32Array.from(points), triangles: Uint32Array.from(triangles) };
  smooth(surface);
  return surface;
}

const CORNERS = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => [n & 1, (n >> 1) & 1, n >> 2] as const);
const EDGES = CORNERS.flatMap((_, n) => [1, 2, 4].filter((bit) => !(n & bit)).map((bit) => [n, n | bit] as const));

// The mean of the midpoints of the edges that cross the surface; null if none does.
function cellVertex(inside: (x: number, y: number, z: number) => boolean, x: number, y: number, z: number): Index | null {
  let mask = 0;
  for (let n = 0; n < 8; n++) if (inside(x + (n & 1), y + ((n >> 1) & 1), z + (n >> 2))) mask |= 1 << n;
  if (mask === 0 || mask === 255) return null;
  const sum: Index = [0, 0, 0];
  let count = 0;
  for (const [a, b] of EDGES) {
    if (((mask >> a) & 1) === ((mask >> b) & 1)) continue;
    count++;
    for (const axis of [0, 1, 2] as const) sum[axis] += (CORNERS[a]![axis] + CORNERS[b]![axis]) / 2;
  }
  return [x + sum[0] / count, y + sum[1] / count, z + sum[2] / count];
}

// Move vertices towards the mean of their neighbours and, so that the surface does not shrink, away from it again
// (Taubin 1995), but never far from where they began.
function smooth({ points, triangles }: Surface): void {
  const first = points.slice();
  for (let round = 0; round < ROUNDS; round++) {
    for (const weight of WEIGHTS) {
      const sum = new Float32Array(points.length);
      const count = new Uint32Array(points.length / 3);
      for (let t = 0; t < triangles.length; t += 3) {
        for (let corner = 0; corner < 3; corner++) {
          const [a, b] = [triangles[t + corner]!, triangles[t + ((corner + 1) % 3)]!];
          count[a]!++;
          for (let axis = 0; axis < 3; axis++) sum[3 * a + axis]! += points[3 * b + axis]!;
        }
      }
      for (let n = 0; n < points.length; n++) {
        const mean = sum[n]! / (count[Math.floor(n / 3)]! || 1);
        const moved = points[n]! + weight * (mean - points[n]!);
        points[n] = Math.min(Math.max(moved, first[n]! - REACH), first[n]! + REACH);
      }
    }
  }
}
