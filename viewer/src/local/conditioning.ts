// Clicks as observations: the prediction is changed to agree with every click, near it and where features are alike.
// The logit of being tumour is modelled as a Gaussian process whose mean is the network's prediction; what is added is
// the change of the posterior mean (Rasmussen and Williams, Gaussian Processes for Machine Learning, eq. 2.25). A click
// near one of the other polarity reaches only half the way to it, and so speaks of its own surroundings alone.
import type { Index } from "../engine/engine";
import { AXES, perAxis } from "./boxes";
import type { Conditioning } from "./card";
import { roundedToEven } from "./numbers";

const NUGGET = 0.05; // variance of an observation, relative to the process's: nearby clicks need not agree exactly
const HALF_WAY = 0.5; // to the nearest click of the other polarity: how far a click reaches at most
const NARROWEST = 2; // crop voxels that it reaches at least
const FARTHEST = 80; // squared, in s.d.: e^-40 is negligible in a logit

/** A map of `count` channels, each with its first axis fastest. */
export interface FeatureMap {
  data: Float32Array;
  count: number;
  size: Index;
}

/** Interpolate the channels of a map at a place, trilinearly; outside the map they count as 0. */
export function sampled({ data, count, size }: FeatureMap, at: Index): Float32Array {
  const out = new Float32Array(count);
  const below = perAxis((axis) => Math.floor(at[axis]));
  for (let corner = 0; corner < 8; corner++) {
    const voxel = perAxis((axis) => below[axis] + ((corner >> axis) & 1));
    if (AXES.some((axis) => voxel[axis] < 0 || voxel[axis] >= size[axis])) continue;
    const factor = AXES.reduce<number>((product, axis) => product * (1 - Math.abs(at[axis] - voxel[axis])), 1);
    const first = (voxel[2] * size[1] + voxel[1]) * size[0] + voxel[0];
    for (let c = 0; c < count; c++) out[c]! += factor * data[c * size[0] * size[1] * size[2] + first]!;
  }
  return out;
}

/** A click in a crop: its place there, the features under it, and its reach in voxels. */
interface Observed {
  place: Index;
  looks: Float32Array;
  reach: number;
}

/**
 * The difference of the logits (tumour minus background) of a crop of `size`, changed to agree with the clicks. These
 * are in voxels of the crop; those outside are left out. Fused features and crop are aligned at their corner voxels.
 */
export function condition(difference: Float32Array, size: Index, fused: FeatureMap, clicks: { at: Index; positive: boolean }[], use: Conditioning): Float32Array {
  const kept = clicks.filter(({ at }) => AXES.every((axis) => at[axis] >= -0.5 && at[axis] <= size[axis] - 0.5));
  if (!kept.length) return difference;
  const features = standardised(fused);
  const grid = fused.size;
  const seen = kept.map(({ at, positive }) => {
    const place = perAxis((axis) => Math.min(Math.max(at[axis], 0), size[axis] - 1));
    const [i, j, k] = perAxis((axis) => roundedToEven(place[axis]));
    const sign = positive ? 1 : -1;
    const missing = sign * Math.max(0, use.margin - sign * difference[(k * size[1] + j) * size[0] + i]!);
    return { place, sign, missing, looks: sampled(features, perAxis((axis) => (place[axis] / (size[axis] - 1)) * (grid[axis] - 1))) };
  });
  const observed = seen.map((one) => {
    const others = seen.filter(({ sign }) => sign !== one.sign).map(({ place }) => Math.hypot(...AXES.map((axis) => place[axis] - one.place[axis])));
    return { ...one, reach: Math.min(Math.max(HALF_WAY * Math.min(...others), NARROWEST), use.reach) };
  });
  const covariance = observed.map((a, n) => observed.map((b, m) => likeness(a.place, a.looks, b, use) + (n === m ? NUGGET : 0)));
  const weights = solved(covariance, observed.map(({ missing }) => missing));
  const change = new Float64Array(grid[0] * grid[1] * grid[2]);
  observed.forEach((click, n) => spread(change, weights[n]!, click, features, size, use));
  return added(difference, size, Float32Array.from(change), grid);
}

