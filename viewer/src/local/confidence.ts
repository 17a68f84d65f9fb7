// Confidence: how good a mask probably is, from the prediction and the crop, as in voxsam.interactive.confidence.
import type { Confidence, Index } from "../engine/engine";
import { AXES, eachRow, perAxis, sumOf } from "./boxes";
import type { Calibration, Classes } from "./card";
import { componentsAt } from "./components";
import type { FeatureMap } from "./conditioning";
import { rounded, roundedToEven } from "./numbers";
import { THRESHOLD, type Piece } from "./pieces";

const [SHELL, FAR] = [2, 4]; // widths in voxels of a shell around the mask and of one around that
const [VAGUE_LOW, VAGUE_HIGH] = [0.1, 0.9]; // probabilities between these are vague
const FEW = 1e-3;
const MAX_RATIO = 20; // between a volume and the ends of its interval

/** A click as `signals` takes it, in RAS+ mm. */
export interface SeenClick {
  world: Index;
  positive: boolean;
}

/** The confidence in a mask made from `pieces`, the first of which is `crop`; null if calibrated on other signals. */
export function confidence(calibration: Calibration, pieces: Piece[], clicks: SeenClick[], crop: Float32Array, volume_ml: number): Confidence | null {
  const found = signals(pieces[0]!, clicks, crop);
  if (calibration.centre.length !== found.length) return null; // calibrated by another version
  const { dice, lesion, ratios } = judged(calibration, found);
  const [low, high] = ratios.map((ratio) => rounded(ratio * volume_ml, 4)) as [number, number];
  return { dice: rounded(dice, 3), volume_ml: [low, high], doubtful: lesion < calibration.warn_below };
}

/** The name of the class whose mean is nearest to the features under the mask of a crop, each in units of its spread. */
export function className({ names, means, spread }: Classes, { window, probability }: Piece, tokens: FeatureMap): string {
  const features = under(tokens, Uint8Array.from(probability, (one) => (one > THRESHOLD ? 1 : 0)), window.size);
  const apart = means.map((mean) => mean.reduce((sum, value, c) => sum + ((value - features[c]!) / spread[c]!) ** 2, 0));
  return names[apart.indexOf(Math.min(...apart))]!;
}

/** What tells a good mask from a bad one: how sure it is, its size, shape and surroundings. */
export function signals({ window, probability }: Piece, clicks: SeenClick[], crop: Float32Array): number[] {
  const { size } = window;
  const [ni, nj, nk] = size;
  const positive = clicks.filter((click) => click.positive);
  const here = positive
    .map(({ world }) => window.modelGrid.toIndex(world).map((v, axis) => roundedToEven(v - window.start[axis as 0]!)) as Index)
    .filter((at) => AXES.every((axis) => at[axis] >= 0 && at[axis] < size[axis]))
    .map(([i, j, k]) => (k * nj + j) * ni + i);
  const mask = new Uint8Array(probability.length);
  let vague = 0;
  for (let n = 0; n < mask.length; n++) {
    mask[n] = probability[n]! > THRESHOLD ? 1 : 0;
    if (probability[n]! > VAGUE_LOW && probability[n]! < VAGUE_HIGH) vague++;
  }
  const isHit = here.some((at) => mask[at]);
  const clicked = isHit ? componentsAt(mask, size, here) : mask;
  const voxels = sumOf(clicked);
  const middle = (Math.floor(nk / 2) * nj + Math.floor(nj / 2)) * ni + Math.floor(ni / 2);
  const core = voxels ? clicked : marked(mask.length, here.length ? here : [middle]);
  const zones = zonesOf(core, size);
  const [inside, around, far] = zones.map((zone) => spreadOf(crop, zone)) as [Spread, Spread, Spread];
  const spacing = Math.max(...window.modelGrid.spacing);
  const across = Math.cbrt((6 * voxels) / Math.PI);
  const difference = inside.mean - around.mean;
  const [sdIn, sdOut] = [inside.sd + FEW, around.sd + FEW];
  const [low, high] = [inside.mean - sdIn, inside.mean + sdIn];
  return [
    voxels ? meanOf(probability, clicked) : 0,
    Math.log1p(vague / (voxels + 1)),
    here.length ? here.reduce((sum, at) => sum + probability[at]!, 0) / here.length : 0,
    isHit ? 0 : 1,
    Math.log1p(across),
    Math.log((across + 1) * spacing),
    surfaceOf(clicked, size) / (voxels ** (2 / 3) + 1),
    Math.abs(difference) / Math.hypot(sdIn, sdOut),
    clipped(difference, 3),
    Math.log(sdIn),
    Math.log(sdOut),
    clipped(inside.mean, 4),
    clipped(around.mean, 4),
    1 - voxels / Math.max(1, sumOf(mask)),
    facesReached(clicked, size) / 6,
    Math.log(Math.max(1, positive.length)),
    Math.log1p(clicks.length - positive.length),
    ...shapeOf(core, size),
    ...zones.slice(1).map((zone) => fractionOf(crop, zone, (value) => value > high)),
    ...zones.slice(1).map((zone) => fractionOf(crop, zone, (value) => value < low)),
    Math.log(far.sd + FEW),
    clipped(far.mean, 4),
  ];
}

