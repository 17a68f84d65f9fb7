// Prompts become clicks: a box one at its centre, a stroke or a mask several, spread over it.
import type { Box, Index, KnownPrompt, Prompt } from "../engine/engine";
import { sizeOf } from "../stage/geometry";
import { AXES, perAxis } from "./boxes";
import { distances } from "./distance";
import { rounded } from "./numbers";
import { refusal } from "./refusal";
import { type Region, regionOf, voxelsOf } from "./region";

export const MAX_CLICKS = 10; // of a stroke or a mask; the released model was trained with 10 in the tumour
const MAX_CANDIDATES = 20_000; // voxels considered when clicks are spread over a region
const MAX_STROKE_BOX = 2 ** 23; // voxels of the box that holds a stroke

/** A click on a voxel of the scan (i, j, k); fractions are allowed. */
export interface Click {
  index: Index;
  positive: boolean;
}

/** A prompt of the page, or the mask that an object has already. */
export type SessionPrompt = Prompt | { kind: "hint"; region: Region };

/** What prompts need to know about the scan. */
export interface OnScan {
  shape: Index;
  spacing_mm: Index;
}

/** The clicks that a prompt becomes. Throws EngineError for one that does not lie on the scan. */
export function clicksOf(prompt: SessionPrompt, scan: OnScan): Click[] {
  switch (prompt.kind) {
    case "point":
      requireOn(scan.shape, prompt.index, "click");
      return [{ index: prompt.index, positive: prompt.positive }];
    case "box":
      for (const corner of [prompt.low, prompt.high]) requireOn(scan.shape, corner, "box corner");
      return [{ index: perAxis((axis) => (prompt.low[axis] + prompt.high[axis]) / 2), positive: true }];
    case "scribble":
      return spread(stroke(prompt.voxels, scan.shape), scan.spacing_mm, false).map((index) => ({ index, positive: prompt.positive }));
    case "hint":
      return spread(prompt.region, scan.spacing_mm, true).map((index) => ({ index, positive: true }));
  }
}

/** A prompt as it is reported to the page. */
export function knownPrompt(prompt: SessionPrompt, shape: Index): KnownPrompt {
  switch (prompt.kind) {
    case "point":
      return { ...prompt, index: thousandths(prompt.index) };
    case "box": {
      const { low, high } = boxOf(prompt, shape);
      return { kind: "box", low, high: perAxis((axis) => high[axis] - 1) };
    }
    case "scribble":
      return { kind: "scribble", count: voxelsOf(stroke(prompt.voxels, shape)), positive: prompt.positive };
    case "hint":
      return { kind: "hint", count: voxelsOf(prompt.region) };
  }
}

/** The voxels that a box prompt holds; its corners may be any two opposite ones. */
export function boxOf({ low, high }: { low: Index; high: Index }, shape: Index): Box {
  const corners = [voxelOf(low, shape), voxelOf(high, shape)] as const;
  return {
    low: perAxis((axis) => Math.min(corners[0][axis], corners[1][axis])),
    high: perAxis((axis) => Math.max(corners[0][axis], corners[1][axis]) + 1),
  };
}

/** The voxel in which an index lies; on an outer face, or beyond it, the outermost. */
export function voxelOf(index: Index, shape: Index): Index {
  return perAxis((axis) => Math.min(Math.max(Math.floor(index[axis] + 0.5), 0), shape[axis] - 1));
}

/** Whether an index lies in a voxel of the scan, outer faces included. */
export function contains(shape: Index, index: Index): boolean {
  return AXES.every((axis) => index[axis] >= -0.5 && index[axis] <= shape[axis] - 0.5);
}

/** An index as it is reported, to a thousandth of a voxel. */
export function thousandths(index: Index): Index {
  return perAxis((axis) => rounded(index[axis], 3));
}

function requireOn(shape: Index, index: Index, what: string): void {
  if (index.length !== 3 || !index.every(Number.isFinite)) {
    throw refusal(`${what} (${index.join(", ")})`, "three numbers i, j, k", "give the voxel's index on each axis");
  }
  const at = thousandths(index);
  if (contains(shape, at)) return;
  throw refusal(
    `a ${what} outside the scan, at voxel (${at.map((v) => Number(v.toPrecision(4))).join(", ")})`,
    `a voxel from (0, 0, 0) to (${lastOf(shape)})`,
    "check the order i, j, k of the file's array, or use millimetres (RAS+)",
  );
}