/** Add one click's part to the change at each voxel of the features' grid: `likeness` without an array per voxel. */
function spread(change: Float64Array, weight: number, { place, looks, reach }: Observed, { data, count, size: grid }: FeatureMap, size: Index, use: Conditioning): void {
  const [x, y, z] = AXES.map((axis) => Float64Array.from({ length: grid[axis] }, (_, n) => (((n * (size[axis] - 1)) / (grid[axis] - 1) - place[axis]) / reach) ** 2)) as [Float64Array, Float64Array, Float64Array];
  const alike = use.likeness ** 2;
  for (let k = 0, at = 0; k < grid[2]; k++) {
    for (let j = 0; j < grid[1]; j++) {
      for (let i = 0; i < grid[0]; i++, at++) {
        const apart = x[i]! + y[j]! + z[k]!;
        if (apart > FARTHEST) continue;
        let unlike = 0;
        for (let c = 0, from = at; c < count; c++, from += change.length) {
          const difference = data[from]! - looks[c]!;
          unlike += difference * difference;
        }
        change[at]! += weight * Math.exp(-(apart + unlike / alike) / 2);
      }
    }
  }
}

/** The covariance with a click: 1 for the same place and features, falling to 0. */
function likeness(place: Index, looks: Float32Array, click: Observed, use: Conditioning): number {
  const apart = AXES.reduce<number>((sum, axis) => sum + (place[axis] - click.place[axis]) ** 2, 0) / click.reach ** 2;
  if (apart > FARTHEST) return 0;
  let unlike = 0;
  for (let c = 0; c < looks.length; c++) unlike += (looks[c]! - click.looks[c]!) ** 2;
  return Math.exp(-(apart + unlike / use.likeness ** 2) / 2);
}

/** Mean 0 and s.d. 1 in each channel, divided by the root of their number, so that distances are root mean squares. */
function standardised({ data, count, size }: FeatureMap): FeatureMap {
  const n = data.length / count;
  const out = new Float32Array(data.length);
  for (let first = 0; first < data.length; first += n) {
    let sum = 0;
    let squares = 0;
    for (let at = first; at < first + n; at++) sum += data[at]!;
    const mean = sum / n;
    for (let at = first; at < first + n; at++) squares += (data[at]! - mean) ** 2;
    const scale = 1 / (Math.max(Math.sqrt(squares / (n - 1)), 1e-3) * Math.sqrt(count));
    for (let at = first; at < first + n; at++) out[at] = (data[at]! - mean) * scale;
  }
  return { data: out, count, size };
}

/** Solve a few linear equations by elimination with partial pivoting. */
function solved(matrix: number[][], right: number[]): number[] {
  const rows = matrix.map((row, n) => [...row, right[n]!]);
  const n = rows.length;
  for (let column = 0; column < n; column++) {
    const pivot = rows.slice(column).reduce((best, row, r) => (Math.abs(row[column]!) > Math.abs(rows[best]![column]!) ? column + r : best), column);
    [rows[column], rows[pivot]] = [rows[pivot]!, rows[column]!];
    for (let r = column + 1; r < n; r++) {
      const factor = rows[r]![column]! / rows[column]![column]!;
      for (let c = column; c <= n; c++) rows[r]![c]! -= factor * rows[column]![c]!;
    }
  }
  const out = new Array<number>(n).fill(0);
  for (let r = n - 1; r >= 0; r--) {
    const known = out.reduce((sum, value, c) => (c > r ? sum + rows[r]![c]! * value : sum), 0);
    out[r] = (rows[r]![n]! - known) / rows[r]![r]!;
  }
  return out;
}

/** The values plus a change on a coarse grid, interpolated with corner voxels aligned. */
function added(values: Float32Array, size: Index, change: Float32Array, grid: Index): Float32Array {
  const places = AXES.map((axis) =>
    Array.from({ length: size[axis] }, (_, n) => {
      const at = (n * (grid[axis] - 1)) / (size[axis] - 1);
      const below = Math.min(Math.floor(at), grid[axis] - 2);
      return { below, part: at - below };
    }),
  );
  const steps: Index = [1, grid[0], grid[0] * grid[1]];
  const out = new Float32Array(values.length);
  const row = new Float32Array(grid[0]);
  for (let k = 0, at = 0; k < size[2]; k++) {
    const z = places[2]![k]!;
    for (let j = 0; j < size[1]; j++) {
      const y = places[1]![j]!;
      const first = z.below * steps[2] + y.below * steps[1];
      for (let i = 0; i < grid[0]; i++) {
        const near = change[first + i]! * (1 - y.part) + change[first + steps[1] + i]! * y.part;
        const far = change[first + steps[2] + i]! * (1 - y.part) + change[first + steps[2] + steps[1] + i]! * y.part;
        row[i] = near * (1 - z.part) + far * z.part;
      }
      for (let i = 0; i < size[0]; i++, at++) {
        const x = places[0]![i]!;
        out[at] = values[at]! + row[x.below]! * (1 - x.part) + row[x.below + 1]! * x.part;
      }
    }
  }
  return out;
}
