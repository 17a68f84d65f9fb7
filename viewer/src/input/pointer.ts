// Mouse, pen or fingers on the planes: clicks mark, drags look, draw, measure or change the window, two fingers zoom.
import type { Edit, Index, Prompt } from "../engine/engine";
import { step, type Plane } from "../stage/geometry";
import type { Line, Ruler } from "../stage/ruler";
import type { Pane, Place } from "../stage/tiles";
import type { Viewer } from "../stage/viewer";
import { dragWindow, type Window } from "../stage/windowing";
import { movementOf, pinch, type Movement } from "./gestures";
import { paints, type Painter } from "./painter";
import type { Prompter } from "./prompts";
import { Wheel, zoomOf } from "./wheel";

const STILL = { mouse: 4, pen: 6, touch: 12 } as Record<string, number>; // pixels that a click may move

/** What the pointer works on and reports to. */
export interface Desk {
  viewer: Viewer;
  prompter: Prompter;
  painter: Painter;
  ruler: Ruler;
  held: ReadonlySet<string>; // keys held down
  give(mark: Prompt | Edit): void;
  /** The pointer is over an index of a plane, or over none. */
  hover(over: Hover | null): void;
  measured(line: Line): void;
  window(window: Window): void;
  /** Drafts, the cursor or the current plane have changed. */
  changed(plane?: Plane): void;
}

/** What is under a pointer that is not pressed. */
export interface Hover {
  plane: Plane;
  at: Index; // not rounded
}

interface Press {
  id: number;
  start: Place;
  last: Place;
  pane: Pane;
  movement: Movement;
  marks: boolean; // if the tool clicks and the pointer stays still
  opposite: boolean;
  still: number;
  moved: boolean;
  window: Window; // at the start
}

/** Bind the pointer to the canvas of the planes. */
export function bindPointer(canvas: HTMLCanvasElement, desk: Desk): void {
  const pointer = new Pointer(canvas, desk);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("pointerdown", (event) => pointer.down(event));
  canvas.addEventListener("pointermove", (event) => pointer.move(event));
  canvas.addEventListener("pointerup", (event) => pointer.up(event));
  canvas.addEventListener("pointercancel", (event) => pointer.drop(event));
  canvas.addEventListener("pointerleave", () => desk.hover(null));
  canvas.addEventListener("wheel", (event) => pointer.turn(event), { passive: false });
}

