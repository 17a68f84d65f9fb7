// The spacing that suits a lesion: the one at which it is about a third of the crop across, found by looking.
import type { Index } from "../engine/engine";
import { AXES } from "./boxes";
import type { Card } from "./card";

const ACROSS = 22 / 64; // of the crop's side: usual diameter, as of a ball of equal volume, of what networks train on
const KEPT_ACROSS = [19 / 64, 36 / 64] as const; // within which a spacing is kept
const CORRECTED_ACROSS = [15 / 64, 36 / 64] as const; // after negative clicks: a mask that they shrank needs no closer look
const STEP = 1.3; // factor from one spacing of the ladder to the next, at most
const ROOM = 0.75; // of the crop's side in which all clicks should lie
export const MAX_CHANGES = 2; // of spacing after the first looks
const LARGER = 0.02; // how much less sure a mask e times as wide may be: a small, sure mask is often only a part

export class Scale {
  private constructor(
    readonly ladder: number[], // mm, from fine to coarse
    private readonly side: number, // of the crop, voxels
  ) {}

  /** The scale of a general model; null for a model with a single spacing. */
  static of({ preprocessing, config }: Card): Scale | null {
    if (!preprocessing.spacing_range_mm) return null;
    const [low, high] = preprocessing.spacing_range_mm;
    const steps = Math.ceil(Math.log(high / low) / Math.log(STEP) - 1e-9);
    const spacing = (n: number) => (n === 0 ? low : n === steps ? high : low * (high / low) ** (n / steps));
    return new Scale(Array.from({ length: steps + 1 }, (_, n) => Number(spacing(n).toPrecision(4))), config.crop);
  }

  /** The spacing so far (mm), else three to begin with; coarser if the clicks (mm on the model grid) need more room. */
  first(clicks: Index[], known: number | null): number[] {
    const last = this.ladder.length - 1;
    const starts = known === null ? [0, Math.floor(this.ladder.length / 2), last].map((n) => this.ladder[n]!) : [this.nearest(known)];
    return [...new Set(starts.map((start) => this.withRoom(start, clicks)))];
  }

  /** Score of a look by its mask's width in voxels and mean probability; the look with the highest counts. */
  static preference({ across, sure }: { across: number; sure: number }): number {
    return sure + LARGER * Math.log(across + 0.5);
  }

  /**
   * The spacing that suits a mask `across` voxels wide at `spacing`: often the same. With `across` 0 the click is not
   * in its mask, as when the lesion is too small for the voxels: half the spacing. `corrected`: by negative clicks.
   */
  next(spacing: number, across: number, clicks: Index[], corrected = false): number {
    const part = across / this.side;
    const [low, high] = corrected ? CORRECTED_ACROSS : KEPT_ACROSS;
    if (part >= low && part <= high) return spacing;
    return this.withRoom(this.nearest(across ? (spacing * part) / ACROSS : spacing / 2), clicks);
  }

  private nearest(wanted: number): number {
    const apart = (spacing: number) => Math.abs(Math.log(spacing / wanted));
    return this.ladder.reduce((best, spacing) => (apart(spacing) < apart(best) ? spacing : best));
  }

  // The finest spacing, from `least` up, whose crop holds all clicks well inside; the coarsest if none does.
  private withRoom(least: number, clicks: Index[]): number {
    const along = (axis: 0 | 1 | 2) => clicks.map((click) => click[axis]);
    const span = Math.max(...AXES.map((axis) => Math.max(...along(axis)) - Math.min(...along(axis))));
    return this.ladder.find((spacing) => spacing >= least && spacing * this.side * ROOM >= span) ?? this.ladder.at(-1)!;
  }
}
