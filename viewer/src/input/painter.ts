// The tools that edit a mask by hand: drags and keys become strokes of the brush or outlines of the lasso.
import type { Edit, Index } from "../engine/engine";
import { normalAxis, type Orientation, type Plane } from "../stage/geometry";
import type { Tool } from "./prompts";

const PAINT_TOOLS = ["brush", "eraser", "lasso"] as const;
export type PaintTool = (typeof PAINT_TOOLS)[number];
export type Drawn = Extract<Edit, { kind: "brush" | "lasso" }>;

const [MIN_RADIUS, MAX_RADIUS] = [0.5, 50]; // mm
const RADIUS_STEP = 1.2;
const DECIMALS = 100; // steps per voxel: indices keep two decimals

export function paints(tool: Tool): tool is PaintTool {
  return (PAINT_TOOLS as readonly Tool[]).includes(tool);
}

export class Painter {
  radius_mm = 5;
  /** Whether the brush is a ball that reaches into neighbouring slices, or a disc in one slice. */
  ball = false;
  /** Only voxels of these intensities are painted or erased, both ends included. */
  intensities: [number, number] | null = null;
  /** How many slices the lasso cuts through, centred on the one that it is drawn in. */
  slices = 1;
  draft: Drawn | null = null;
  private byKeys = false;

  /** Begin a stroke at an index, which may be fractional, of a plane. */
  begin(tool: PaintTool, orientation: Orientation, plane: Plane, at: Index, add: boolean, byKeys = false): void {
    const axis = normalAxis(orientation, plane);
    const { radius_mm, ball, intensities, slices } = this;
    const start = [rounded(at)];
    this.byKeys = byKeys;
    this.draft =
      tool === "lasso"
        ? { kind: "lasso", polygon: start, axis, add, slices: slices > 1 ? slices : null }
        : { kind: "brush", stroke: start, radius_mm, add, axis: ball ? null : axis, intensities };
  }

  move(at: Index): void {
    const points = this.draft && pointsOf(this.draft);
    const next = rounded(at);
    if (points && points.at(-1)!.some((v, axis) => v !== next[axis])) points.push(next);
  }

  /** The keyboard moved the cursor: a stroke that it began follows. */
  follow(cursor: Index): void {
    if (this.byKeys) this.move(cursor);
  }

  /** Finish the stroke; an outline that encloses nothing is dropped. */
  end(): Drawn | null {
    const { draft } = this;
    this.draft = null;
    return draft && (draft.kind === "brush" || draft.polygon.length > 2) ? draft : null;
  }

  /** Make the brush larger (1) or smaller (-1). */
  resize(way: 1 | -1): void {
    this.setRadius(Math.round(this.radius_mm * RADIUS_STEP ** way * 10) / 10);
  }

  setRadius(radius_mm: number): void {
    if (Number.isFinite(radius_mm)) this.radius_mm = Math.min(Math.max(radius_mm, MIN_RADIUS), MAX_RADIUS);
  }
}

export function pointsOf(drawn: Drawn): Index[] {
  return drawn.kind === "brush" ? drawn.stroke : drawn.polygon;
}

function rounded(index: Index): Index {
  return index.map((v) => Math.round(v * DECIMALS) / DECIMALS) as Index;
}
