// Edits of an object by hand: brush and eraser, lasso, holes, smoothing, components, interpolation between slices.
// The same, voxel by voxel, as in voxsam.interactive.editing. Points are voxel indices, not rounded; lengths are mm in
// the patient, measured through the affine, so that a ball is a ball on anisotropic, oblique and sheared grids alike.
import type { Box, Edit, Index } from "../engine/engine";
import { isEmpty, sizeOf, toWorld } from "../stage/geometry";
import { AXES, countOf, eachRow, intersection, perAxis } from "./boxes";
import { label } from "./components";
import { distances } from "./distance";
import { Grid } from "./grid";
import { contains, voxelOf } from "./prompts";
import { refusal } from "./refusal";
import { componentsOf, EMPTY, holds, minus, type Region, regionOf, union, within } from "./region";
import type { Volume } from "./volume";

const ROUNDING = 1e-9; // of a distance: a centre exactly on the brush's edge counts
const SMOOTHING_REACH = 3; // standard deviations at which the Gaussian is cut off
const MAX_BRUSH_VOXELS = 2 ** 26; // that the strokes of one step may test: about ten seconds
const MAX_BRUSH_BOX = 2 ** 28; // voxels of the box that holds one stroke

type Kind<K extends Edit["kind"]> = Extract<Edit, { kind: K }>;

/** The scan that is drawn on. */
export type Drawable = Pick<Volume, "data" | "shape" | "affine" | "slope" | "intercept">;

/** The object after the edits of one step. Throws EngineError for what cannot be drawn. */
export function edited(region: Region, edits: Edit[], scan: Drawable): Region {
  checkWork(edits, scan);
  return edits.reduce((before, edit) => drawn(before, edit, scan), region);
}

function drawn(region: Region, edit: Edit, scan: Drawable): Region {
  switch (edit.kind) {
    case "brush":
      return edit.add ? union(region, brush(edit, scan)) : minus(region, brush(edit, scan));
    case "lasso":
      return edit.add ? union(region, lasso(edit, scan)) : minus(region, lasso(edit, scan));
    case "fill":
      return fillHoles(region, edit.axis);
    case "smooth":
      return smooth(region, edit.sd_mm, scan);
    case "component":
      return edit.keep ? component(region, edit.index, scan) : minus(region, component(region, edit.index, scan));
    case "interpolate":
      return interpolate(region, edit.axis, scan);
  }
}

// Brush and lasso: the voxels drawn

/** The voxels whose centre is within the radius of the stroke, and those of its points; with an axis, in one slice. */
export function brush({ stroke, radius_mm, axis, intensities }: Kind<"brush">, scan: Drawable): Region {
  if (!(Number.isFinite(radius_mm) && radius_mm > 0)) {
    throw refusal(`a brush with a radius of ${radius_mm} mm`, "more than 0 mm", "choose a larger one");
  }
  const points = inSlice(finite(stroke), axis);
  const reach = reachOf(radius_mm, axis, scan);
  const box = around(points, reach, scan.shape);
  const size = sizeOf(box);
  const painted = new Uint8Array(countOf(box));
  const at = ([i, j, k]: Index) => i - box.low[0] + size[0] * (j - box.low[1] + size[1] * (k - box.low[2]));
  points.forEach((end, n) => {
    if (n === 0 && points.length > 1) return;
    const start = points[Math.max(n - 1, 0)]!;
    const near = around([start, end], reach, scan.shape);
    eachNear(near, scan.affine, start, end, radius_mm * (1 + ROUNDING), (voxel) => (painted[at(voxel)] = 1));
  });
  for (const point of points.filter((one) => contains(scan.shape, one))) {
    const own = voxelOf(point, scan.shape);
    if (holdsVoxel(box, own)) painted[at(own)] = 1;
  }
  if (intensities) {
    const { data, slope, intercept } = scan;
    const [low, high] = intensities;
    eachRow(box, box, { low: [0, 0, 0], high: scan.shape }, (to, from, length) => {
      for (let n = 0; n < length; n++) {
        const value = data[from + n]! * slope + intercept;
        if (!(value >= low && value <= high)) painted[to + n] = 0;
      }
    });
  }
  return regionOf(painted, size, box.low);
}

