// The tools for prompts: presses, drags and keys become clicks at once, and boxes or scribbles by way of a draft.
import type { Index, Prompt } from "../engine/engine";
import { line, normalAxis, same, type Orientation, type Plane } from "../stage/geometry";
import type { Draft } from "../stage/overlay";

export const TOOLS = ["look", "point", "box", "scribble", "brush", "eraser", "lasso", "ruler"] as const;
export type Tool = (typeof TOOLS)[number];

export class Prompter {
  tool: Tool = "point";
  /** Whether clicks and strokes add to the tumour; the right button or Shift does the opposite. */
  positive = true;
  draft: Draft | null = null;
  private dragged: Plane | null = null;

  constructor(
    private readonly orientation: () => Orientation & { spacing: Index },
    private readonly can: (what: "negative" | "box" | "scribble") => boolean,
  ) {}

  choose(tool: Tool): boolean {
    if ((tool === "box" || tool === "scribble") && !this.can(tool)) return false;
    this.tool = tool;
    this.draft = null;
    return true;
  }

  /** Whether a press is positive: it is negative only for models that take negative clicks. */
  sign(opposite: boolean): boolean {
    return this.positive !== opposite || !this.can("negative");
  }

  point(index: Index, opposite = false): Prompt {
    return { kind: "point", index, positive: this.sign(opposite) };
  }

  /** Begin a drag at a voxel of a plane. */
  begin(index: Index, plane: Plane, opposite = false): void {
    this.dragged = plane;
    if (this.tool === "scribble") this.draft = { kind: "scribble", voxels: [index], positive: this.sign(opposite) };
    if (this.tool !== "box") return;
    const before = this.draft?.kind === "box" && this.draft.placed ? this.draft : null;
    const normal = normalAxis(this.orientation(), plane);
    const keep = (corner: "from" | "to") =>
      index.map((v, axis) => (before && axis === normal ? before[corner][axis] : v)) as Index;
    // A box that was drawn in another plane keeps its extent along this plane's normal.
    this.draft = { kind: "box", from: keep("from"), to: keep("to"), placed: before !== null };
  }

  /** Continue the drag to a voxel of the same plane. */
  move(index: Index): void {
    if (this.draft?.kind === "scribble") {
      const last = this.draft.voxels.at(-1) as Index;
      if (!same(last, index)) this.draft.voxels.push(...line(last, index).slice(1));
    } else if (this.draft && this.dragged) {
      const normal = normalAxis(this.orientation(), this.dragged);
      this.draft.to = this.draft.to.map((v, axis) => (axis === normal ? v : index[axis])) as Index;
    }
  }

  /** End the drag: a stroke is ready to be sent, a box waits for `accept`. */
  end(): Prompt | null {
    if (this.draft?.kind === "scribble") return this.accept();
    if (this.draft && this.dragged && !this.draft.placed) this.deepen(this.draft, this.dragged);
    this.dragged = null;
    return null;
  }

  /** Enter was pressed at the cursor: a click, a corner of a box, or an end of a stroke that the cursor draws. */
  enter(index: Index, opposite = false): Prompt | null {
    if (this.tool === "point") return this.point(index, opposite);
    if (this.tool !== "box" && this.tool !== "scribble") return null;
    if (this.draft?.kind === "box" && this.draft.placed) return this.accept();
    if (this.draft?.kind === "box") {
      this.draft = { ...this.draft, to: index, placed: true };
      return null;
    }
    if (this.draft) return this.accept();
    const positive = this.sign(opposite);
    this.draft =
      this.tool === "box"
        ? { kind: "box", from: index, to: index, placed: false }
        : { kind: "scribble", voxels: [index], positive };
    return null;
  }

  /** The keyboard moved the cursor: an unfinished draft follows. */
  follow(index: Index): void {
    if (this.draft?.kind === "box" && !this.draft.placed) this.draft.to = index;
    else if (this.draft?.kind === "scribble") this.move(index);
  }

  /** Turn the draft into a prompt; there is no draft any more. */
  accept(): Prompt | null {
    const draft = this.draft;
    this.cancel();
    if (draft?.kind === "scribble") return { kind: "scribble", voxels: draft.voxels, positive: draft.positive };
    if (draft?.kind !== "box") return null;
    const low = draft.from.map((v, axis) => Math.min(v, draft.to[axis] as number)) as Index;
    const high = draft.from.map((v, axis) => Math.max(v, draft.to[axis] as number)) as Index;
    return { kind: "box", low, high };
  }

  cancel(): void {
    this.draft = null;
    this.dragged = null;
  }

  // Make a rectangle a box, centred on the plane and as deep in mm as the mean of the rectangle's sides.
  private deepen(draft: Draft & { kind: "box" }, plane: Plane): void {
    const { spacing, shape, ...orientation } = this.orientation();
    const normal = normalAxis({ shape, ...orientation }, plane);
    const side = (axis: number) => (Math.abs(draft.to[axis]! - draft.from[axis]!) + 1) * spacing[axis]!;
    const sides = [0, 1, 2].filter((axis) => axis !== normal).map(side);
    const half = Math.round((sides[0]! + sides[1]!) / 4 / spacing[normal]! - 0.5);
    const middle = draft.from[normal]!;
    draft.from[normal] = Math.max(middle - Math.max(half, 0), 0);
    draft.to[normal] = Math.min(middle + Math.max(half, 0), shape[normal]! - 1);
    draft.placed = true;
  }
}