// The voxels of a stroke, each once.
function stroke(voxels: Index[], shape: Index): Region {
  const outside = voxels.find((voxel) => AXES.some((axis) => voxel[axis] < 0 || voxel[axis] >= shape[axis]));
  if (outside) {
    const given = `a scribble with the voxel [${outside.join(", ")}]`;
    throw refusal(given, `voxels from (0, 0, 0) to (${lastOf(shape)})`, "send (i, j, k) of the scan's own array");
  }
  if (!voxels.length) throw refusal("a scribble without strokes", "voxels that were drawn over", "draw a stroke");
  const low = voxels.reduce((least, voxel) => perAxis((axis) => Math.min(least[axis], voxel[axis])));
  const size = voxels.reduce((most, voxel) => perAxis((axis) => Math.max(most[axis], voxel[axis] - low[axis] + 1)), [1, 1, 1] as Index);
  if (size[0] * size[1] * size[2] > MAX_STROKE_BOX) {
    const expected = `a box of ${MAX_STROKE_BOX.toLocaleString("en")} voxels that holds it`;
    throw refusal("a scribble all over the scan", expected, "send its parts as scribbles of their own");
  }
  const drawn = new Uint8Array(size[0] * size[1] * size[2]);
  for (const [i, j, k] of voxels) drawn[i - low[0] + size[0] * (j - low[1] + size[1] * (k - low[2]))] = 1;
  return regionOf(drawn, size, low);
}

function lastOf(shape: Index): string {
  return shape.map((n) => n - 1).join(", ");
}

/**
 * Up to `MAX_CLICKS` voxels of a region: the one deepest inside first, then each time the one farthest from those
 * chosen; of equals the first, k fastest. With `inner` only the inner half (by depth) of the region is used, so that
 * specks, and an outline drawn a little too wide, do not matter.
 */
export function spread(region: Region, spacing_mm: Index, inner: boolean): Index[] {
  const size = sizeOf(region.box);
  const depth = depths(region, spacing_mm);
  const deepest = depth.reduce((most, mm) => Math.max(most, mm), 0);
  if (deepest === 0) return [];
  const isCandidate = (at: number) => (inner ? depth[at]! >= deepest / 2 : region.inside[at] === 1);
  const every = Math.max(1, Math.floor(depth.reduce((sum, _, at) => sum + Number(isCandidate(at)), 0) / MAX_CANDIDATES));
  const looked: Index[] = [];
  let first: Index | null = null;
  let passed = 0;
  for (let i = 0; i < size[0]; i++) {
    for (let j = 0; j < size[1]; j++) {
      for (let k = 0; k < size[2]; k++) {
        const at = i + size[0] * (j + size[1] * k);
        if (!first && depth[at] === deepest) first = [i, j, k];
        if (isCandidate(at) && passed++ % every === 0) looked.push([i, j, k]);
      }
    }
  }
  const chosen = [first!];
  const nearest = new Float64Array(looked.length).fill(Infinity);
  for (;;) {
    const last = chosen[chosen.length - 1]!;
    let farthest = 0;
    looked.forEach((voxel, n) => {
      const [a, b, c] = perAxis((axis) => (voxel[axis] - last[axis]) * spacing_mm[axis]);
      nearest[n] = Math.min(nearest[n]!, Math.sqrt(a * a + b * b + c * c));
      if (nearest[n]! > nearest[farthest]!) farthest = n;
    });
    if (chosen.length === MAX_CLICKS || !(nearest[farthest]! > 0)) break;
    chosen.push(looked[farthest]!);
  }
  return chosen.map((voxel) => perAxis((axis) => voxel[axis] + region.box.low[axis]));
}

// For each voxel of the region's box, mm to the nearest voxel outside the region; all beyond the box is outside.
function depths({ box, inside }: Region, spacing_mm: Index): Float64Array {
  const size = sizeOf(box);
  const wide = perAxis((axis) => size[axis] + 2);
  const padded = new Uint8Array(wide[0] * wide[1] * wide[2]);
  const row = (j: number, k: number) => 1 + wide[0] * (j + 1 + wide[1] * (k + 1));
  for (let k = 0, at = 0; k < size[2]; k++) {
    for (let j = 0; j < size[1]; j++, at += size[0]) padded.set(inside.subarray(at, at + size[0]), row(j, k));
  }
  const found = distances(padded, wide, spacing_mm);
  const out = new Float64Array(inside.length);
  for (let k = 0, at = 0; k < size[2]; k++) {
    for (let j = 0; j < size[1]; j++, at += size[0]) out.set(found.subarray(row(j, k), row(j, k) + size[0]), at);
  }
  return out;
}