// Visit each voxel of a box whose centre is within `radius_mm` of the straight line between two indices.
function eachNear(box: Box, affine: number[][], start: Index, end: Index, radius_mm: number, visit: (voxel: Index) => void): void {
  const from = toWorld(affine, start);
  const to = toWorld(affine, end);
  const way = perAxis((row) => to[row] - from[row]);
  const length = way[0] * way[0] + way[1] * way[1] + way[2] * way[2];
  for (let k = box.low[2]; k < box.high[2]; k++) {
    for (let j = box.low[1]; j < box.high[1]; j++) {
      for (let i = box.low[0]; i < box.high[0]; i++) {
        const [x, y, z] = toWorld(affine, [i, j, k]);
        const [a, b, c] = [x - from[0], y - from[1], z - from[2]];
        const along = length ? Math.min(Math.max((a * way[0] + b * way[1] + c * way[2]) / length, 0), 1) : 0;
        const [da, db, dc] = [a - along * way[0], b - along * way[1], c - along * way[2]];
        if (Math.sqrt(da * da + db * db + dc * dc) <= radius_mm) visit([i, j, k]);
      }
    }
  }
}

/** The voxels whose centre lies inside the outline (even-odd rule), in `slices` slices about the one it lies in. */
export function lasso({ polygon, axis, slices }: Kind<"lasso">, { shape }: Drawable): Region {
  if (polygon.length < 3) throw refusal(`a lasso of ${polygon.length} points`, "three or more", "draw round the region");
  const points = inSlice(finite(polygon), axis);
  const low = perAxis((a) => Math.ceil(Math.min(...points.map((point) => point[a]))));
  const high = perAxis((a) => Math.floor(Math.max(...points.map((point) => point[a]))));
  const count = slices ?? 1;
  low[axis] = low[axis]! - Math.floor((count - 1) / 2);
  high[axis] = high[axis]! + Math.floor(count / 2);
  const box = boxIn(shape, low, high);
  const size = sizeOf(box);
  const [u, v] = AXES.filter((a) => a !== axis) as [0 | 1 | 2, 0 | 1 | 2];
  const plane = new Uint8Array(size[u] * size[v]);
  // A ray from each centre along u crosses the outline an odd number of times if the centre lies inside.
  points.forEach((first, n) => {
    const next = points[(n + 1) % points.length]!;
    const [u0, v0, u1, v1] = [first[u], first[v], next[u], next[v]];
    if (v0 === v1) return;
    for (let column = box.low[v]; column < box.high[v]; column++) {
      if (column < Math.min(v0, v1) || column >= Math.max(v0, v1)) continue;
      const crossed = u0 + ((column - v0) * (u1 - u0)) / (v1 - v0);
      for (let row = box.low[u]; row < box.high[u] && row < crossed; row++) {
        const at = row - box.low[u] + size[u] * (column - box.low[v]);
        plane[at] = plane[at]! ^ 1;
      }
    }
  });
  const inside = new Uint8Array(countOf(box));
  eachVoxel(size, (voxel, at) => (inside[at] = plane[voxel[u] + size[u] * voxel[v]]!));
  return regionOf(inside, size, box.low);
}

// Edits of the existing object

/** The object and the background that it encloses: in 3D or, with an axis, in each slice perpendicular to it. */
function fillHoles(region: Region, axis: number | null): Region {
  const size = sizeOf(region.box);
  const axes = AXES.filter((a) => a !== axis);
  const strides = [1, size[0], size[0] * size[1]];
  const filled = new Uint8Array(region.inside.length).fill(1);
  const waiting: number[] = [];
  const reach = (voxel: number) => {
    if (region.inside[voxel] || !filled[voxel]) return;
    filled[voxel] = 0; // background connected to the border of the box
    waiting.push(voxel);
  };
  eachVoxel(size, (voxel, at) => {
    if (axes.some((a) => voxel[a] === 0 || voxel[a] === size[a] - 1)) reach(at);
  });
  for (let at = waiting.pop(); at !== undefined; at = waiting.pop()) {
    for (const a of axes) {
      const along = Math.floor(at / strides[a]!) % size[a];
      if (along > 0) reach(at - strides[a]!);
      if (along < size[a] - 1) reach(at + strides[a]!);
    }
  }
  return regionOf(filled, size, region.box.low);
}

