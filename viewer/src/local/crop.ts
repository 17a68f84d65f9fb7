// From a scan to a normalised crop, and from a crop's probabilities back to the scan's own voxels.
import type { Box, Index } from "../engine/engine";
import { isEmpty, sizeOf } from "../stage/geometry";
import { AXES, countOf, eachRow, perAxis } from "./boxes";
import type { Intensity, Preprocessing } from "./card";
import { Grid, Window } from "./grid";
import { quantile } from "./numbers";
import { otherModality } from "./remarks";
import { resample } from "./resample";
import type { Volume } from "./volume";

const SAMPLED = 2_000_000; // at most this many voxels of a scan are sampled
const TAILS = [0.01, 0.99] as const; // quantiles of the foreground: values beyond are left out

/** A scan as a model sees it: value = data * slope + intercept. */
export interface Image extends Pick<Volume, "data" | "slope" | "intercept"> {
  grid: Grid;
}

function reversed([d, h, w]: readonly [number, number, number]): Index {
  return [w, h, d];
}

/** The scan's grid at the model's axes, in reverse (see grid.ts), and at its spacing or another one. */
export function modelGrid(scan: Grid, { axes, spacing_mm }: Preprocessing, spacing?: number): Grid {
  return scan.reorient([...axes].reverse().join("")).respace(spacing === undefined ? reversed(spacing_mm) : [spacing, spacing, spacing]);
}

/** The scan, standardised if the model requires it: minus the mean of its foreground, divided by its s.d. */
export function imageOf(scan: Volume, wanted: Intensity): Image {
  const image = { data: scan.data, slope: scan.slope, intercept: scan.intercept, grid: new Grid(scan.shape, scan.affine) };
  if (wanted.per_scan) return standardised(scan, image);
  if (!wanted.standardise_others || !otherModality(scan, wanted.modality)) return image;
  const { slope, intercept } = standardised(scan, image);
  return { ...image, slope: slope * wanted.sd, intercept: intercept * wanted.sd + wanted.mean };
}

function standardised(scan: Volume, image: Image): Image {
  const values = sampled(scan);
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  const foreground = values.filter((v) => v > mean).sort();
  if (!foreground.length) return { ...image, slope: 0, intercept: 0 };
  const [low, high] = TAILS.map((fraction) => quantile(foreground, fraction)) as [number, number];
  const middle = foreground.filter((v) => v >= low && v <= high);
  const centre = middle.reduce((sum, v) => sum + v, 0) / middle.length;
  const sd = Math.sqrt(middle.reduce((sum, v) => sum + (v - centre) ** 2, 0) / middle.length) || 1;
  return { ...image, slope: scan.slope / sd, intercept: (scan.intercept - centre) / sd };
}

// Voxels spread evenly over the scan, counted with k fastest.
function sampled({ data, shape: [ni, nj, nk], slope, intercept }: Volume): Float32Array {
  const every = Math.ceil(data.length / SAMPLED);
  return Float32Array.from({ length: Math.ceil(data.length / every) }, (_, n) => {
    const at = n * every;
    const j = Math.floor(at / nk) % nj;
    return data[((at % nk) * nj + j) * ni + Math.floor(at / (nk * nj))]! * slope + intercept;
  });
}

/** The normalised crop; 0 outside the scan. */
export function readCrop(image: Image, window: Window, { clip, mean, sd, interpolation }: Preprocessing): Float32Array {
  const crop = new Float32Array(countOf(window.box) + 0);
  const inside = window.inside();
  if (isEmpty(inside)) return crop;
  const values = resample(image.data, image.grid, window.grid.crop(inside.low, sizeOf(inside)), interpolation);
  eachRow(inside, inside, { low: [0, 0, 0], high: window.size }, (from, to, length) => {
    for (let n = 0; n < length; n++) {
      const value = values[from + n]! * image.slope + image.intercept;
      crop[to + n] = (Math.min(Math.max(value, clip[0]), clip[1]) - mean) / sd;
    }
  });
  return crop;
}

/** The box of the scan that a crop can reach: one voxel beyond its outermost centres, two where the model grid ends. */
function pasteBox(window: Window, scan: Grid): Box {
  const inside = window.inside();
  const ends = AXES.map((axis) => {
    const reachesEnd = window.start[axis] + inside.high[axis] >= window.modelGrid.shape[axis];
    return [inside.low[axis] - 1, inside.high[axis] + (reachesEnd ? 1 : 0)] as const;
  });
  const grid = window.grid;
  const corners = Array.from({ length: 8 }, (_, n) => scan.toIndex(grid.toWorld(perAxis((axis) => ends[axis]![(n >> axis) & 1]!))));
  const low = perAxis((axis) => Math.max(Math.floor(Math.min(...corners.map((at) => at[axis]))), 0));
  const high = perAxis((axis) => Math.min(Math.ceil(Math.max(...corners.map((at) => at[axis]))) + 1, scan.shape[axis]));
  return { low, high: perAxis((axis) => Math.max(low[axis], high[axis])) };
}

/** A crop's probabilities on its box of the scan: 0 beyond the crop, the outermost value at the border of the scan. */
export function paste(crop: Float32Array, window: Window, scan: Grid): { box: Box; values: Float32Array } {
  const box = pasteBox(window, scan);
  if (isEmpty(box)) return { box, values: new Float32Array() };
  const inside = window.inside();
  const size = perAxis((axis) => inside.high[axis] - inside.low[axis] + 2);
  const padded = new Float32Array(size[0] * size[1] * size[2]);
  const low = perAxis((axis) => inside.low[axis] - 1);
  const whole: Box = { low, high: perAxis((axis) => low[axis] + size[axis]) };
  eachRow(inside, { low: [0, 0, 0], high: window.size }, whole, (from, to, length) => padded.set(crop.subarray(from, from + length), to));
  const steps: Index = [1, size[0], size[0] * size[1]];
  for (const axis of AXES) {
    const last = (size[axis] - 1) * steps[axis];
    const atStart = window.start[axis] + inside.low[axis] <= 0;
    const atEnd = window.start[axis] + inside.high[axis] >= window.modelGrid.shape[axis];
    const [a, b] = AXES.filter((other) => other !== axis) as [0 | 1 | 2, 0 | 1 | 2];
    for (let m = 0; m < size[a]; m++) {
      for (let n = 0; n < size[b]; n++) {
        const first = m * steps[a] + n * steps[b];
        if (atStart) padded[first] = padded[first + steps[axis]]!;
        if (atEnd) padded[first + last] = padded[first + last - steps[axis]]!;
      }
    }
  }
  return { box, values: resample(padded, window.grid.crop(low, size), scan.crop(box.low, sizeOf(box))) };
}
