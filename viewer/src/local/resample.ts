// Interpolation between grids: the one place that reads values between voxels.
import type { Index } from "../engine/engine";
import { AXES, perAxis } from "./boxes";
import { Grid, type Affine } from "./grid";
import { rounded } from "./numbers";
import type { VoxelArray } from "./volume";

const SKEW_TOLERANCE = 1e-4; // voxels per voxel: below it, the axes of two grids count as parallel
const INDEX_DECIMALS = 9;

export type Method = "linear" | "area" | "nearest";

/** For each place on an axis, the voxels that it reads and their weights. */
interface Taps {
  index: Int32Array; // places x count: voxels of the axis
  weight: Float64Array;
  count: number;
}

/**
 * The values at the voxels of `target`; outside, those of the nearest edge voxel. "linear" reads the two nearest voxels
 * along each axis; "area" averages over the target's spacing where that is the coarser one; "nearest" reads one voxel.
 * Grids whose axes are parallel, even if permuted or flipped, are interpolated axis by axis, and only what the target
 * covers is read. For oblique grids "area" is "linear".
 */
export function resample(data: VoxelArray, source: Grid, target: Grid, method: Method = "linear"): Float32Array {
  const matrix = target.mapTo(source);
  const partner = parallelAxes(matrix);
  return partner ? alongAxes(data, source.shape, matrix, partner, target.shape, method) : oblique(data, source.shape, matrix, target.shape, method);
}

/** For each axis of the target, the source's axis parallel to it; null if the grids are oblique to each other. */
function parallelAxes(matrix: Affine): Index | null {
  const size = (row: number, axis: number) => Math.abs(matrix[row]![axis]!);
  const partner = perAxis((axis) => AXES.reduce<number>((best, row) => (size(row, axis) > size(best, axis) ? row : best), 0));
  const rest = AXES.flatMap((axis) => AXES.filter((row) => row !== partner[axis]).map((row) => size(row, axis)));
  return new Set(partner).size === 3 && Math.max(...rest) <= SKEW_TOLERANCE ? partner : null;
}

function alongAxes(data: VoxelArray, shape: Index, matrix: Affine, partner: Index, size: Index, method: Method): Float32Array {
  const taps: Taps[] = [];
  for (const axis of AXES) {
    const source = partner[axis];
    const step = matrix[source]![axis]!;
    const places = Float64Array.from({ length: size[axis] }, (_, n) => {
      const at = rounded(step * n + matrix[source]![3]!, INDEX_DECIMALS);
      return Math.min(Math.max(at, 0), shape[source as 0]! - 1);
    });
    taps[source] = tapsOf(places, shape[source as 0]!, Math.abs(step), method);
  }
  const places = perAxis((axis) => size[partner.indexOf(axis) as 0]!); // of each axis of the source
  const low = perAxis((axis) => taps[axis]!.index.reduce((least, n) => Math.min(least, n), Infinity));
  let part = perAxis((axis) => taps[axis]!.index.reduce((most, n) => Math.max(most, n), 0) + 1 - low[axis]);
  // Axes that shrink come first: that keeps the intermediate arrays small.
  const order = [...AXES].sort((a, b) => places[a] / part[a] - places[b] / part[b]);
  let values: VoxelArray = data;
  let layout = { offset: (low[2] * shape[1] + low[1]) * shape[0] + low[0], steps: [1, shape[0], shape[0] * shape[1]] as Index };
  for (const axis of order) {
    values = alongOne(values, layout, part, axis, taps[axis]!, low[axis]);
    part = perAxis((other) => (other === axis ? places[axis] : part[other]));
    layout = { offset: 0, steps: [1, part[0], part[0] * part[1]] };
  }
  return turned(values as Float32Array, places, partner);
}

