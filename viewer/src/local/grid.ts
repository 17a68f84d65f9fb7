// Where the voxels of an array lie: Grid (a shape and an affine) and Window (a box of a model grid).
// In the browser every array has its first axis fastest. A model's axes (d, h, w) are therefore named in reverse: the
// model grid of a model for "SAR" lies along "RAS", its index is (w, h, d), and its arrays are laid out as the model's.
import type { Box, Index } from "../engine/engine";
import { toWorld } from "../stage/geometry";
import { AXES, perAxis } from "./boxes";
import { determinant } from "./files/checks";
import { INDEX_DECIMALS, rounded } from "./numbers";

const MAP_DECIMALS = 12; // of a matrix between grids
const WHOLE_VOXEL_TOLERANCE = 1e-3; // a length within a thousandth of a whole voxel counts as whole
const PAIRS = ["RL", "AP", "SI"];

export type Affine = number[][]; // 4 x 4

export class Grid {
  private inverse: Affine | null = null;
  /** The same for equal grids. */
  readonly key: string;

  constructor(
    readonly shape: Index,
    readonly affine: Affine,
  ) {
    this.key = `${shape.join()};${affine.map((row) => row.join()).join()}`;
  }

  /** mm from voxel to voxel along each axis. */
  get spacing(): Index {
    return perAxis((axis) => {
      const [x, y, z] = [this.entry(0, axis), this.entry(1, axis), this.entry(2, axis)];
      return Math.sqrt(x * x + y * y + z * z); // not by `**`, whose last bits differ from NumPy's
    });
  }

  /** The array's axis that is nearest to superior-inferior. */
  get axialAxis(): 0 | 1 | 2 {
    return [...this.axes].findIndex((letter) => PAIRS[2]!.includes(letter)) as 0 | 1 | 2;
  }

  /** The volume of a voxel in mL. */
  get voxelVolume(): number {
    return Math.abs(determinant(AXES.map((axis) => AXES.map((row) => this.entry(row, axis))))) / 1000;
  }

  /** How many indices a ball reaches along each axis: its radius times the length of a row of the inverse affine. */
  reachOf(radius_mm: number): Index {
    return perAxis((axis) => radius_mm * Math.hypot(...this.toIndices[axis]!.slice(0, 3)));
  }

  toWorld(index: Index): Index {
    return toWorld(this.affine, index);
  }

  toIndex(world: Index): Index {
    return toWorld(this.toIndices, world).map((v) => rounded(v, INDEX_DECIMALS)) as Index;
  }

  /** The matrix from an index of this grid to that of `source` at the same place. */
  mapTo(source: Grid): Affine {
    const from = source.toIndices;
    const entry = (row: number, column: number) =>
      AXES.reduce((sum, n) => sum + from[row]![n]! * this.entry(n, column), column === 3 ? from[row]![3]! : 0);
    return AXES.map((row) => [0, 1, 2, 3].map((column) => rounded(entry(row, column), MAP_DECIMALS)));
  }

  /** The grid whose first voxel is at this one's index `start`; it may extend beyond it. */
  crop(start: Index, shape: Index): Grid {
    return new Grid(shape, withOrigin(this.affine, this.toWorld(start)));
  }

  /** The grid over the same box with another spacing: the first voxels share their outer corner. */
  respace(spacing: Index): Grid {
    const own = this.spacing;
    const ratio = perAxis((axis) => spacing[axis] / own[axis]);
    const shape = perAxis((axis) => Math.max(1, Math.floor(this.shape[axis] / ratio[axis] + WHOLE_VOXEL_TOLERANCE)));
    const steps = this.affine.map((row) => row.map((v, column) => (column < 3 ? v * ratio[column as 0]! : v)));
    return new Grid(shape, withOrigin(steps, this.toWorld(perAxis((axis) => ratio[axis] / 2 - 0.5))));
  }

  /** The same voxels, permuted and flipped so that the indices grow in the directions of `axes`, e.g. "RAS". */
  reorient(axes: string): Grid {
    const have = this.axes;
    const from = [...axes].map((letter) => [...have].findIndex((own) => PAIRS.some((pair) => pair.includes(letter) && pair.includes(own))));
    const flips = from.map((old, axis) => have[old] !== axes[axis]);
    const first: Index = [0, 0, 0];
    from.forEach((old, axis) => (first[old as 0] = flips[axis] ? this.shape[old as 0]! - 1 : 0));
    const steps = this.affine.map((row) => [...from.map((old, axis) => (flips[axis] ? -1 : 1) * row[old]!), row[3]!]);
    return new Grid(from.map((old) => this.shape[old as 0]!) as Index, withOrigin(steps, this.toWorld(first)));
  }

