// The scan on the screen: the open image, its labels, the cursor; drawn anew when something has changed.
import { cmapper, NVImage, NVMesh } from "@niivue/niivue";
import type { Index } from "../engine/engine";
import { colourOf, labelColours } from "./colours";
import { Drawing } from "./drawing";
import { clamp, fromRas, rasShape, toRas, toWorld, type Orientation } from "./geometry";
import { paste, type Block } from "./labels";
import { extentOf, surfaceOf } from "./surface";
import { Tiles, type Layout, type Rect } from "./tiles";
import type { Window } from "./windowing";

// Without a change for so long the 3D view, which costs most, is drawn again; later where graphics are slow.
const [IDLE_MS, MAX_IDLE_MS] = [150, 1500];
const NO_FILL = 0.004; // an opacity that cannot be seen: NiiVue draws outlines of what it fills

/** How a mask is drawn on the planes. */
export interface MaskStyle {
  opacity: number;
  outline: boolean; // without a filling
}

export interface Scan {
  data: ArrayBuffer; // .nii.gz
  affine: number[][]; // voxel indices to RAS+ mm
  spacing_mm: Index;
}

export class Viewer {
  readonly tiles: Tiles;
  readonly drawing: Drawing;
  /** Called after the planes were drawn; and with the 3D view's place after that was. */
  onDraw: () => void = () => {};
  onRender: (place: Rect) => void = () => {};
  private image: NVImage | null = null;
  private affine: number[][] = [];
  private labels = new Uint8Array(0); // in RAS order, x fastest
  private readonly present = new Set<number>(); // labels that came, some of which may be gone
  private surfacesStale = false;
  private windowStale = false;
  private waiting = 0;
  private idle = 0;
  private renderMs = 0; // that the 3D view took last
  private windowNext = 0; // ms, before which the window is not changed again

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.tiles = new Tiles(() => ({ width: canvas.clientWidth, height: canvas.clientHeight }));
    this.drawing = new Drawing(this.tiles);
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

  /** Begin to draw. Throws Error where the browser cannot. */
  async attach(): Promise<void> {
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("this browser has no WebGL2, which shows the scan: switch on hardware acceleration, or use another");
    }
    this.drawing.drawPanes(false);
    await this.drawing.attachToCanvas(this.canvas);
    // NiiVue computes gradients of each scan and window for shaded renderings, which this page does not use: a plain
    // copy in place of their filters makes opening a scan several times faster.
    this.drawing.blurShader = this.drawing.sobelFirstOrderShader = this.drawing.passThroughShader ?? null;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  get isOpen(): boolean {
    return this.image !== null;
  }

  /**
   * Show another scan, with no labels yet, in the window that is chosen from its lowest intensity (null: NiiVue's own).
   * Throws if it cannot be read or shown.
   */
  async open({ data, affine, spacing_mm }: Scan, choose: (lowest: number) => Window | null): Promise<void> {
    this.close();
    const image = await NVImage.loadFromUrl({ url: "scan.nii.gz", buffer: data, name: "scan.nii.gz", colormap: "gray" });
    // NVImage.dims is in RAS order; the header's is the file's.
    const [, ni, nj, nk] = image.hdr!.dims as [number, number, number, number];
    const limit = this.drawing.uiData.max3D as number;
    if (Math.max(ni, nj, nk) > limit) throw new Error(`this graphics card shows at most ${limit} voxels along an axis`);
    const window = choose(image.global_min ?? 0);
    if (window) [image.cal_min, image.cal_max] = [window.low, window.high];
    this.tiles.open({ shape: [ni, nj, nk], axes: [...image.permRAS!] as Index }, spacing_mm);
    this.affine = affine;
    this.drawing.drawLut = cmapper.makeDrawLut(labelColours());
    this.drawing.addVolume(image);
    this.drawing.createEmptyDrawing();
    this.drawing.clickToSegmentGrowingBitmap = null; // as large as the scan, and not used here
    this.labels = this.drawing.drawBitmap as Uint8Array<ArrayBuffer>;
    this.image = image;
    this.moveTo(this.orientation.shape.map((n) => (n - 1) / 2) as Index);
  }

  close(): void {
    if (!this.image) return;
    this.drawing.closeDrawing();
    this.drawing.removeVolume(this.image);
    this.image = null;
    this.labels = new Uint8Array(0);
    this.present.clear();
    this.dropSurfaces();
    this.draw();
  }

  /** The lowest and highest intensity shown. */
  get window(): Window {
    return { low: this.image?.cal_min ?? 0, high: this.image?.cal_max ?? 0 };
  }

  set window({ low, high }: Window) {
    if (!this.image || !(high > low)) return;
    this.image.cal_min = low;
    this.image.cal_max = high;
    this.windowStale = true;
    this.draw();
  }

  /** What NiiVue takes for the window: between the 2nd and the 98th percentile. */
  get ownWindow(): Window {
    return { low: this.image?.robust_min ?? 0, high: this.image?.robust_max ?? 0 };
  }

