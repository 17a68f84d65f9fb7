// The planes' pictures: a slice of the scan in its window, the objects' fill and outlines, each kept until it changes.
import type { Index } from "../engine/engine";
import { SIDES } from "./camera";
import { NORMAL, rasShape, toRas, type Orientation, type Plane } from "./geometry";
import type { Rect, Tiles } from "./tiles";
import type { Voxels } from "./voxels";
import type { Window } from "./windowing";

const OPAQUE = 0xff000000;
const RIM_WIDTH = 1.6; // pixels on the screen

/** How an object is drawn. */
export interface ObjectStyle {
  colour: string; // #rrggbb
  visible: boolean;
}

/** How masks are drawn on the planes. */
export interface MaskStyle {
  opacity: number;
  outline: boolean; // without a fill
}

const UNKNOWN: ObjectStyle = { colour: "#ffffff", visible: true }; // until the engine says how it looks

interface Layer {
  key: string;
  canvas: HTMLCanvasElement;
}

/** Where the voxels of a plane's slice lie in the arrays: `across[x] + up[y] + start`, rows from the top of the screen. */
export interface Cut {
  width: number;
  height: number;
  across: Int32Array;
  up: Int32Array;
  start: number;
}

/** The cut of a plane through the voxel `ras`; `shown` says which slice stands in for slice k. */
export function cutOf(orientation: Orientation, plane: Plane, ras: Index, shown: (k: number) => number): Cut {
  const [ni, nj] = orientation.shape;
  const stride = [1, ni, ni * nj];
  const shape = rasShape(orientation);
  const offset = (axis: 0 | 1 | 2, at: number) => {
    const native = Math.abs(orientation.axes[axis]) - 1;
    const index = orientation.axes[axis] > 0 ? at : shape[axis] - 1 - at;
    return (native === 2 ? shown(index) : index) * stride[native]!;
  };
  // On the screen both run backwards: right (in profile, anterior) is on the left, superior (axial: anterior) on top.
  const line = (axis: 0 | 1 | 2) => Int32Array.from({ length: shape[axis] }, (_, n) => offset(axis, shape[axis] - 1 - n));
  const [across, up] = SIDES[plane];
  const normal = NORMAL[plane];
  return { width: shape[across], height: shape[up], across: line(across), up: line(up), start: offset(normal, ras[normal]) };
}

/** The edges between pixels of different labels: for each label, lines (x0, y0, x1, y1) between pixel corners. */
export function rimsOf(labels: Uint8Array, width: number, height: number): Map<number, number[]> {
  const rims = new Map<number, number[]>();
  const at = (x: number, y: number) => (x >= 0 && y >= 0 && x < width && y < height ? labels[y * width + x]! : 0);
  const add = (label: number, ...line: number[]) => {
    if (!label) return;
    const lines = rims.get(label) ?? [];
    if (!rims.has(label)) rims.set(label, lines);
    lines.push(...line);
  };
  const scan = (rows: number, columns: number, pair: (row: number, column: number) => [number, number], line: (row: number, from: number, to: number) => number[]) => {
    for (let row = 0; row <= rows; row++) {
      let [from, last] = [0, [0, 0]];
      for (let column = 0; column <= columns; column++) {
        const now = column < columns ? pair(row, column) : [0, 0];
        if (now[0] === last[0] && now[1] === last[1]) continue;
        if (last[0] !== last[1]) for (const label of last) add(label!, ...line(row, from, column));
        [from, last] = [column, now];
      }
    }
  };
  scan(height, width, (y, x) => [at(x, y - 1), at(x, y)], (y, x0, x1) => [x0, y, x1, y]);
  scan(width, height, (x, y) => [at(x - 1, y), at(x, y)], (x, y0, y1) => [x, y0, x, y1]);
  return rims;
}

export class Slices {
  style: MaskStyle = { opacity: 0.4, outline: false };
  private readonly scans = new Map<Plane, Layer>();
  private readonly masks = new Map<Plane, Layer & { rims: Map<number, number[]> }>();
  private styles = new Map<number, ObjectStyle>();
  private version = 0; // of the labels and their colours

  constructor(private readonly tiles: Tiles) {}

  /** Labels, or the looks of objects, have changed. */
  change(styles?: Map<number, ObjectStyle>): void {
    if (styles) this.styles = styles;
    this.version++;
  }

  styleOf(label: number): ObjectStyle {
    return this.styles.get(label) ?? UNKNOWN;
  }

  forget(): void {
    this.scans.clear();
    this.masks.clear();
  }

