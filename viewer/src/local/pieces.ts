// Pieces: windows with the probabilities predicted in them; which windows clicks need, and how pieces are blended.
import type { Box, Index } from "../engine/engine";
import { isEmpty, sizeOf } from "../stage/geometry";
import { AXES, boundingBox, countOf, eachRow, grown, hull, intersection, joined, NOWHERE, perAxis, sumOf } from "./boxes";
import { componentsAt } from "./components";
import { Window, type Grid } from "./grid";
import { roundedToEven } from "./numbers";

export interface Piece {
  window: Window;
  probability: Float32Array; // of the window's voxels
}

export const THRESHOLD = 0.5; // of the probability: inside the tumour
const WELL_INSIDE = 8; // a click this fraction (1/8) of the side or more from the crop's faces keeps the crop where it is
const TOUCH = 2; // a mask within this many voxels of a face of its crop is said to reach it

// Windows

/** The windows for clicks on the model grid: the current ones if they hold all, else one per group that fits in one. */
export function chooseWindows(modelGrid: Grid, points: Index[], side: number, current: Window[]): Window[] {
  const holding = (point: Index) => current.find((window) => isWellInside(window, point));
  if (current.length && points.every(holding)) return current.filter((window) => points.some((point) => isWellInside(window, point)));
  // Along an axis where the scan is no longer than a crop, one crop holds all of it.
  const extent = perAxis((axis) => (modelGrid.shape[axis] <= side ? side : side - 2 * Math.floor(side / WELL_INSIDE)));
  const chosen = new Map<string, Window>();
  for (const group of groups(points, extent)) {
    const held = current.find((window) => group.every((point) => isWellInside(window, point)));
    const middle = perAxis((axis) => (Math.min(...group.map((point) => point[axis])) + Math.max(...group.map((point) => point[axis]))) / 2);
    const window = held ?? Window.around(modelGrid, middle, [side, side, side]);
    if (!chosen.has(window.key)) chosen.set(window.key, window);
  }
  return [...chosen.values()];
}

// Clicks split, in their order, into groups whose bounding boxes are at most `extent` wide.
function groups(points: Index[], extent: Index): Index[][] {
  const found: Index[][] = [];
  for (const point of points) {
    const fits = (group: Index[]) =>
      AXES.every((axis) => {
        const along = [...group, point].map((one) => one[axis]);
        return Math.max(...along) - Math.min(...along) <= extent[axis];
      });
    const group = found.find(fits);
    if (group) group.push(point);
    else found.push([point]);
  }
  return found;
}

// Whether a click is far from those faces of a window beyond which the scan continues.
function isWellInside({ modelGrid, start, size }: Window, point: Index): boolean {
  return AXES.every((axis) => {
    const margin = Math.floor(size[axis] / WELL_INSIDE);
    const low = start[axis] + (start[axis] > 0 ? margin : 0);
    const high = start[axis] + size[axis] - 1 - (start[axis] + size[axis] < modelGrid.shape[axis] ? margin : 0);
    return point[axis] >= low && point[axis] <= high;
  });
}

/** Where a tumour continues: for each face of a window that its mask reaches, the window centred there. */
export function nextWindows(window: Window, probability: Float32Array): Window[] {
  const { modelGrid, start, size } = window;
  const found: Window[] = [];
  for (const axis of [2, 1, 0] as const) {
    // A model's first axis is the last here.
    const ends = [
      { at: 0, from: 0, to: Math.min(TOUCH, size[axis]), isEnd: start[axis] <= 0 },
      { at: size[axis] - 1, from: Math.max(0, size[axis] - TOUCH), to: size[axis], isEnd: start[axis] + size[axis] >= modelGrid.shape[axis] },
    ];
    for (const { at, from, to, isEnd } of ends) {
      if (isEnd) continue;
      const slab: Box = { low: perAxis((other) => (other === axis ? from : 0)), high: perAxis((other) => (other === axis ? to : size[other])) };
      const reached = boundingBox(aboveThreshold(probability, size, slab), sizeOf(slab));
      if (isEmpty(reached)) continue;
      const centre = perAxis((other) => start[other] + (other === axis ? at : (reached.low[other] + reached.high[other] - 1) / 2));
      found.push(Window.around(modelGrid, centre, size));
    }
  }
  return found;
}

/** Whether a window's start differs from all others by at least a quarter of its side on some axis. */
export function isNew(window: Window, pieces: Piece[]): boolean {
  const step = Math.max(...window.size) / 4;
  return pieces.every((piece) => AXES.some((axis) => Math.abs(window.start[axis] - piece.window.start[axis]) >= step));
}

/** 1 where the probability is above THRESHOLD, in a box of an array of `size`. */
function aboveThreshold(probability: Float32Array, size: Index, box: Box = { low: [0, 0, 0], high: size }): Uint8Array {
  const inside = new Uint8Array(countOf(box));
  eachRow(box, { low: [0, 0, 0], high: size }, box, (from, to, length) => {
    for (let n = 0; n < length; n++) inside[to + n] = probability[from + n]! > THRESHOLD ? 1 : 0;
  });
  return inside;
}

// Blending

/**
 * The pieces' probabilities in a window of their model grid; 0 where there is no piece. Where pieces overlap: their
 * mean, weighted towards the centres of their crops. Not to be written to.
 */
