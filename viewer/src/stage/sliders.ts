// A slider at the right side of each plane, to go through its slices by mouse, finger or keyboard.
import type { Index } from "../engine/engine";
import { fromRas, NORMAL, normalAxis, PLANES, rasShape, toRas, type Plane } from "./geometry";
import type { Tiles } from "./tiles";

export class Sliders {
  private readonly parts: { plane: Plane; box: HTMLElement; range: HTMLInputElement }[];

  /** `go` is called with the cursor's new index and the plane. */
  constructor(
    place: HTMLElement,
    private readonly tiles: Tiles,
    go: (index: Index, plane: Plane) => void,
  ) {
    this.parts = PLANES.map((plane) => {
      const box = Object.assign(document.createElement("div"), { className: "slices", hidden: true });
      const range = Object.assign(document.createElement("input"), { type: "range", min: "0" });
      range.setAttribute("aria-label", `${plane} slice`);
      range.setAttribute("aria-orientation", "vertical");
      range.addEventListener("input", () => {
        const ras = toRas(tiles.orientation, tiles.cursor);
        ras[NORMAL[plane]] = range.valueAsNumber;
        go(fromRas(tiles.orientation, ras), plane);
      });
      box.append(range);
      place.append(box);
      return { plane, box, range };
    });
  }

  /** Follow the planes and the cursor. `shown` is false while no scan is open. */
  draw(shown: boolean): void {
    const { orientation, cursor } = this.tiles;
    for (const { plane, box, range } of this.parts) {
      const rect = shown ? this.tiles.rect(plane) : null;
      box.hidden = !rect;
      if (!rect) continue;
      Object.assign(box.style, { left: `${rect.x}px`, top: `${rect.y}px`, width: `${rect.width}px`, height: `${rect.height}px` });
      range.max = `${rasShape(orientation)[NORMAL[plane]]! - 1}`;
      range.value = `${toRas(orientation, cursor)[NORMAL[plane]]}`;
      const axis = normalAxis(orientation, plane);
      range.setAttribute("aria-valuetext", `slice ${cursor[axis]! + 1} of ${orientation.shape[axis]}`);
    }
  }
}
