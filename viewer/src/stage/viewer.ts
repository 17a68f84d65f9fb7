// The scan on the screen: its voxels, labels and cursor, redrawn when something has changed.
import type { NVMesh } from "@niivue/niivue";
import type { Box, Index } from "../engine/engine";
import { clamp, orientationOf, type Orientation, type Plane } from "./geometry";
import { paste } from "./labels";
import { Render } from "./render";
import { Slices, type MaskStyle, type ObjectStyle } from "./slices";
import { extentOf, surfaceOf } from "./surface";
import { Tiles, type Layout, type Rect } from "./tiles";
import type { Voxels } from "./voxels";
import type { Window } from "./windowing";

// The 3D view, which costs most, is redrawn after this long without a change; later where graphics are slow.
const [IDLE_MS, MAX_IDLE_MS] = [150, 1500];
const ARRIVAL_MS = 500; // between two redraws of a scan whose slices are still arriving

export interface Scan {
  voxels: Voxels;
  affine: number[][]; // voxel indices to RAS+ mm
  spacing_mm: Index;
}

export class Viewer {
  readonly tiles: Tiles;
  readonly render = new Render();
  /** Called when the planes are to be drawn. */
  onDraw: () => void = () => {};
  private readonly slices: Slices;
  private scan: Scan | null = null;
  private labels = new Uint8Array(0); // i fastest
  private shown: Window = { low: 0, high: 1 };
  private own: Window = { low: 0, high: 1 };
  private readonly surfaces = new Map<number, NVMesh>();
  private readonly stale = new Set<number>(); // labels whose surface is out of date
  private renderStale = false; // the 3D view has not taken over the window yet
  private nextArrival = 0;
  private waiting = 0;
  private idle = 0;
  private renderMs = 0; // how long the 3D view took last

