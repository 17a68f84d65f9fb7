// The planes: the scan's slices, and over them prompts, strokes, drafts, measured lines, cursor and keyboard's plane.
import type { Edit, Index, Prompt } from "../engine/engine";
import { normalAxis, type Plane, PLANES } from "./geometry";
import { lengthMm, type Line } from "./ruler";
import type { Place, Rect } from "./tiles";
import type { Viewer } from "./viewer";

const ADD = "#7ee0a1";
const REMOVE = "#ff9b8c";
const FOCUS = "#ffd166";
const RADIUS = 7;
const CURSOR_GAP = 12;
const RULER = "#ffffff";
const NARROW = 300; // pixels: in a narrower plane the slice number goes below the name
const SLIDER = 22; // pixels at a plane's right side that its slider takes
// The patient's sides at the left, right, top and bottom of each plane.
const LETTERS: Record<Plane, [string, string, string, string]> = {
  axial: ["R", "L", "A", "P"],
  coronal: ["R", "L", "S", "I"],
  sagittal: ["A", "P", "S", "I"],
};

/** A prompt that is being drawn and has not been sent. */
export type Draft =
  | { kind: "box"; from: Index; to: Index; placed: boolean }
  | { kind: "scribble"; voxels: Index[]; positive: boolean };

/** A stroke of the brush, or an outline of the lasso. */
type Drawn = Extract<Edit, { kind: "brush" | "lasso" }>;

/** The brush under the pointer. */
export interface BrushTip {
  plane: Plane;
  at: Index;
  radius_mm: number;
}

export interface Scene {
  objects: { number: number; colour: string; visible: boolean; prompts: Prompt[] }[];
  current: number;
  sent: (Prompt | Edit)[]; // those that wait to be run, or for their answer
  draft: Draft | null;
  drawn: Drawn | null; // an edit that is not finished
  tip: BrushTip | null;
  lines: Line[]; // of the ruler
  diameters: { line: Line; colour: string }[];
  affine: number[][];
  plane: Plane;
  focused: boolean;
}