  /** Draw a plane of the scan and its objects; the pen is clipped to the pane. */
  draw(pen: CanvasRenderingContext2D, plane: Plane, rect: Rect, voxels: Voxels, labels: Uint8Array, window: Window): void {
    const ras = toRas(this.tiles.orientation, this.tiles.cursor);
    const place = this.placeOf(plane, rect);
    const { canvas } = this.scan(plane, ras, voxels, window);
    pen.imageSmoothingEnabled = true;
    pen.drawImage(canvas, place.x, place.y, place.width, place.height);
    const { opacity, outline } = this.style;
    if (!opacity) return;
    const mask = this.mask(plane, ras, labels);
    pen.save();
    pen.imageSmoothingEnabled = false;
    pen.globalAlpha = outline ? 0 : opacity;
    if (!outline) pen.drawImage(mask.canvas, place.x, place.y, place.width, place.height);
    pen.globalAlpha = Math.min(1, opacity + 0.5);
    pen.lineWidth = RIM_WIDTH;
    const [sx, sy] = [place.width / mask.canvas.width, place.height / mask.canvas.height];
    for (const [label, lines] of mask.rims) {
      const { colour, visible } = this.styleOf(label);
      if (!visible) continue;
      pen.strokeStyle = colour;
      pen.beginPath();
      for (let n = 0; n < lines.length; n += 4) {
        pen.moveTo(place.x + lines[n]! * sx, place.y + lines[n + 1]! * sy);
        pen.lineTo(place.x + lines[n + 2]! * sx, place.y + lines[n + 3]! * sy);
      }
      pen.stroke();
    }
    pen.restore();
  }

  // Where the whole slice lies on the screen.
  private placeOf(plane: Plane, rect: Rect): Rect {
    const [field, [across, up]] = [this.tiles.field(plane)!, SIDES[plane]];
    const scale = rect.width / (field.high[0] - field.low[0]);
    const extent = this.tiles.extent_mm;
    const [width, height] = [extent[across]! * scale, extent[up]! * scale];
    return { x: rect.x + (field.high[0] - extent[across]!) * scale, y: rect.y + (field.high[1] - extent[up]!) * scale, width, height };
  }

  private scan(plane: Plane, ras: Index, voxels: Voxels, { low, high }: Window): Layer {
    const key = [ras[NORMAL[plane]], low, high, voxels.count].join();
    const kept = this.scans.get(plane);
    if (kept?.key === key) return kept;
    const cut = cutOf(this.tiles.orientation, plane, ras, (k) => voxels.shown(k));
    const { data } = voxels;
    const scale = 255 / (high - low);
    const layer = { key, canvas: kept?.canvas ?? document.createElement("canvas") };
    fill(layer.canvas, cut, (pixels) => {
      let n = 0;
      for (const row of cut.up) {
        for (const column of cut.across) {
          const grey = (data[cut.start + row + column]! - low) * scale;
          const level = grey > 255 ? 255 : grey > 0 ? grey | 0 : 0;
          pixels[n++] = OPAQUE | (level << 16) | (level << 8) | level;
        }
      }
    });
    this.scans.set(plane, layer);
    return layer;
  }

  private mask(plane: Plane, ras: Index, labels: Uint8Array): Layer & { rims: Map<number, number[]> } {
    const key = [ras[NORMAL[plane]], this.version].join();
    const kept = this.masks.get(plane);
    if (kept?.key === key) return kept;
    const cut = cutOf(this.tiles.orientation, plane, ras, (k) => k);
    const values = new Uint8Array(cut.width * cut.height);
    let n = 0;
    for (const row of cut.up) for (const column of cut.across) values[n++] = labels[cut.start + row + column]!;
    const palette = Uint32Array.from({ length: 256 }, (_, label) => this.pixelOf(label));
    const canvas = kept?.canvas ?? document.createElement("canvas");
    fill(canvas, cut, (pixels) => values.forEach((label, at) => (pixels[at] = palette[label]!)));
    const layer = { key, canvas, rims: rimsOf(values, cut.width, cut.height) };
    this.masks.set(plane, layer);
    return layer;
  }

  private pixelOf(label: number): number {
    const { colour, visible } = this.styleOf(label);
    if (!label || !visible) return 0;
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)) as Index;
    return (OPAQUE | (blue << 16) | (green << 8) | red) >>> 0;
  }
}

function fill(canvas: HTMLCanvasElement, { width, height }: Cut, paint: (pixels: Uint32Array) => void): void {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  paint(new Uint32Array(image.data.buffer));
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}
