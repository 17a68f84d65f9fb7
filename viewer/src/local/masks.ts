// Masks from a file as objects of a scan, whatever the grid of the file.
import type { Index } from "../engine/engine";
import { sizeOf, toWorld } from "../stage/geometry";
import { AXES, countOf, perAxis } from "./boxes";
import { Grid } from "./grid";
import { INDEX_DECIMALS, rounded } from "./numbers";
import { refusal } from "./refusal";
import { type Region, regionOf } from "./region";
import type { Volume } from "./volume";

const SAME_MM = 1e-2; // two grids are the same when no corner differs by more
const MAX_LABELS = 255;

type Placed = Pick<Volume, "shape" | "affine">;

/** The scan's voxels of each label other than 0, labels ascending. Throws EngineError for none, or too many. */
export function objectsOn(mask: Volume, scan: Placed): Region[] {
  const labelAt = reader(mask, scan);
  const boxes = new Map<number, { low: Index; high: Index }>();
  eachVoxel(scan.shape, (voxel) => {
    const label = labelAt(voxel);
    if (label === 0) return;
    const box = boxes.get(label);
    if (!box) return void boxes.set(label, { low: [...voxel], high: perAxis((axis) => voxel[axis] + 1) });
    for (const axis of AXES) {
      box.low[axis] = Math.min(box.low[axis], voxel[axis]);
      box.high[axis] = Math.max(box.high[axis], voxel[axis] + 1);
    }
  });
  if (!boxes.size) throw refusal(`${mask.name} has no voxels on the scan`, "a mask of this scan", "check the file");
  if (boxes.size > MAX_LABELS) throw refusal(`${boxes.size} labels`, `at most ${MAX_LABELS} objects`, "give the label file, not the scan");
  return [...boxes].sort(([a], [b]) => a - b).map(([label, box]) => {
    const inside = new Uint8Array(countOf(box));
    const size = sizeOf(box);
    eachVoxel(size, (voxel, at) => (inside[at] = Number(labelAt(perAxis((axis) => voxel[axis] + box.low[axis])) === label)));
    return regionOf(inside, size, box.low);
  });
}

// The label at a voxel of the scan: that of the nearest voxel of the mask, whose border is extended outwards.
function reader(mask: Volume, scan: Placed): (voxel: Index) => number {
  const [ni, nj] = mask.shape;
  const value = ([i, j, k]: Index) => mask.data[i + ni * (j + nj * k)]! * mask.slope + mask.intercept;
  if (isSame(mask, scan)) return value;
  const map = new Grid(scan.shape, scan.affine).mapTo(new Grid(mask.shape, mask.affine));
  return (voxel) => value(toWorld(map, voxel).map((at, axis) => {
    const inside = Math.min(Math.max(rounded(at, INDEX_DECIMALS), 0), mask.shape[axis]! - 1);
    return Math.floor(inside + 0.5);
  }) as Index);
}

function isSame(a: Placed, b: Placed): boolean {
  if (!AXES.every((axis) => a.shape[axis] === b.shape[axis])) return false;
  const corners = Array.from({ length: 8 }, (_, n) => perAxis((axis) => ((n >> axis) & 1 ? a.shape[axis] - 0.5 : -0.5)));
  return corners.every((corner) => {
    const [one, other] = [toWorld(a.affine, corner), toWorld(b.affine, corner)];
    return AXES.every((axis) => Math.abs(one[axis] - other[axis]) <= SAME_MM);
  });
}

function eachVoxel([ni, nj, nk]: Index, visit: (voxel: Index, at: number) => void): void {
  for (let k = 0, at = 0; k < nk; k++) for (let j = 0; j < nj; j++) for (let i = 0; i < ni; i++, at++) visit([i, j, k], at);
}