class Pointer {
  private press: Press | null = null;
  private readonly fingers = new Map<number, Place>();
  private readonly wheel = new Wheel();

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly desk: Desk,
  ) {}

  down(event: PointerEvent): void {
    const { viewer, prompter, held } = this.desk;
    const start = this.placeOf(event);
    const pane = viewer.isOpen ? viewer.tiles.pane(start) : null;
    if (!pane) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    if (event.pointerType === "touch") this.fingers.set(event.pointerId, start);
    if (this.fingers.size > 1) return this.giveUp();
    if (this.press) return;
    const [ctrl, shift] = [event.ctrlKey || event.metaKey, event.shiftKey];
    const movement = movementOf({ button: event.button, ctrl, shift, held }, prompter.tool, pane);
    const still = STILL[event.pointerType] ?? STILL.mouse!;
    const right = event.button === 2;
    const marks = prompter.tool === "point" && (movement === "mark" || (movement === "window" && right));
    const { window } = viewer;
    this.press = { id: event.pointerId, start, last: start, pane, movement, marks, opposite: right || shift, still, moved: false, window };
    this.begin(this.press);
  }

  move(event: PointerEvent): void {
    const now = this.placeOf(event);
    if (this.fingers.size > 1) return this.pinch(event.pointerId, now);
    if (this.fingers.has(event.pointerId)) this.fingers.set(event.pointerId, now);
    const { press } = this;
    if (!press || press.movement === "paint") this.hover(now);
    if (!press || press.id !== event.pointerId) return;
    const last = press.last;
    press.moved ||= Math.hypot(now.x - press.start.x, now.y - press.start.y) > press.still;
    press.last = now;
    if (press.moved || press.movement === "paint") this.drag(press, last, now);
  }

  up(event: PointerEvent): void {
    this.fingers.delete(event.pointerId);
    const { press } = this;
    if (!press || press.id !== event.pointerId) return;
    this.press = null;
    if (press.movement === "draw") return this.finish(press);
    if (press.movement === "paint") {
      const edit = this.desk.painter.end();
      if (edit) this.desk.give(edit);
      return this.desk.changed();
    }
    if (press.movement === "measure") {
      const line = this.desk.ruler.end();
      if (line) this.desk.measured(line);
      return this.desk.changed();
    }
    if (press.marks && !press.moved) this.mark(press);
  }

  drop(event: PointerEvent): void {
    this.fingers.delete(event.pointerId);
    this.giveUp();
  }

  turn(event: WheelEvent): void {
    const { viewer, changed } = this.desk;
    const place = this.placeOf(event);
    const pane = viewer.isOpen ? viewer.tiles.pane(place) : null;
    if (!pane) return;
    event.preventDefault();
    const { camera } = viewer.tiles;
    if (pane === "render") {
      camera.come(zoomOf(event));
      return viewer.draw(true);
    }
    if (event.ctrlKey || event.metaKey) {
      camera.enlarge(zoomOf(event), viewer.tiles.position(pane, place)!);
      return viewer.draw();
    }
    const count = this.wheel.slices(event, event.timeStamp);
    if (!count) return;
    viewer.moveTo(step(viewer.orientation, viewer.cursor, pane, count > 0 ? "forward" : "back", Math.abs(count)));
    changed(pane);
  }

  private begin({ pane, movement, start, opposite }: Press): void {
    if (pane === "render") return;
    const { viewer, prompter, painter, ruler, changed } = this.desk;
    changed(pane);
    const index = this.index(pane, start);
    const { tool } = prompter;
    if (movement === "paint" && paints(tool)) {
      const add = (tool === "lasso" ? prompter.positive : tool === "brush") !== opposite;
      painter.begin(tool, viewer.orientation, pane, viewer.tiles.locate(pane, start)!, add);
    } else if (movement === "draw" && index) prompter.begin(index, pane, opposite);
    else if (movement === "measure") ruler.begin(viewer.orientation, pane, viewer.tiles.locate(pane, start)!);
    else if (movement === "look" && index) viewer.moveTo(index);
    changed();
  }

  private drag(press: Press, last: Place, now: Place): void {
    const { viewer, prompter, painter, ruler, changed } = this.desk;
    const { pane, movement, start } = press;
    const { tiles } = viewer;
    if (pane === "render") {
      tiles.camera.rotate((last.x - now.x) / 2, (now.y - last.y) / 2);
      return viewer.draw(true);
    }
    if (movement === "pan") {
      tiles.camera.drag(tiles.position(pane, last)!, tiles.position(pane, now)!);
      return viewer.draw();
    }
    if (movement === "window") return this.desk.window(dragWindow(press.window, now.x - start.x, start.y - now.y));
    const index = this.index(pane, now);
    if (movement === "paint") painter.move(tiles.locate(pane, now)!);
    else if (movement === "measure") ruler.move(tiles.locate(pane, now)!);
    else if (!index) return;
    else if (movement === "draw") prompter.move(index);
    else viewer.moveTo(index); // a drag with the click tool looks around
    changed();
  }

  private finish({ moved }: Press): void {
    const { prompter, changed, give } = this.desk;
    if (!moved && prompter.tool === "box") prompter.cancel(); // a click is not a box
    const prompt = prompter.end();
    changed();
    if (prompt) give(prompt);
  }

  private mark({ pane, start, opposite }: Press): void {
    const index = pane === "render" ? null : this.index(pane, start);
    if (!index) return;
    this.desk.viewer.moveTo(index);
    this.desk.give(this.desk.prompter.point(index, opposite));
  }

  private pinch(id: number, now: Place): void {
    if (!this.fingers.has(id)) return;
    const before = [...this.fingers.values()] as [Place, Place];
    this.fingers.set(id, now);
    const { factor, from, to } = pinch(before, [...this.fingers.values()] as [Place, Place]);
    const { tiles } = this.desk.viewer;
    const pane = tiles.pane(to);
    if (!pane) return;
    if (pane === "render") tiles.camera.come(factor);
    else {
      tiles.camera.drag(tiles.position(pane, from)!, tiles.position(pane, to)!);
      tiles.camera.enlarge(factor, tiles.position(pane, to)!);
    }
    this.desk.viewer.draw(pane === "render");
  }

  // Drop what the press began: it was not what the user meant.
  private giveUp(): void {
    const { prompter, painter, ruler, changed } = this.desk;
    if (this.press?.movement === "paint") painter.draft = null;
    if (this.press?.movement === "draw") prompter.cancel();
    if (this.press?.movement === "measure") ruler.remove();
    this.press = null;
    changed();
  }

  private hover(now: Place): void {
    const { viewer, hover } = this.desk;
    const pane = viewer.isOpen ? viewer.tiles.pane(now) : null;
    hover(pane && pane !== "render" ? { plane: pane, at: viewer.tiles.locate(pane, now)! } : null);
  }

  private index(pane: Plane, place: Place): Index | null {
    const found = this.desk.viewer.tiles.pick(place);
    return found && found.pane === pane ? found.index : null;
  }

  private placeOf(event: MouseEvent): Place {
    const rect = this.canvas.getBoundingClientRect();
    return { x: event.clientX - rect.left, y: event.clientY - rect.top };
  }
}