export class Overlay {
  private readonly pen: CanvasRenderingContext2D;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly viewer: Viewer,
  ) {
    this.pen = canvas.getContext("2d")!;
  }

  draw(scene: Scene): void {
    const { canvas, pen } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    if (!this.viewer.isOpen) return;
    for (const plane of PLANES) this.drawPlane(plane, scene);
  }

  private drawPlane(plane: Plane, scene: Scene): void {
    const rect = this.viewer.tiles.rect(plane);
    const place = this.viewer.tiles.projector(plane);
    if (!rect || !place) return;
    const { pen } = this;
    pen.save();
    pen.beginPath();
    pen.rect(rect.x, rect.y, rect.width, rect.height);
    pen.clip();
    this.viewer.paint(pen, plane, rect);
    const axis = normalAxis(this.viewer.orientation, plane);
    const depth = this.viewer.cursor[axis] as number;
    const current = scene.objects.find(({ number }) => number === scene.current);
    const colour = current?.colour ?? FOCUS;
    for (const mark of [...scene.sent, ...(scene.drawn ? [scene.drawn] : [])]) {
      if (mark.kind === "brush") this.drawBrush(mark, axis, depth, place, colour);
      if (mark.kind === "lasso") this.drawLasso(mark, axis, depth, place, colour);
    }
    for (const { number, visible, colour, prompts } of scene.objects) {
      pen.globalAlpha = number === scene.current ? 1 : 0.45;
      if (visible) for (const prompt of prompts) this.drawPrompt(prompt, axis, depth, place, colour);
    }
    pen.globalAlpha = 0.7;
    for (const mark of scene.sent) {
      if (mark.kind === "point" || mark.kind === "box" || mark.kind === "scribble") this.drawPrompt(mark, axis, depth, place, FOCUS);
    }
    pen.globalAlpha = 1;
    for (const { line, colour } of scene.diameters) {
      if (line.axis === axis && Math.round(line.from[axis]!) === depth) this.drawLine(line, place, scene.affine, colour);
    }
    if (scene.tip?.plane === plane) this.drawTip(scene.tip, place);
    if (scene.draft) this.drawDraft(scene.draft, axis, depth, place);
    for (const line of scene.lines) {
      if (line.axis === axis && Math.round(line.from[axis]!) === depth) this.drawLine(line, place, scene.affine, RULER);
    }
    this.drawCursor(rect, place(this.viewer.cursor));
    pen.restore();
    const active = plane === scene.plane;
    this.drawFrame(plane, rect, active, active && scene.focused);
  }

  // Lines with a gap, so that what is under the cursor stays visible.
  private drawCursor(rect: Rect, at: Place): void {
    const { pen } = this;
    const [x, y] = [Math.round(at.x) + 0.5, Math.round(at.y) + 0.5];
    pen.strokeStyle = "#4fc3c7a0";
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(rect.x, y);
    pen.lineTo(x - CURSOR_GAP, y);
    pen.moveTo(x + CURSOR_GAP, y);
    pen.lineTo(rect.x + rect.width, y);
    pen.moveTo(x, rect.y);
    pen.lineTo(x, y - CURSOR_GAP);
    pen.moveTo(x, y + CURSOR_GAP);
    pen.lineTo(x, rect.y + rect.height);
    pen.stroke();
  }

  private drawFrame(plane: Plane, rect: Rect, active: boolean, focused: boolean): void {
    const { pen } = this;
    pen.strokeStyle = focused ? FOCUS : active ? "#4fc3c780" : "#ffffff1c";
    pen.lineWidth = focused ? 2 : 1;
    pen.strokeRect(rect.x + 1, rect.y + 1, rect.width - 2, rect.height - 2);
    const [left, right, top, bottom] = LETTERS[plane];
    const [x, y] = [rect.x + rect.width / 2, rect.y + rect.height / 2];
    pen.font = "600 12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    this.write(left, rect.x + 8, y, "left");
    this.write(right, rect.x + rect.width - SLIDER, y, "right");
    this.write(top, x, rect.y + 13, "center");
    this.write(bottom, x, rect.y + rect.height - 13, "center");
    const axis = normalAxis(this.viewer.orientation, plane);
    const slice = `${this.viewer.cursor[axis]! + 1} / ${this.viewer.orientation.shape[axis]}`;
    if (rect.width < NARROW) {
      this.write(plane, rect.x + 8, rect.y + 13, "left");
      this.write(slice, rect.x + 8, rect.y + 29, "left");
    } else this.write(`${plane}  ${slice}`, rect.x + 8, rect.y + 13, "left");
  }

  private drawLine(line: Line, place: Projector, affine: number[][], colour: string): void {
    const { pen } = this;
    const [a, b] = [place(line.from), place(line.to)];
    for (const [ink, width] of [["#000000c0", 4], [colour, 1.5]] as const) {
      pen.strokeStyle = ink;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(a.x, a.y);
      pen.lineTo(b.x, b.y);
      for (const { x, y } of [a, b]) {
        pen.moveTo(x + 3, y);
        pen.arc(x, y, 3, 0, 2 * Math.PI);
      }
      pen.stroke();
    }
    pen.font = "600 12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const right = a.x > b.x ? a : b;
    this.write(`${lengthMm(affine, line).toFixed(1)} mm`, right.x + 8, right.y, "left", colour);
  }

  private write(text: string, x: number, y: number, align: CanvasTextAlign, colour = "#b9c7d2"): void {
    const { pen } = this;
    pen.textAlign = align;
    pen.lineWidth = 3;
    pen.strokeStyle = "#000000b0";
    pen.strokeText(text, x, y);
    pen.fillStyle = colour;
    pen.fillText(text, x, y);
  }

  private drawPrompt(prompt: Prompt, axis: number, depth: number, place: Projector, colour: string): void {
    if (prompt.kind === "point") {
      if (Math.round(prompt.index[axis]!) === depth) this.drawPoint(place(prompt.index), prompt.positive);
    } else if (prompt.kind === "box") {
      if (within(prompt.low, prompt.high, axis, depth)) this.drawBox(prompt.low, prompt.high, place, colour, []);
    } else this.drawStroke(prompt.voxels, axis, depth, place, prompt.positive);
  }

  private drawDraft(draft: Draft, axis: number, depth: number, place: Projector): void {
    if (draft.kind === "scribble") return this.drawStroke(draft.voxels, axis, depth, place, draft.positive);
    const low = draft.from.map((v, n) => Math.min(v, draft.to[n] as number)) as Index;
    const high = draft.from.map((v, n) => Math.max(v, draft.to[n] as number)) as Index;
    if (within(low, high, axis, depth)) this.drawBox(low, high, place, FOCUS, [6, 4]);
  }

  // The part of this slice that the stroke covers: discs, or sections through balls.
  private drawBrush({ stroke, radius_mm, axis: own, add }: Drawn & { kind: "brush" }, axis: number, depth: number, place: Projector, colour: string): void {
    if (own !== null && (own !== axis || Math.round(stroke[0]![axis]!) !== depth)) return;
    const { pen, viewer } = this;
    const { spacing_mm, mmPerPixel } = viewer.tiles;
    const reach = (point: Index) => {
      const away = own === null ? (point[axis]! - depth) * spacing_mm[axis]! : 0;
      return Math.sqrt(Math.max(radius_mm ** 2 - away ** 2, 0)) / mmPerPixel;
    };
    pen.save();
    pen.globalAlpha = 0.45;
    pen.strokeStyle = add ? colour : REMOVE;
    [pen.lineCap, pen.lineJoin] = ["round", "round"];
    const points = stroke.map((point) => ({ ...place(point), width: 2 * reach(point) })).filter(({ width }) => width > 0);
    const even = points.every(({ width }) => width === points[0]!.width);
    if (even && points.length) {
      pen.lineWidth = points[0]!.width; // one path, so that it does not darken where it crosses itself
      pen.beginPath();
      pen.moveTo(points[0]!.x, points[0]!.y);
      for (const { x, y } of points) pen.lineTo(x, y);
      pen.stroke();
    } else {
      pen.beginPath();
      for (const { x, y, width } of points) {
        pen.moveTo(x + width / 2, y);
        pen.arc(x, y, width / 2, 0, 2 * Math.PI);
      }
      pen.fillStyle = pen.strokeStyle;
      pen.fill();
    }
    pen.restore();
  }

  private drawLasso({ polygon, axis: own, add, slices }: Drawn & { kind: "lasso" }, axis: number, depth: number, place: Projector, colour: string): void {
    const half = ((slices ?? 1) - 1) / 2;
    if (own !== axis || Math.abs(Math.round(polygon[0]![axis]!) - depth) > half) return;
    const { pen } = this;
    pen.save();
    pen.beginPath();
    for (const { x, y } of polygon.map(place)) pen.lineTo(x, y);
    pen.closePath();
    pen.fillStyle = pen.strokeStyle = add ? colour : REMOVE;
    pen.lineWidth = 1.5;
    pen.stroke();
    pen.globalAlpha = 0.3;
    pen.fill("evenodd");
    pen.restore();
  }

  private drawTip({ at, radius_mm }: BrushTip, place: Projector): void {
    const { pen } = this;
    const { x, y } = place(at);
    for (const [colour, width] of [["#000000a0", 3], ["#ffffff", 1]] as const) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.arc(x, y, radius_mm / this.viewer.tiles.mmPerPixel, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  private drawPoint({ x, y }: Place, positive: boolean): void {
    const { pen } = this;
    for (const [colour, width] of [["#000000c0", 4], [positive ? ADD : REMOVE, 2]] as const) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.arc(x, y, RADIUS, 0, 2 * Math.PI);
      pen.moveTo(x - 3, y);
      pen.lineTo(x + 3, y);
      if (positive) {
        pen.moveTo(x, y - 3);
        pen.lineTo(x, y + 3);
      }
      pen.stroke();
    }
  }

  private drawBox(low: Index, high: Index, place: Projector, colour: string, dash: number[]): void {
    const a = place(low.map((v) => v - 0.5));
    const b = place(high.map((v) => v + 0.5));
    this.pen.strokeStyle = colour;
    this.pen.lineWidth = 1.5;
    this.pen.setLineDash(dash);
    this.pen.strokeRect(Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(a.x - b.x), Math.abs(a.y - b.y));
    this.pen.setLineDash([]);
  }

  private drawStroke(voxels: Index[], axis: number, depth: number, place: Projector, positive: boolean): void {
    this.pen.fillStyle = positive ? ADD : REMOVE;
    for (const voxel of voxels) {
      if (voxel[axis] !== depth) continue;
      const { x, y } = place(voxel);
      this.pen.beginPath();
      this.pen.arc(x, y, 2.5, 0, 2 * Math.PI);
      this.pen.fill();
    }
  }
}

type Projector = (index: readonly number[]) => Place;

function within(low: Index, high: Index, axis: number, depth: number): boolean {
  return low[axis]! <= depth && depth <= high[axis]!;
}