/** The object smoothed by a Gaussian, with as many voxels as before. */
export function smooth(region: Region, sd_mm: number, { shape, affine }: Drawable): Region {
  if (!(Number.isFinite(sd_mm) && sd_mm > 0)) throw refusal(`smoothing by ${sd_mm} mm`, "more than 0 mm", "choose a larger value");
  if (isEmpty(region.box)) return EMPTY;
  const { spacing } = new Grid(shape, affine);
  const sd = perAxis((axis) => sd_mm / spacing[axis]);
  const { low, high } = region.box;
  const margin = perAxis((axis) => Math.ceil(SMOOTHING_REACH * sd[axis]));
  const box = boxIn(shape, perAxis((axis) => low[axis] - margin[axis]), perAxis((axis) => high[axis] - 1 + margin[axis]));
  const size = sizeOf(box);
  const part = within(region, box);
  const blurred = Float32Array.from(part);
  for (const axis of AXES) blur(blurred, size, axis, sd[axis]);
  const count = part.reduce((sum, one) => sum + one, 0);
  const threshold = blurred.slice().sort()[blurred.length - count]!;
  const after = Uint8Array.from(blurred, (value) => Number(value > threshold));
  // Of the voxels exactly at the threshold, those that belonged to the object come first, k fastest.
  let missing = count - after.reduce((sum, one) => sum + one, 0);
  for (const belonged of [1, 0]) {
    for (let i = 0; i < size[0]; i++) {
      for (let j = 0; j < size[1]; j++) {
        for (let k = 0; k < size[2] && missing > 0; k++) {
          const at = i + size[0] * (j + size[1] * k);
          if (part[at] !== belonged || blurred[at] !== threshold) continue;
          after[at] = 1;
          missing--;
        }
      }
    }
  }
  return regionOf(after, size, box.low);
}

// A Gaussian along one axis, in place; beyond the ends of a line its last values are repeated.
function blur(values: Float32Array, size: Index, axis: 0 | 1 | 2, sd: number): void {
  const radius = Math.floor(SMOOTHING_REACH * sd + 0.5);
  const weights = Array.from({ length: radius + 1 }, (_, n) => Math.exp((-0.5 / (sd * sd)) * (n * n)));
  const total = weights.reduce((sum, weight, n) => sum + (n ? 2 * weight : weight), 0);
  const n = size[axis];
  const stride = [1, size[0], size[0] * size[1]][axis]!;
  const line = new Float64Array(n + 2 * radius);
  for (let first = 0; first < values.length; first++) {
    if (Math.floor(first / stride) % n) continue; // not the first voxel of a line
    for (let at = 0; at < line.length; at++) line[at] = values[first + Math.min(Math.max(at - radius, 0), n - 1) * stride]!;
    for (let at = 0; at < n; at++) {
      const middle = at + radius;
      let sum = line[middle]! * (weights[0]! / total);
      for (let away = radius; away > 0; away--) sum += (line[middle - away]! + line[middle + away]!) * (weights[away]! / total);
      values[first + at * stride] = sum;
    }
  }
}

/** The component (voxels joined through faces) at a voxel. Throws EngineError if the voxel is not in the object. */
export function component(region: Region, index: Index, { shape }: Drawable): Region {
  const voxel = voxelOf(index, shape);
  if (contains(shape, index) && holds(region, voxel)) return componentsOf(region, [voxel]);
  throw refusal(`voxel ${voxel.join(", ")}, which is not in the mask`, "a voxel of the object", "click in the part that is meant");
}

/**
 * The object with the empty slices between drawn ones, perpendicular to an axis, filled: shape-based interpolation
 * (Raya and Udupa 1990) of the signed distances to the outlines, in mm. Where both outlines are in one piece, their
 * centroids are aligned first.
 */
