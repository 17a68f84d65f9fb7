// Where the planes and the 3D view lie on the canvas: from places to voxels and back.
import { SLICE_TYPE, type Niivue } from "@niivue/niivue";
import { fromRas, PLANES, rasShape, toRas, type Orientation, type Plane } from "./geometry";
import type { Index } from "./types";

export type Pane = Plane | "render";
export const LAYOUTS = ["all", ...PLANES, "render"] as const;
export type Layout = (typeof LAYOUTS)[number];

/** A place on the page, in CSS pixels from the canvas's upper left corner. */
export interface Place {
  x: number;
  y: number;
}

export interface Rect extends Place {
  width: number;
  height: number;
}

const SLICE: Record<Pane, SLICE_TYPE> = {
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};
const QUARTERS: [Pane, number, number][] = [
  ["axial", 0, 0],
  ["coronal", 1, 0],
  ["sagittal", 0, 1],
  ["render", 1, 1],
];
const GAP = 0.004; // between panes, of the canvas
// The texture axes that grow along a plane's sides.
const SIDES: Record<Plane, [number, number]> = { axial: [0, 1], coronal: [0, 2], sagittal: [1, 2] };

/** What NiiVue is to draw; without the 3D view if `render` is false. */
export function tiling(layout: Layout, render: boolean) {
  if (layout !== "all") return [{ sliceType: SLICE[layout], position: [0, 0, 1, 1] as [number, number, number, number] }];
  const side = 0.5 - GAP / 2;
  return QUARTERS.filter(([pane]) => render || pane !== "render").map(([pane, column, row]) => ({
    sliceType: SLICE[pane],
    position: [column * (side + GAP), row * (side + GAP), side, side] as [number, number, number, number],
  }));
}

/** The panes as NiiVue drew them last. */
export class Tiles {
  orientation: Orientation = { shape: [1, 1, 1], axes: [1, 2, 3] };

  constructor(
    private readonly niivue: Niivue,
    private readonly canvas: HTMLCanvasElement,
  ) {}

  /** Where a pane lies; null if it is not shown. */
  rect(pane: Pane): Rect | null {
    const slice = this.niivue.screenSlices.find(({ axCorSag }) => axCorSag === SLICE[pane]);
    if (!slice) return null;
    const [x, y, width, height] = slice.leftTopWidthHeight.map((v) => v / this.scale) as [number, number, number, number];
    return width < 0 ? { x: x + width, y, width: -width, height } : { x, y, width, height };
  }

  /** The plane and voxel under a place, or the 3D view, or nothing. */
  pick({ x, y }: Place): { pane: Plane; index: Index } | { pane: "render" } | null {
    for (const plane of PLANES) {
      const fraction = this.texture(plane, { x, y });
      if (!fraction || fraction.some((v) => v < 0 || v > 1)) continue;
      const ras = rasShape(this.orientation).map((n, p) => Math.min(Math.floor(fraction[p]! * n), n - 1)) as Index;
      return { pane: plane, index: fromRas(this.orientation, ras) };
    }
    const render = this.rect("render");
    if (!render) return null;
    const inside = x >= render.x && y >= render.y && x < render.x + render.width && y < render.y + render.height;
    return inside ? { pane: "render" } : null;
  }

  /** A map from voxels, also between their centres, to places on a plane; null if the plane is not shown. */
  projector(plane: Plane): ((index: readonly number[]) => Place) | null {
    const rect = this.rect(plane);
    if (!rect) return null;
    // Along each side of a pane exactly one texture axis grows, evenly: two samples give the map.
    const a = { x: rect.x + rect.width / 4, y: rect.y + rect.height / 4 };
    const b = { x: rect.x + (rect.width * 3) / 4, y: rect.y + (rect.height * 3) / 4 };
    const [from, to] = [this.texture(plane, a), this.texture(plane, b)];
    if (!from || !to) return null;
    const shape = rasShape(this.orientation);
    const share = (ras: Index, p: number) => ((ras[p]! + 0.5) / shape[p]! - from[p]!) / (to[p]! - from[p]!);
    const [across, up] = SIDES[plane];
    return (index) => {
      const ras = toRas(this.orientation, index as Index);
      return { x: a.x + (b.x - a.x) * share(ras, across), y: a.y + (b.y - a.y) * share(ras, up) };
    };
  }

  /** Texture coordinates (RAS, 0 to 1 over the scan) under a place on a plane's pane; null beside it. */
  texture(plane: Plane, { x, y }: Place): number[] | null {
    const number = this.niivue.screenSlices.findIndex(({ axCorSag }) => axCorSag === SLICE[plane]);
    if (number < 0) return null;
    const fraction = [...this.niivue.screenXY2TextureFrac(x * this.scale, y * this.scale, number, false)];
    return fraction.every((v) => v === -1) ? null : fraction; // NiiVue's sign for "not on this pane"
  }

  private get scale(): number {
    return this.canvas.width / (this.canvas.clientWidth || 1);
  }
}
