// What the user can do: the panel and the keys ask for it, the page does it.
import type { FileKind, Info, State } from "../engine/engine";
import type { Prompter, Tool } from "../input/prompts";
import type { Plane } from "../stage/geometry";
import type { Viewer } from "../stage/viewer";
import type { View } from "./view";

export interface Actions {
  readonly view: View;
  readonly viewer: Viewer;
  readonly prompter: Prompter;
  readonly plane: Plane; // in which the arrow keys move
  readonly info: Info | null;
  readonly state: State | null;

  tool(tool: Tool): void;
  sign(positive: boolean): void;
  /** Enter at the cursor; `opposite`: with Shift. */
  enter(opposite: boolean): void;
  accept(): void;
  cancel(): void;
  removeLine(): void;
  select(number: number): void;
  newObject(): void;
  undo(): void;
  redo(): void;
  reset(): void;
  /** The cursor was moved by keys. */
  cursorMoved(): void;
  /** Draw drafts and the cursor anew; the keys now move in `plane`. */
  changed(plane?: Plane): void;
  save(kind: FileKind): void;
  screenshot(): void;
  help(): void;
}