export function interpolate(region: Region, axis: number, { shape, affine }: Drawable): Region {
  const size = sizeOf(region.box);
  const [u, v] = AXES.filter((a) => a !== axis) as [0 | 1 | 2, 0 | 1 | 2];
  const { spacing } = new Grid(shape, affine);
  const planes = Array.from({ length: size[axis] ?? 0 }, () => new Plane(size[u], size[v], [spacing[u], spacing[v]]));
  eachVoxel(size, (voxel, at) => (planes[voxel[axis]!]!.inside[voxel[u] + size[u] * voxel[v]] = region.inside[at]!));
  const drawnSlices = [...planes.keys()].filter((n) => planes[n]!.inside.includes(1));
  for (const [n, last] of drawnSlices.entries()) {
    const first = drawnSlices[n - 1];
    if (first === undefined || last - first < 2) continue;
    between(planes[first]!, planes[last]!, last - first - 1).forEach((inside, m) => planes[first + 1 + m]!.inside.set(inside));
  }
  const after = new Uint8Array(region.inside.length);
  eachVoxel(size, (voxel, at) => (after[at] = planes[voxel[axis]!]!.inside[voxel[u] + size[u] * voxel[v]]!));
  return regionOf(after, size, region.box.low);
}

// One slice of an object, its first axis fastest.
class Plane {
  readonly inside: Uint8Array;

  constructor(
    readonly width: number,
    readonly height: number,
    readonly spacing_mm: readonly [number, number],
  ) {
    this.inside = new Uint8Array(width * height);
  }

  get inOnePiece(): boolean {
    return label(this.inside, [this.width, this.height, 1]).count === 1;
  }

  get centroid(): [number, number] {
    let [count, x, y] = [0, 0, 0];
    this.inside.forEach((one, at) => {
      count += one;
      x += one * (at % this.width);
      y += one * Math.floor(at / this.width);
    });
    return [x / count, y / count];
  }

  /** The slice with `margin` more pixels on each side. */
  padded(margin: number): Plane {
    const out = new Plane(this.width + 2 * margin, this.height + 2 * margin, this.spacing_mm);
    for (let row = 0; row < this.height; row++) {
      out.inside.set(this.inside.subarray(row * this.width, (row + 1) * this.width), margin + (row + margin) * out.width);
    }
    return out;
  }

  /** Millimetres from each pixel's centre to the nearest one on the other side of the outline; negative outside. */
  signedDistance(): Float64Array {
    const [x, y] = this.spacing_mm;
    const [inner, outer] = [this.inside, this.inside.map((one) => 1 - one)].map((side) => distances(side, [this.width, this.height, 1], [x, y, 1]));
    return inner!.map((mm, at) => mm - outer![at]!);
  }
}

// `count` slices interpolated evenly between two.
function between(first: Plane, last: Plane, count: number): Uint8Array[] {
  const centroids = first.inOnePiece && last.inOnePiece ? [first.centroid, last.centroid] : null;
  const way = centroids ? [centroids[1]![0] - centroids[0]![0], centroids[1]![1] - centroids[0]![1]] as const : [0, 0] as const;
  const margin = Math.ceil(Math.max(...way.map(Math.abs))) + 1; // outlines end within it, wherever they are moved
  const { width, height } = first.padded(margin);
  const ends = [first, last].map((plane) => plane.padded(margin).signedDistance()) as [Float64Array, Float64Array];
  return Array.from({ length: count }, (_, n) => {
    const t = (n + 1) / (count + 1);
    const from = moved(ends[0], width, height, [t * way[0], t * way[1]]);
    const to = moved(ends[1], width, height, [(t - 1) * way[0], (t - 1) * way[1]]);
    const out = new Uint8Array(first.inside.length);
    for (let at = 0; at < out.length; at++) {
      const there = margin + (at % first.width) + (margin + Math.floor(at / first.width)) * width;
      out[at] = Number((1 - t) * from[there]! + t * to[there]! > 0);
    }
    return out;
  });
}

// The values moved by fractions of pixels, linearly interpolated; beyond the sides the outermost ones are repeated.
function moved(values: Float64Array, width: number, height: number, [x, y]: [number, number]): Float64Array {
  if (!x && !y) return values;
  const columns = Array.from({ length: width }, (_, n) => fromWhere(n, x, width));
  const rows = Array.from({ length: height }, (_, n) => fromWhere(n, y, height));
  const out = new Float64Array(values.length);
  for (let row = 0, at = 0; row < height; row++) {
    const [above, below, upper, lower] = rows[row]!;
    for (let column = 0; column < width; column++, at++) {
      const [left, right, nearer, further] = columns[column]!;
      const value = (i: number, j: number) => values[i + width * j]!;
      out[at] = value(left, above) * nearer * upper + value(left, below) * nearer * lower + value(right, above) * further * upper + value(right, below) * further * lower;
    }
  }
  return out;
}