function tapsOf(places: Float64Array, length: number, step: number, method: Method): Taps {
  const reach = method === "area" ? Math.max(1, step) : 1;
  const count = method === "nearest" ? 1 : Math.ceil(2 * reach);
  const index = new Int32Array(places.length * count);
  const weight = new Float64Array(places.length * count);
  places.forEach((at, n) => {
    const first = method === "nearest" ? Math.floor(at + 0.5) : Math.floor(at - reach) + 1;
    let sum = 0;
    for (let tap = 0; tap < count; tap++) {
      weight[n * count + tap] = method === "nearest" ? 1 : Math.max(0, 1 - Math.abs(first + tap - at) / reach);
      sum += weight[n * count + tap]!;
      index[n * count + tap] = Math.min(Math.max(first + tap, 0), length - 1);
    }
    for (let tap = 0; tap < count; tap++) weight[n * count + tap]! /= sum;
  });
  return { index, weight, count };
}

/** Interpolate a part of an array along one axis. `low`: the voxel of that axis at which the part begins. */
function alongOne(data: VoxelArray, { offset, steps }: { offset: number; steps: Index }, part: Index, axis: 0 | 1 | 2, { index, weight, count }: Taps, low: number): Float32Array {
  const places = index.length / count;
  const size = perAxis((other) => (other === axis ? places : part[other]));
  const out = new Float32Array(size[0] * size[1] * size[2]);
  const step = steps[axis];
  let row = 0;
  for (let k = 0; k < size[2]; k++) {
    for (let j = 0; j < size[1]; j++, row += size[0]) {
      const begin = offset + (axis === 2 ? 0 : k * steps[2]) + (axis === 1 ? 0 : j * steps[1]);
      if (axis === 0) {
        for (let n = 0, tap = 0; n < places; n++) {
          let sum = 0;
          for (let t = 0; t < count; t++, tap++) sum += weight[tap]! * data[begin + index[tap]! - low]!;
          out[row + n] = sum;
        }
        continue;
      }
      const place = axis === 1 ? j : k;
      for (let tap = place * count; tap < (place + 1) * count; tap++) {
        const factor = weight[tap]!;
        const from = begin + (index[tap]! - low) * step;
        if (factor !== 0) for (let i = 0; i < size[0]; i++) out[row + i]! += factor * data[from + i]!;
      }
    }
  }
  return out;
}

/** The array transposed: axis a becomes the axis n for which partner[n] is a. */
function turned(values: Float32Array, size: Index, partner: Index): Float32Array {
  if (AXES.every((axis) => partner[axis] === axis)) return values;
  const steps: Index = [1, size[0], size[0] * size[1]];
  const [ni, nj, nk] = perAxis((axis) => size[partner[axis] as 0]!);
  const [si, sj, sk] = perAxis((axis) => steps[partner[axis] as 0]!);
  const out = new Float32Array(values.length);
  for (let k = 0, at = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) for (let i = 0; i < ni; i++) out[at++] = values[i * si + j * sj + k * sk]!;
  }
  return out;
}

function oblique(data: VoxelArray, shape: Index, matrix: Affine, [ni, nj, nk]: Index, method: Method): Float32Array {
  const out = new Float32Array(ni * nj * nk);
  const [x, y, z] = matrix as [number[], number[], number[]];
  const steps: Index = [1, shape[0], shape[0] * shape[1]];
  for (let k = 0, n = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      for (let i = 0; i < ni; i++, n++) {
        const at: Index = [
          x[0]! * i + x[1]! * j + x[2]! * k + x[3]!,
          y[0]! * i + y[1]! * j + y[2]! * k + y[3]!,
          z[0]! * i + z[1]! * j + z[2]! * k + z[3]!,
        ];
        let first = 0; // of the eight voxels around it
        const fraction: Index = [0, 0, 0];
        for (const axis of AXES) {
          const place = Math.min(Math.max(at[axis], 0), shape[axis] - 1);
          const below = method === "nearest" ? Math.floor(place + 0.5) : Math.min(Math.floor(place), Math.max(shape[axis] - 2, 0));
          first += below * steps[axis];
          if (method !== "nearest") fraction[axis] = place - below;
        }
        let sum = 0;
        for (let corner = 0; corner < 8; corner++) {
          let factor = 1;
          let voxel = first;
          for (const axis of AXES) {
            const above = (corner >> axis) & 1;
            factor *= above ? fraction[axis] : 1 - fraction[axis];
            voxel += above * steps[axis];
          }
          if (factor !== 0) sum += factor * data[voxel]!;
        }
        out[n] = sum;
      }
    }
  }
  return out;
}
