// Where the planes and the 3D view lie on the canvas; maps places on the screen to voxels and back.
import { Camera, SIDES, type Size } from "./camera";
import { fromRas, PLANES, rasShape, toRas, type Orientation, type Plane } from "./geometry";
import type { Index } from "../engine/engine";

export type Pane = Plane | "render";
export const LAYOUTS = ["all", ...PLANES, "render"] as const;
export type Layout = (typeof LAYOUTS)[number];

/** A place on the page, in CSS pixels from the canvas's upper left corner. */
export interface Place {
  x: number;
  y: number;
}

export interface Rect extends Place, Size {}

const QUARTERS: [Pane, number, number][] = [
  ["axial", 0, 0],
  ["coronal", 1, 0],
  ["sagittal", 0, 1],
  ["render", 1, 1],
];
const GAP = 0.004; // between panes, fraction of the canvas

/** The panes of a layout, in fractions of the canvas. */
function panesOf(layout: Layout): { pane: Pane; rect: Rect }[] {
  if (layout !== "all") return [{ pane: layout, rect: { x: 0, y: 0, width: 1, height: 1 } }];
  const side = 0.5 - GAP / 2;
  return QUARTERS.map(([pane, column, row]) => {
    return { pane, rect: { x: column * (side + GAP), y: row * (side + GAP), width: side, height: side } };
  });
}

/** The panes as they are drawn: the patient is seen from the feet and from the front, and faces left in profile. */
export class Tiles {
  orientation: Orientation = { shape: [1, 1, 1], axes: [1, 2, 3] };
  spacing_mm: Index = [1, 1, 1]; // along the array's axes
  layout: Layout = "all";
  cursor: Index = [0, 0, 0];

  /** `size` is that of the canvas, in CSS pixels. */
  constructor(
    private readonly size: () => Size,
    readonly camera = new Camera(),
  ) {}

  open(orientation: Orientation, spacing_mm: Index): void {
    this.orientation = orientation;
    this.spacing_mm = spacing_mm;
    this.camera.open(this.extent_mm);
  }

  /** The scan's size along its axes in RAS order. */
  get extent_mm(): Index {
    const spacing = this.rasSpacing;
    return rasShape(this.orientation).map((n, p) => n * spacing[p]!) as Index;
  }

  /** Where a pane lies; null if it is not shown. */
  rect(pane: Pane): Rect | null {
    const found = panesOf(this.layout).find((part) => part.pane === pane)?.rect;
    if (!found) return null;
    const { width, height } = this.size();
    return { x: found.x * width, y: found.y * height, width: found.width * width, height: found.height * height };
  }

  /** Width and height of a pixel of the planes in mm. */
  get mmPerPixel(): number {
    const planes = PLANES.filter((plane) => this.rect(plane));
    return planes.length ? this.camera.mmPerPixel(planes, this.rect(planes[0]!)!) : 1;
  }

  /** The lowest and highest position (mm; see Camera) that a plane shows, across the screen and up. */
  field(plane: Plane): { low: [number, number]; high: [number, number] } | null {
    const rect = this.rect(plane);
    if (!rect) return null;
    const half = [(rect.width * this.mmPerPixel) / 2, (rect.height * this.mmPerPixel) / 2] as const;
    const [x, y] = SIDES[plane].map((axis) => this.camera.middle[axis]!) as [number, number];
    return { low: [x - half[0], y - half[1]], high: [x + half[0], y + half[1]] };
  }

  /** The pane under a place. */
  pane({ x, y }: Place): Pane | null {
    const inside = (rect: Rect) => x >= rect.x && y >= rect.y && x < rect.x + rect.width && y < rect.y + rect.height;
    return panesOf(this.layout).find(({ pane }) => inside(this.rect(pane)!))?.pane ?? null;
  }

  /** The plane and voxel under a place, or the 3D view, or nothing. */
  pick(place: Place): { pane: Plane; index: Index } | { pane: "render" } | null {
    const pane = this.pane(place);
    if (!pane || pane === "render") return pane && { pane };
    const index = this.locate(pane, place)!.map((v) => Math.round(v) + 0) as Index; // + 0: no -0
    return index.every((v, axis) => v >= 0 && v < this.orientation.shape[axis]!) ? { pane, index } : null;
  }

  /** The index, not rounded and perhaps outside the scan, under a place of a plane; null if the plane is not shown. */
  locate(plane: Plane, place: Place): Index | null {
    const at = this.position(plane, place);
    if (!at) return null;
    const spacing = this.rasSpacing;
    return fromRas(this.orientation, at.map((mm, p) => mm / spacing[p]! - 0.5) as Index);
  }

  /** The position (mm; see Camera) under a place of a plane, in the slice of the cursor. */
  position(plane: Plane, { x, y }: Place): number[] | null {
    const rect = this.rect(plane);
    if (!rect) return null;
    const at = this.positionOf(this.cursor);
    const [across, up] = SIDES[plane];
    const scale = this.mmPerPixel;
    at[across] = this.camera.middle[across]! - (x - rect.x - rect.width / 2) * scale;
    at[up] = this.camera.middle[up]! - (y - rect.y - rect.height / 2) * scale;
    return at;
  }

  /** A map from indices, which may be fractional, to places on a plane; null if the plane is not shown. */
  projector(plane: Plane): ((index: readonly number[]) => Place) | null {
    const rect = this.rect(plane);
    if (!rect) return null;
    const [across, up] = SIDES[plane];
    const [scale, middle] = [this.mmPerPixel, this.camera.middle];
    return (index) => {
      const at = this.positionOf(index);
      return {
        x: rect.x + rect.width / 2 - (at[across]! - middle[across]!) / scale,
        y: rect.y + rect.height / 2 - (at[up]! - middle[up]!) / scale,
      };
    };
  }

  /** The position (mm; see Camera) of an index. */
  positionOf(index: readonly number[]): number[] {
    const spacing = this.rasSpacing;
    return toRas(this.orientation, index as Index).map((v, p) => (v + 0.5) * spacing[p]!);
  }

  /** Pan the planes if the cursor is out of view. */
  keepInView(): void {
    const seen = [0, 1, 2].map((axis) => {
      const halves = PLANES.flatMap((plane) => {
        const [field, side] = [this.field(plane), SIDES[plane].indexOf(axis as 0 | 1 | 2)];
        return field && side >= 0 ? [(field.high[side]! - field.low[side]!) / 2] : [];
      });
      return Math.min(Infinity, ...halves);
    });
    this.camera.keepInView(this.positionOf(this.cursor), seen);
  }

  private get rasSpacing(): Index {
    return this.orientation.axes.map((axis) => this.spacing_mm[Math.abs(axis) - 1]!) as Index;
  }
}
