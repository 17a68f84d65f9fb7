// What the user can do: the panel and the keys ask for it, the page does it.
import type { Edit, FileKind, Index, Info, ObjectFacts, State } from "../engine/engine";
import type { Painter } from "../input/painter";
import type { Prompter, Tool } from "../input/prompts";
import type { Plane } from "../stage/geometry";
import type { Viewer } from "../stage/viewer";
import type { View } from "./view";

export interface Actions {
  readonly view: View;
  readonly viewer: Viewer;
  readonly prompter: Prompter;
  readonly painter: Painter;
  readonly plane: Plane; // in which the arrow keys move
  readonly info: Info | null;
  readonly state: State | null;

  tool(tool: Tool): void;
  sign(positive: boolean): void;
  /** Enter was pressed at the cursor; `opposite`: with Shift. */
  enter(opposite: boolean): void;
  accept(): void;
  cancel(): void;
  removeLine(): void;
  /** The settings of the brush or lasso have changed. */
  resized(): void;
  /** Whether marks and strokes wait for `run`. */
  collect(wanted: boolean): void;
  run(): void;
  drop(): void;
  edit(edit: Edit): void;
  smooth(): void;
  /** Fill the empty slices between those drawn in the current plane. */
  interpolate(): void;
  /** Keep only the component at the cursor, or remove it. */
  part(keep: boolean): void;
  loadMask(file: File): void;
  rules(rules: Partial<Pick<State, "overlap" | "keep_clicked">>): void;
  describe(number: number, facts: Partial<ObjectFacts>): void;
  deleteObject(number: number): void;
  deletePrompt(number: number, index: number): void;
  goTo(index: Index): void;
  resume(session: string): void;
  select(number: number): void;
  newObject(): void;
  undo(): void;
  redo(): void;
  reset(): void;
  /** The keyboard moved the cursor. */
  cursorMoved(): void;
  /** Redraw drafts and the cursor; the keys now move in `plane`. */
  changed(plane?: Plane): void;
  save(kind: FileKind): void;
  screenshot(): void;
  help(): void;
}