  /** The same voxels with the first index, the last one of the model's axes, in the opposite direction. */
  mirrored(): Grid {
    const steps = this.affine.map((row) => [-row[0]!, ...row.slice(1)]);
    return new Grid(this.shape, withOrigin(steps, this.toWorld([this.shape[0] - 1, 0, 0])));
  }

  /**
   * Three letters of R/L, A/P, S/I: the direction in which each index grows. For an oblique grid it is the nearest one
   * to its rotation, axis after axis, as in nibabel (the page turns its pictures by another rule).
   */
  get axes(): string {
    const turn = rotationOf(this.affine, this.spacing);
    const taken = new Set<number>();
    return AXES.map((axis) => {
      const free = AXES.filter((row) => !taken.has(row));
      const row = free.reduce<0 | 1 | 2>((best, next) => (Math.abs(turn[next]![axis]!) > Math.abs(turn[best]![axis]!) ? next : best), free[0]!);
      taken.add(row);
      return PAIRS[row]![turn[row]![axis]! < 0 ? 1 : 0];
    }).join("");
  }

  // From mm to indices.
  private get toIndices(): Affine {
    return (this.inverse ??= inverted(this.affine));
  }

  private entry(row: number, column: number): number {
    return (this.affine[row] as number[])[column] as number;
  }
}

function withOrigin(affine: Affine, origin: Index): Affine {
  return affine.map((row, n) => (n < 3 ? [row[0]! + 0, row[1]! + 0, row[2]! + 0, origin[n as 0]! + 0] : [...row]));
}

/** The inverse of an affine, by cofactors. */
function inverted(affine: Affine): Affine {
  const m = (row: number, column: number) => affine[row % 3]![column % 3]!;
  const cofactor = (row: number, column: number) => m(row + 1, column + 1) * m(row + 2, column + 2) - m(row + 1, column + 2) * m(row + 2, column + 1);
  const determinant = AXES.reduce<number>((sum, column) => sum + m(0, column) * cofactor(0, column), 0);
  const linear = AXES.map((row) => AXES.map((column) => cofactor(column, row) / determinant));
  return [...linear.map((row) => [...row, -row.reduce((sum, v, n) => sum + v * affine[n]![3]!, 0)]), [0, 0, 0, 1]];
}

/** The rotation (or mirrored rotation) nearest to the axes of an affine, by Newton's iteration of the polar decomposition. */
function rotationOf(affine: Affine, spacing: Index): number[][] {
  let turn: Affine = affine.map((row) => row.map((v, column) => (column < 3 ? v / spacing[column as 0]! : 0)));
  for (let change = 1, n = 0; change > 1e-14 && n < 50; n++) {
    const back = inverted(turn);
    const next = turn.map((row, r) => row.map((v, c) => (r < 3 && c < 3 ? (v + back[c]![r]!) / 2 : v)));
    change = Math.max(...AXES.flatMap((r) => AXES.map((c) => Math.abs(next[r]![c]! - turn[r]![c]!))));
    turn = next;
  }
  return turn;
}

/** A box of a model grid: its first voxel, which may lie outside, and its size. */
export class Window {
  /** The same for equal windows. */
  readonly key: string;

  constructor(
    readonly modelGrid: Grid,
    readonly start: Index,
    readonly size: Index,
  ) {
    this.key = `${start.join()};${size.join()};${modelGrid.key}`;
  }

  /** The window whose middle voxel (`size` / 2) is the one nearest to an index of the model grid. */
  static around(modelGrid: Grid, centre: Index, size: Index): Window {
    return new Window(modelGrid, perAxis((axis) => Math.floor(centre[axis] + 0.5) - Math.floor(size[axis] / 2)), size);
  }

  static ofBox(modelGrid: Grid, box: Box): Window {
    return new Window(modelGrid, box.low, perAxis((axis) => box.high[axis] - box.low[axis]));
  }

  get box(): Box {
    return { low: this.start, high: perAxis((axis) => this.start[axis] + this.size[axis]) };
  }

  /** Its own grid: the voxels of the crop. */
  get grid(): Grid {
    return this.modelGrid.crop(this.start, this.size);
  }

  /** The same box on the mirrored model grid: its crop is this one's mirror image. */
  mirrored(): Window {
    const [w, h, d] = this.start;
    return new Window(this.modelGrid.mirrored(), [this.modelGrid.shape[0] - w - this.size[0], h, d], this.size);
  }

  /** The part of the crop, in its own voxels, that lies in the model grid; the rest is padding. */
  inside(): Box {
    return {
      low: perAxis((axis) => Math.min(Math.max(0, -this.start[axis]), this.size[axis])),
      high: perAxis((axis) => Math.max(0, Math.min(this.size[axis], this.modelGrid.shape[axis] - this.start[axis]))),
    };
  }
}