// The two pixels that a moved one is interpolated from, and their weights.
function fromWhere(at: number, shift: number, length: number): [number, number, number, number] {
  const place = Math.min(Math.max(at - shift, 0), length - 1);
  const low = Math.floor(place);
  const nearer = 1 - (place - low);
  return [low, Math.min(low + 1, length - 1), nearer, 1 - nearer];
}

// Points, slices, boxes

function finite(points: Index[]): Index[] {
  if (points.length && points.every((point) => point.length === 3 && point.every(Number.isFinite))) return points;
  throw refusal(`${points.length} points`, "one or more finite voxel indices (i, j, k)", "check what is sent");
}

// The points, moved onto the one slice, perpendicular to an axis, that they lie in.
function inSlice(points: Index[], axis: number | null): Index[] {
  if (axis === null) return points;
  const slices = points.map((point) => Math.floor(point[axis]! + 0.5));
  const [first, last] = [Math.min(...slices), Math.max(...slices)];
  if (first === last) return points.map((point) => perAxis((a) => (a === axis ? first : point[a])));
  throw refusal(`a stroke through slices ${first} to ${last} of axis ${axis}`, "points in one slice", "draw in one plane, or use the 3D brush");
}

// How many indices a ball, or a disc perpendicular to an axis, reaches along each axis.
function reachOf(radius_mm: number, axis: number | null, { shape, affine }: Drawable): Index {
  const reach = new Grid(shape, affine).reachOf(radius_mm);
  return perAxis((a) => (a === axis ? 0 : reach[a]));
}

// The box of the voxels that points lie in, and of those whose centre is at most `reach` indices away.
function around(points: Index[], reach: Index, shape: Index): Box {
  const low = perAxis((axis) => Math.floor(Math.min(...points.map((point) => point[axis])) - reach[axis] + 0.5));
  const high = perAxis((axis) => Math.ceil(Math.max(...points.map((point) => point[axis])) + reach[axis] - 0.5));
  return boxIn(shape, low, high);
}

// The box from voxel `low` to voxel `high`, both included, clipped to the scan.
function boxIn(shape: Index, low: Index, high: Index): Box {
  return intersection({ low: [0, 0, 0], high: shape }, { low, high: perAxis((axis) => high[axis] + 1) });
}

function holdsVoxel(box: Box, voxel: Index): boolean {
  return AXES.every((axis) => voxel[axis] >= box.low[axis] && voxel[axis] < box.high[axis]);
}

function eachVoxel([ni, nj, nk]: Index, visit: (voxel: Index, at: number) => void): void {
  for (let k = 0, at = 0; k < nk; k++) for (let j = 0; j < nj; j++) for (let i = 0; i < ni; i++, at++) visit([i, j, k], at);
}

function checkWork(edits: Edit[], scan: Drawable): void {
  const voxels = edits.reduce((sum, edit) => sum + (edit.kind === "brush" ? brushed(edit, scan) : 0), 0);
  if (voxels > MAX_BRUSH_VOXELS) {
    const expected = `at most ${MAX_BRUSH_VOXELS.toLocaleString("en")} in one step`;
    throw refusal(`strokes over ${voxels.toLocaleString("en")} voxels`, expected, "choose a smaller brush, or send less");
  }
}

// How many voxels a stroke of the brush tests.
function brushed({ stroke, radius_mm, axis }: Kind<"brush">, scan: Drawable): number {
  const reach = reachOf(radius_mm, axis, scan);
  const looked = (from: Index, to: Index) => perAxis((a) => Math.min(Math.abs(to[a] - from[a]) + 2 * reach[a] + 1, scan.shape[a])).reduce((product, n) => product * n, 1);
  const ends = [Math.min, Math.max].map((of) => perAxis((a) => of(...stroke.map((point) => point[a])))) as [Index, Index];
  if (looked(...ends) > MAX_BRUSH_BOX) throw refusal("a stroke all over the scan", "one that a smaller box holds", "send its parts as strokes");
  return Math.round(stroke.reduce((sum, point, n) => sum + looked(stroke[Math.max(n - 1, 0)]!, point), 0));
}