// Run the calibration, a small network of tanh layers.
function judged({ centre, spread, layers }: Calibration, found: number[]) {
  const last = layers.length - 1;
  const said = layers.reduce(
    (x, { weights, bias }, n) => weights.map((row, r) => {
      const sum = row.reduce((total, weight, c) => total + weight * x[c]!, bias[r]!);
      return n < last ? Math.tanh(sum) : sum;
    }),
    found.map((value, n) => (value - centre[n]!) / spread[n]!),
  );
  const [dice, lesion, ...ends] = said as [number, number, number, number];
  const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
  return { dice: sigmoid(dice), lesion: sigmoid(lesion), ratios: ends.sort((a, b) => a - b).map((end) => Math.exp(clipped(end, Math.log(MAX_RATIO)))) };
}

function clipped(value: number, most: number): number {
  return Math.min(Math.max(value, -most), most);
}

function meanOf(values: Float32Array, inside: Uint8Array): number {
  let [sum, count] = [0, 0];
  for (let n = 0; n < inside.length; n++) {
    if (!inside[n]) continue;
    sum += values[n]!;
    count++;
  }
  return sum / count;
}

interface Spread {
  mean: number;
  sd: number;
}

function spreadOf(values: Float32Array, inside: Uint8Array): Spread {
  const mean = meanOf(values, inside);
  return { mean, sd: Math.sqrt(meanOf(values.map((value) => (value - mean) ** 2), inside)) };
}

function fractionOf(values: Float32Array, inside: Uint8Array, holds: (value: number) => boolean): number {
  return values.reduce((count, value, n) => count + (inside[n] && holds(value) ? 1 : 0), 0) / sumOf(inside);
}

function marked(length: number, places: number[]): Uint8Array<ArrayBuffer> {
  const found = new Uint8Array(length);
  for (const at of places) found[at] = 1;
  return found;
}

// A mask, a shell around it, and a wider one around that; an empty shell repeats the last.
function zonesOf(core: Uint8Array, size: Index): Uint8Array[] {
  const zones = [core];
  let within = core;
  for (const width of [SHELL, FAR]) {
    let grown = within;
    for (let n = 0; n < width; n++) grown = faceNeighbours(grown, size, (own, neighbours) => own || neighbours > 0);
    const shell = grown.map((one, n) => (one && !within[n] ? 1 : 0));
    zones.push(sumOf(shell) ? shell : zones.at(-1)!);
    within = grown;
  }
  return zones;
}

