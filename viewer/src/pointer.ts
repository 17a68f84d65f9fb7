// The mouse, pen or finger on the planes: clicks mark, drags look or draw, the wheel goes through slices.
import type { Plane } from "./geometry";
import { step } from "./geometry";
import type { Prompter } from "./prompts";
import type { Place } from "./tiles";
import type { Prompt } from "./types";
import type { Viewer } from "./viewer";

const STILL = 4; // pixels that a click may move

interface Press {
  start: Place;
  last: Place;
  pane: Plane | "render";
  opposite: boolean;
  looking: boolean; // moves the cursor, whatever the tool
  panning: boolean; // moves the enlarged planes
  moved: boolean;
}

/** Make the canvas of the planes react. `send` gets finished prompts, `changed` is called when drafts or planes do. */
export function bindPointer(
  canvas: HTMLCanvasElement,
  viewer: Viewer,
  prompter: Prompter,
  send: (prompt: Prompt) => void,
  changed: (plane?: Plane) => void,
): void {
  let press: Press | null = null;
  const placeOf = (event: MouseEvent): Place => {
    const rect = canvas.getBoundingClientRect();
    return { x: event.clientX - rect.left, y: event.clientY - rect.top };
  };

  canvas.addEventListener("contextmenu", (event) => event.preventDefault());

  canvas.addEventListener("pointerdown", (event) => {
    const start = placeOf(event);
    const found = viewer.tiles.pick(start);
    if (!found || press) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    const panning = event.button === 1;
    const looking = event.ctrlKey || event.metaKey || prompter.tool === "look";
    const opposite = event.button === 2 || event.shiftKey;
    press = { start, last: start, pane: found.pane, opposite, looking, panning, moved: false };
    if (found.pane === "render" || panning) return;
    changed(found.pane);
    const draws = prompter.tool === "box" || prompter.tool === "scribble";
    if (draws && !looking) prompter.begin(found.index, found.pane, opposite);
    else if (looking) viewer.moveTo(found.index);
    changed();
  });

  canvas.addEventListener("pointermove", (event) => {
    if (!press) return;
    const now = placeOf(event);
    press.moved ||= Math.hypot(now.x - press.start.x, now.y - press.start.y) > STILL;
    const last = press.last;
    press.last = now;
    if (press.pane === "render") {
      viewer.camera.rotate((last.x - now.x) / 2, (now.y - last.y) / 2);
      return viewer.draw(true);
    }
    if (press.panning) {
      const [from, to] = [viewer.tiles.texture(press.pane, last), viewer.tiles.texture(press.pane, now)];
      if (from && to) viewer.camera.drag(from, to);
      return viewer.draw();
    }
    const found = viewer.tiles.pick(now);
    if (!press.moved || !found || found.pane === "render" || found.pane !== press.pane) return;
    if (prompter.draft && !press.looking) prompter.move(found.index);
    else viewer.moveTo(found.index);
    changed();
  });

  canvas.addEventListener("pointerup", () => {
    const { start, pane, opposite, looking, panning, moved } = press ?? {};
    press = null;
    if (pane === undefined || pane === "render" || looking || panning) return;
    if (prompter.tool === "point") {
      const found = viewer.tiles.pick(start!);
      if (moved || !found || found.pane === "render") return;
      viewer.moveTo(found.index);
      send(prompter.point(found.index, opposite));
      return;
    }
    if (!moved && prompter.tool === "box") prompter.cancel(); // a click is no box
    const prompt = prompter.end();
    changed();
    if (prompt) send(prompt);
  });

  canvas.addEventListener("pointercancel", () => {
    press = null;
    prompter.cancel();
    changed();
  });

  canvas.addEventListener(
    "wheel",
    (event) => {
      const found = viewer.tiles.pick(placeOf(event));
      if (!found) return;
      event.preventDefault();
      const factor = event.deltaY < 0 ? 1.15 : 1 / 1.15;
      if (found.pane === "render") viewer.camera.approach(factor);
      else if (event.ctrlKey || event.metaKey) viewer.camera.zoom(factor);
      if (found.pane === "render" || event.ctrlKey || event.metaKey) return viewer.draw(found.pane === "render");
      const direction = event.deltaY < 0 ? "forward" : "back";
      viewer.moveTo(step(viewer.orientation, viewer.cursor, found.pane, direction));
      changed(found.pane);
    },
    { passive: false },
  );
}
