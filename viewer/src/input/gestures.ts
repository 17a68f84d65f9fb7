// What a press of the pointer begins, and what two fingers do.
import type { Pane, Place } from "../stage/tiles";
import { paints } from "./painter";
import type { Tool } from "./prompts";

/** What a press turns into: `mark` and `look` also as a click; `window` marks the opposite if the press stays still. */
export type Movement = "mark" | "draw" | "paint" | "measure" | "look" | "pan" | "window" | "turn";

export interface Press {
  button: number;
  shift: boolean;
  ctrl: boolean;
  held: ReadonlySet<string>; // keys held down: "w" changes the window, " " pans
}

export function movementOf({ button, shift, ctrl, held }: Press, tool: Tool, pane: Pane): Movement {
  if (pane === "render") return "turn";
  if (button === 1 || held.has(" ")) return "pan";
  if (held.has("w")) return "window";
  if (tool === "scribble" && !ctrl) return "draw"; // the right button draws "not tumour"
  if (paints(tool) && !ctrl) return "paint"; // and erases, or paints with the eraser
  if (button === 2) return "window";
  if (ctrl || tool === "look") return "look";
  if (tool === "ruler") return "measure";
  return tool === "box" && !shift ? "draw" : tool === "box" ? "look" : "mark";
}

/** What two fingers did between two moments: zoom by `factor` about `to`, and move there what was under `from`. */
export function pinch(before: readonly [Place, Place], after: readonly [Place, Place]): { factor: number; from: Place; to: Place } {
  const middle = ([a, b]: readonly [Place, Place]) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
  const length = ([a, b]: readonly [Place, Place]) => Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1);
  return { factor: length(after) / length(before), from: middle(before), to: middle(after) };
}