  set mask({ opacity, outline }: MaskStyle) {
    this.drawing.drawOpacity = outline && opacity > 0 ? NO_FILL : opacity;
    this.drawing.drawRimOpacity = opacity > 0 ? Math.min(1, opacity + 0.5) : 0; // an opaque outline
    this.draw();
  }

  /** Whether the 3D view shows the body, or the masks' surfaces alone. */
  set body(shown: boolean) {
    this.drawing.body = shown;
    this.draw(true);
  }

  intensity(index: Index): number {
    const image = this.image!;
    const [ni, nj] = this.orientation.shape;
    const raw = image.img![index[0] + ni * (index[1] + nj * index[2])] as number;
    return raw * (image.hdr!.scl_slope || 1) + (image.hdr!.scl_inter || 0);
  }

  labelAt(index: Index): number {
    const [x, y, z] = toRas(this.orientation, index);
    const [width, height] = rasShape(this.orientation);
    return this.labels[(z * height + y) * width + x] ?? 0;
  }

  clearLabels(): void {
    this.labels.fill(0);
    this.present.clear();
    this.surfacesStale = true;
    this.drawing.refreshDrawing(false);
    this.draw();
  }

  /** Take over the labels of one box; nothing else is sent to the graphics card. */
  paste(block: Block): void {
    paste(this.labels, this.orientation, block);
    for (const label of block.values) if (label) this.present.add(label);
    this.surfacesStale = true;
    const { gl } = this.drawing;
    const [x, y, z] = block.box.low;
    const [width, height, depth] = block.box.high.map((h, p) => h - (block.box.low[p] as number)) as Index;
    gl.activeTexture(gl.TEXTURE7); // NiiVue keeps the drawing there
    gl.bindTexture(gl.TEXTURE_3D, this.drawing.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, x, y, z, width, height, depth, gl.RED, gl.UNSIGNED_BYTE, block.values);
    this.draw();
  }

  moveTo(index: Index): void {
    this.tiles.cursor = clamp(index, this.orientation.shape);
    const shape = rasShape(this.orientation);
    const ras = toRas(this.orientation, this.cursor);
    ras.forEach((v, p) => (this.drawing.scene.crosshairPos[p as 0 | 1 | 2] = (v + 0.5) / (shape[p] as number)));
    this.tiles.keepInView();
    this.draw();
  }

  /** Draw before the next frame; the 3D view when nothing has changed for a moment, or at once. */
  draw(rendered = false): void {
    clearTimeout(this.idle);
    if (rendered || this.layout === "render") return this.request(true);
    this.request(false);
    const pause = Math.min(Math.max(IDLE_MS, this.renderMs), MAX_IDLE_MS);
    this.idle = window.setTimeout(() => this.request(true), pause);
  }

  /** Draw everything at once; then the canvas holds the picture until the browser has shown it. */
  drawNow(): void {
    cancelAnimationFrame(this.waiting);
    this.now(true);
  }

  private request(render: boolean): void {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.now(render));
  }

  private now(render: boolean): void {
    const begun = performance.now();
    if (this.windowStale) this.applyWindow();
    const place = render ? this.tiles.rect("render") : null;
    if (place && this.surfacesStale && !this.drawing.body) this.makeSurfaces();
    this.drawing.drawPanes(render);
    this.onDraw();
    if (!place) return;
    this.onRender(place); // reads the picture, so that the time is that of the graphics card
    this.renderMs = performance.now() - begun;
  }

  // NiiVue colours the whole scan anew. Where that takes long, a drag does not wait for it at each of its steps.
  private applyWindow(): void {
    const begun = performance.now();
    if (begun < this.windowNext) return void setTimeout(() => this.draw(), this.windowNext - begun);
    this.windowStale = false;
    this.drawing.updateGLVolume();
    this.windowNext = performance.now() + 2 * (performance.now() - begun);
  }

  private makeSurfaces(): void {
    this.dropSurfaces();
    this.surfacesStale = false;
    const shape = rasShape(this.orientation);
    for (const label of this.present) {
      const box = extentOf(this.labels, shape, label);
      if (box) this.drawing.meshes.push(this.mesh(label, surfaceOf(this.labels, shape, label, box)));
    }
  }

  private mesh(label: number, { points, triangles }: { points: Float32Array; triangles: Uint32Array }): NVMesh {
    const world = new Float32Array(points.length);
    for (let n = 0; n < points.length; n += 3) {
      world.set(toWorld(this.affine, fromRas(this.orientation, [points[n]!, points[n + 1]!, points[n + 2]!])), n);
    }
    const colour = colourOf(label);
    const rgba = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    const mesh = new NVMesh(world, triangles, `object ${label}`, new Uint8Array([...rgba, 255]), 1, true, this.drawing.gl);
    mesh.updateMesh(this.drawing.gl);
    return mesh;
  }

  private dropSurfaces(): void {
    for (const mesh of this.drawing.meshes.splice(0)) mesh.unloadMesh(this.drawing.gl);
    this.surfacesStale = true;
  }
}
