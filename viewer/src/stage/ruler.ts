// Lines measured on the planes; only the page knows them, and they are not saved.
import type { Index } from "../engine/engine";
import { normalAxis, toWorld, type Orientation, type Plane } from "./geometry";

export interface Line {
  from: Index; // not rounded
  to: Index;
  axis: number; // of the array, perpendicular to the plane that it was drawn in
}

/** The length in mm of a line between two indices; `affine` as in the file: oblique grids are measured right, too. */
export function lengthMm(affine: number[][], { from, to }: Pick<Line, "from" | "to">): number {
  const [a, b] = [toWorld(affine, from), toWorld(affine, to)];
  return Math.hypot(b[0] - a[0], b[1] - a[1], b[2] - a[2]);
}

export class Ruler {
  lines: Line[] = [];
  /** The line that is being drawn. */
  draft: Line | null = null;

  private byKeys = false;

  /** Begin a line; one drawn by keys follows the cursor. */
  begin(orientation: Orientation, plane: Plane, at: Index, byKeys = false): void {
    this.draft = { from: at, to: at, axis: normalAxis(orientation, plane) };
    this.byKeys = byKeys;
  }

  follow(cursor: Index): void {
    if (this.byKeys) this.move(cursor);
  }

  move(at: Index): void {
    if (this.draft) this.draft.to = at;
  }

  /** Finish the draft; a line without length is dropped. */
  end(): Line | null {
    const line = this.draft;
    this.draft = null;
    if (!line || line.from.every((v, axis) => v === line.to[axis])) return null;
    this.lines.push(line);
    return line;
  }

  /** Drop the draft, or else the last line. */
  remove(): void {
    if (this.draft) this.draft = null;
    else this.lines.pop();
  }

  clear(): void {
    this.lines = [];
    this.draft = null;
  }
}
