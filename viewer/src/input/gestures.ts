// Which of the page's movements a press begins, and what two fingers do.
import type { Pane, Place } from "../stage/tiles";
import { paints } from "./painter";
import type { Tool } from "./prompts";

/** What a press turns into: `mark` and `look` also as a click; `window` after a still press marks the opposite. */
export type Movement = "mark" | "draw" | "paint" | "measure" | "look" | "pan" | "window" | "turn";

export interface Press {
  button: number;
  shift: boolean;
  ctrl: boolean;
  held: ReadonlySet<string>; // keys that are down: "w" windows, " " pans
}

export function movementOf({ button, shift, ctrl, held }: Press, tool: Tool, pane: Pane): Movement {
  if (pane === "render") return "turn";
  if (button === 1 || held.has(" ")) return "pan";
  if (held.has("w")) return "window";
  if (tool === "scribble" && !ctrl) return "draw"; // the right button draws what is not tumour
  if (paints(tool) && !ctrl) return "paint"; // and it erases, or paints with the eraser
  if (button === 2) return "window";
  if (ctrl || tool === "look") return "look";
  if (tool === "ruler") return "measure";
  return tool === "box" && !shift ? "draw" : tool === "box" ? "look" : "mark";
}

/** What two fingers do between two moments: enlarge by `factor` about `to`, and move what was under `from` there. */
export function pinch(before: readonly [Place, Place], after: readonly [Place, Place]): { factor: number; from: Place; to: Place } {
  const middle = ([a, b]: readonly [Place, Place]) => ({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
  const length = ([a, b]: readonly [Place, Place]) => Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1);
  return { factor: length(after) / length(before), from: middle(before), to: middle(after) };
}