// Log of a mask's radius of gyration over that of an equal ball, and the fraction of its box that it fills.
function shapeOf(core: Uint8Array, size: Index): [number, number] {
  const voxels = sumOf(core);
  const [sum, square, low, high] = [[0, 0, 0], [0, 0, 0], [...size], [0, 0, 0]] as [number[], number[], number[], number[]];
  for (let k = 0, n = 0; k < size[2]; k++) {
    for (let j = 0; j < size[1]; j++) {
      for (let i = 0; i < size[0]; i++, n++) {
        if (!core[n]) continue;
        [i, j, k].forEach((at, axis) => {
          sum[axis]! += at;
          square[axis]! += at * at;
          low[axis] = Math.min(low[axis]!, at);
          high[axis] = Math.max(high[axis]!, at + 1);
        });
      }
    }
  }
  const variance = AXES.reduce<number>((total, axis) => total + square[axis]! / voxels - (sum[axis]! / voxels) ** 2 + 1 / 12, 0); // a voxel is a cube, not a point
  const box = AXES.reduce<number>((product, axis) => product * (high[axis]! - low[axis]!), 1);
  return [Math.log(Math.sqrt(variance) / (Math.sqrt(3 / 5) * Math.cbrt((3 * voxels) / (4 * Math.PI)))), voxels / box];
}

// The number of mask voxels with a face neighbour in the crop that is not in the mask.
function surfaceOf(mask: Uint8Array, size: Index): number {
  return sumOf(faceNeighbours(mask, size, (own, inside, all) => own && inside < all));
}

/** 1 where `keep` is true of a voxel, its number of face neighbours in the mask, and of all those in the array. */
function faceNeighbours(mask: Uint8Array, [ni, nj, nk]: Index, keep: (own: boolean, inside: number, all: number) => boolean): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(mask.length);
  const plane = ni * nj;
  for (let k = 0, at = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      for (let i = 0; i < ni; i++, at++) {
        const below = (i > 0 ? mask[at - 1]! : 0) + (j > 0 ? mask[at - ni]! : 0) + (k > 0 ? mask[at - plane]! : 0);
        const above = (i < ni - 1 ? mask[at + 1]! : 0) + (j < nj - 1 ? mask[at + ni]! : 0) + (k < nk - 1 ? mask[at + plane]! : 0);
        const all = 6 - +(i === 0) - +(j === 0) - +(k === 0) - +(i === ni - 1) - +(j === nj - 1) - +(k === nk - 1);
        out[at] = keep(mask[at] === 1, below + above, all) ? 1 : 0;
      }
    }
  }
  return out;
}

// How many of the crop's six faces the mask reaches.
function facesReached(mask: Uint8Array, size: Index): number {
  const whole = { low: [0, 0, 0] as Index, high: size };
  const faces = AXES.flatMap((axis) => [0, size[axis] - 1].map((end) => {
    const face = { low: perAxis((other) => (other === axis ? end : 0)), high: perAxis((other) => (other === axis ? end + 1 : size[other])) };
    let isReached = false;
    eachRow(face, whole, face, (from, _, length) => (isReached ||= mask.subarray(from, from + length).includes(1)));
    return isReached;
  }));
  return faces.filter(Boolean).length;
}

// The mean of each channel under the mask, tokens weighted by the fraction covered; of the whole crop without a mask.
function under({ data, count, size: grid }: FeatureMap, mask: Uint8Array, size: Index): number[] {
  const side = perAxis((axis) => Math.floor(size[axis] / grid[axis]));
  const covered = { low: [0, 0, 0] as Index, high: perAxis((axis) => grid[axis] * side[axis]) };
  const tokens = grid[0] * grid[1] * grid[2];
  const weights = new Float64Array(tokens).fill(1e-6);
  eachRow(covered, { low: [0, 0, 0], high: size }, covered, (from, to, length) => {
    const j = Math.floor(to / length) % covered.high[1];
    const k = Math.floor(to / length / covered.high[1]);
    const first = (Math.floor(k / side[2]) * grid[1] + Math.floor(j / side[1])) * grid[0];
    for (let i = 0; i < length; i++) weights[first + Math.floor(i / side[0])]! += mask[from + i]! / (side[0] * side[1] * side[2]);
  });
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return Array.from({ length: count }, (_, c) => weights.reduce((sum, weight, n) => sum + weight * data[c * tokens + n]!, 0) / total);
}