  /** `canvas` is for the planes, `gl` for the 3D view, in an element of its own. */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly gl: HTMLCanvasElement,
  ) {
    this.tiles = new Tiles(() => ({ width: canvas.clientWidth, height: canvas.clientHeight }));
    this.slices = new Slices(this.tiles);
  }

  get orientation(): Orientation {
    return this.tiles.orientation;
  }

  get cursor(): Index {
    return this.tiles.cursor;
  }

  get layout(): Layout {
    return this.tiles.layout;
  }

  set layout(layout: Layout) {
    this.tiles.layout = layout;
    this.tiles.keepInView();
    this.draw(true);
  }

  /** Begin to draw. Throws Error if the browser has no WebGL2. */
  async attach(): Promise<void> {
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("this browser has no WebGL2, which shows the scan: switch on hardware acceleration, or use another");
    }
    this.placeRender();
    await this.render.attach(this.gl);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  get isOpen(): boolean {
    return this.scan !== null;
  }

  /** Show another scan, without labels, in the window that `choose` gives for its lowest intensity (null: its own). */
  async open(scan: Scan, choose: (lowest: number) => Window | null): Promise<void> {
    this.close();
    const { voxels, affine, spacing_mm } = scan;
    const { lowest, window } = voxels.range();
    this.own = window;
    this.shown = choose(lowest) ?? window;
    this.tiles.open(orientationOf(affine, voxels.shape), spacing_mm);
    this.labels = new Uint8Array(voxels.data.length);
    this.scan = scan;
    this.moveTo(voxels.shape.map((n) => (n - 1) / 2) as Index);
    await this.render.open(voxels, affine, spacing_mm, this.shown);
    this.draw();
  }

  /** More of the scan's slices have arrived. */
  arrived(): void {
    const { scan } = this;
    if (!scan) return;
    if (scan.voxels.isComplete) {
      void this.render.open(scan.voxels, scan.affine, scan.spacing_mm, this.shown).then(() => this.draw());
    } else if (performance.now() > this.nextArrival) this.nextArrival = performance.now() + ARRIVAL_MS;
    else return;
    this.draw();
  }

  close(): void {
    if (!this.scan) return;
    this.render.close();
    this.scan = null;
    this.labels = new Uint8Array(0);
    this.dropSurfaces();
    this.slices.forget();
    this.draw();
  }

  /** The lowest and highest intensity shown. */
  get window(): Window {
    return this.shown;
  }

  set window({ low, high }: Window) {
    if (!this.scan || !(high > low)) return;
    this.shown = { low, high };
    this.renderStale = true;
    this.draw();
  }

  /** The scan's own window, without the darkest and the brightest voxels. */
  get ownWindow(): Window {
    return this.own;
  }

  set mask(style: MaskStyle) {
    this.slices.style = style;
    this.draw();
  }

  /** How the objects look, by number. */
  set objects(styles: Map<number, ObjectStyle>) {
    for (const [label, { colour, visible }] of styles) {
      const before = this.slices.styleOf(label);
      if (before.colour !== colour || before.visible !== visible) this.stale.add(label);
    }
    this.slices.change(styles);
    this.draw();
  }

  /** Whether the 3D view shows the body, or the masks' surfaces alone. */
  set body(shown: boolean) {
    this.render.body = shown;
    this.draw(true);
  }

  intensity(index: Index): number {
    return this.scan!.voxels.at(index);
  }

  labelAt([i, j, k]: Index): number {
    const [ni, nj] = this.orientation.shape;
    return this.labels[i + ni * (j + nj * k)] ?? 0;
  }

  clearLabels(): void {
    this.labels.fill(0);
    this.slices.change();
    this.dropSurfaces();
    this.draw();
  }

  /** Replace the labels in a box (i fastest). */
  paste(box: Box, values: Uint8Array): void {
    for (const label of paste(this.labels, this.orientation.shape, box, values)) this.stale.add(label);
    this.slices.change();
    this.draw();
  }

  /** Draw a plane's slice; the pen is clipped to the pane. */
  paint(pen: CanvasRenderingContext2D, plane: Plane, rect: Rect): void {
    if (this.scan) this.slices.draw(pen, plane, rect, this.scan.voxels, this.labels, this.shown);
  }

  moveTo(index: Index): void {
    this.tiles.cursor = clamp(index, this.orientation.shape);
    this.tiles.keepInView();
    this.draw();
  }

  /** Draw before the next frame; the 3D view once nothing has changed for a moment, or with the rest if `rendered`. */
  draw(rendered = false): void {
    clearTimeout(this.idle);
    if (rendered || this.layout === "render") return this.request(true);
    this.request(false);
    const pause = Math.min(Math.max(IDLE_MS, this.renderMs), MAX_IDLE_MS);
    this.idle = window.setTimeout(() => this.request(true), pause);
  }

  /** Draw everything now. The 3D view's picture lasts until the browser has shown it; returns where it lies. */
  drawNow(): Rect | null {
    cancelAnimationFrame(this.waiting);
    this.now(true);
    return this.tiles.rect("render");
  }

  private request(render: boolean): void {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.now(render));
  }

  private now(render: boolean): void {
    this.onDraw();
    if (!this.placeRender() || !render) return;
    const begun = performance.now();
    this.refreshRender();
    this.render.show(this.tiles.camera);
    this.render.gl.finish(); // so that the time includes the graphics card's work
    this.renderMs = performance.now() - begun;
  }

  // Put the 3D view's canvas into its pane; returns whether that is shown.
  private placeRender(): boolean {
    const rect = this.tiles.rect("render");
    const { style } = this.gl.parentElement!;
    style.visibility = rect && this.scan ? "visible" : "hidden"; // not "display": NiiVue needs a size
    if (rect) Object.assign(style, { left: `${rect.x}px`, top: `${rect.y}px`, width: `${rect.width}px`, height: `${rect.height}px` });
    return rect !== null;
  }

  private refreshRender(): void {
    if (!this.scan) return;
    for (const label of this.stale) this.makeSurface(label);
    this.stale.clear();
    if (!this.renderStale) return;
    this.renderStale = false;
    this.render.window = this.shown;
  }

  private makeSurface(label: number): void {
    const before = this.surfaces.get(label);
    if (before) this.render.dropSurface(before);
    this.surfaces.delete(label);
    const { shape } = this.orientation;
    const { colour, visible } = this.slices.styleOf(label);
    const box = visible ? extentOf(this.labels, shape, label) : null;
    if (!box) return;
    const surface = surfaceOf(this.labels, shape, label, box);
    this.surfaces.set(label, this.render.addSurface(`object ${label}`, surface, this.scan!.affine, colour));
  }

  private dropSurfaces(): void {
    for (const mesh of this.surfaces.values()) this.render.dropSurface(mesh);
    this.surfaces.clear();
    this.stale.clear();
  }
}