export function blend(pieces: Piece[], window: Window): Float32Array {
  const overlapping = pieces.map((piece) => ({ ...piece, shared: intersection(piece.window.box, window.box) })).filter(({ shared }) => !isEmpty(shared));
  const [only] = overlapping;
  if (overlapping.length === 1 && only!.window.key === window.key) return only!.probability;
  const out = new Float32Array(countOf(window.box));
  if (overlapping.length === 1) {
    eachRow(only!.shared, only!.window.box, window.box, (from, to, length) => out.set(only!.probability.subarray(from, from + length), to));
    return out;
  }
  const weights = new Float32Array(out.length);
  for (const { window: source, probability, shared } of overlapping) {
    const { size } = source;
    const [ramp, rows, planes] = size.map((n) => Float64Array.from({ length: n }, (_, at) => Math.min(at + 0.5, n - at - 0.5) / (n / 2))) as [Float64Array, Float64Array, Float64Array];
    eachRow(shared, source.box, window.box, (from, to, length) => {
      const across = rows[Math.floor(from / size[0]) % size[1]]! * planes[Math.floor(from / (size[0] * size[1]))]!;
      const first = from % size[0];
      for (let n = 0; n < length; n++) {
        const weight = ramp[first + n]! * across;
        out[to + n]! += weight * probability[from + n]!;
        weights[to + n]! += weight;
      }
    });
  }
  for (let n = 0; n < out.length; n++) if (weights[n]! > 0) out[n]! /= weights[n]!;
  return out;
}

/** A crop's probabilities, 0 in components of its mask (joined through faces) that hold no voxel of `before`. */
export function connected({ window, probability }: Piece, before: Float32Array): Float32Array {
  const inside = aboveThreshold(probability, window.size);
  const shared: number[] = [];
  for (let n = 0; n < inside.length; n++) if (inside[n] && before[n]! > THRESHOLD) shared.push(n);
  const isJoined = componentsAt(inside, window.size, shared);
  const kept = probability.slice();
  for (let n = 0; n < kept.length; n++) if (inside[n] && !isJoined[n]) kept[n] = 0;
  return kept;
}

/**
 * A few pieces that together hold all of the blend above THRESHOLD in the scan; where they overlap, the highest counts.
 * Each holds the neighbours of its voxels, so that linear interpolation nowhere exceeds the blend.
 */
export function tumourParts(pieces: Piece[]): Piece[] {
  if (!pieces.length) return [];
  const ends = hull(pieces.map((piece) => piece.window.box));
  const boxes = pieces.map((piece) => tumourBox(pieces, piece.window)).filter((box) => !isEmpty(box));
  const windows = joined(boxes.map((box) => intersection(grown(box, 1), ends))).map((box) => Window.ofBox(pieces[0]!.window.modelGrid, box));
  return windows.map((window) => ({ window, probability: blend(pieces, window) }));
}

/** Number of model grid voxels in the mask. */
export function voxelsAbove(pieces: Piece[]): number {
  let sum = 0;
  for (const { probability } of tumourParts(pieces)) for (const value of probability) if (value > THRESHOLD) sum++;
  return sum;
}

// The box, on the model grid, of the voxels above THRESHOLD in a window, as far as they lie in the scan.
function tumourBox(pieces: Piece[], window: Window): Box {
  const inside = window.inside();
  if (isEmpty(inside)) return NOWHERE;
  const found = boundingBox(aboveThreshold(blend(pieces, window), window.size, inside), sizeOf(inside));
  if (isEmpty(found)) return NOWHERE;
  const first = perAxis((axis) => window.start[axis] + inside.low[axis]);
  return { low: perAxis((axis) => found.low[axis] + first[axis]), high: perAxis((axis) => found.high[axis] + first[axis]) };
}

/**
 * Size and mean probability (`sure`) of the mask's components that hold clicks (RAS+ mm); 0 and 0 if there are none.
 * `across`: the diameter, in voxels of the model grid, of a ball of their volume. A component that fills its crop
 * counts as larger than what is seen of it: each face that it reaches adds a half.
 */
export function clickedExtent(pieces: Piece[], clicks: Index[]): { across: number; sure: number } {
  let volume = 0;
  let total = 0;
  let factor = 1;
  for (const { window, probability } of pieces) {
    const [ni, nj, nk] = window.size;
    const clicked: number[] = [];
    for (const click of clicks) {
      const at = window.modelGrid.toIndex(click).map((v, axis) => roundedToEven(v - window.start[axis as 0]!)) as Index;
      if (AXES.every((axis) => at[axis] >= 0 && at[axis] < window.size[axis])) clicked.push((at[2] * nj + at[1]) * ni + at[0]);
    }
    const mask = componentsAt(aboveThreshold(probability, window.size), window.size, clicked);
    volume += sumOf(mask);
    total += mask.reduce((sum, is, n) => (is ? sum + probability[n]! : sum), 0);
    const { low, high } = boundingBox(mask, [ni, nj, nk]);
    const faces = isEmpty({ low, high }) ? 0 : AXES.reduce<number>((sum, axis) => sum + Number(low[axis] === 0) + Number(high[axis] === window.size[axis]), 0);
    factor = Math.max(factor, 1 + 0.5 * faces);
  }
  return { across: Math.cbrt((6 * volume * factor) / Math.PI), sure: total / Math.max(1, volume) };
}
