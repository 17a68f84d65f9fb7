// The scan on the screen: NiiVue draws three planes, the 3D view and the labels.
import { cmapper, Niivue, NVImage } from "@niivue/niivue";
import { Camera } from "./camera";
import { labelColours } from "./colours";
import { clamp, rasShape, toRas, type Orientation } from "./geometry";
import { paste, type Block } from "./labels";
import { Tiles, tiling, type Layout, type Rect } from "./tiles";
import type { Index } from "./types";

// Without a change for so long the 3D view, which costs most, is drawn again; later where graphics are slow.
const [IDLE_MS, LONGEST_IDLE_MS] = [150, 1500];

export interface Window {
  low: number;
  high: number;
}

export class Viewer {
  readonly niivue: Niivue;
  readonly tiles: Tiles;
  readonly camera: Camera;
  layout: Layout = "all";
  cursor: Index = [0, 0, 0];
  /** Called after the planes were drawn; and with the 3D tile after that was. */
  onDraw: () => void = () => {};
  onRender: (tile: Rect) => void = () => {};
  private image: NVImage | null = null;
  private labels = new Uint8Array(0);
  private waiting = 0;
  private idle = 0;
  private renderMs = 0; // that the 3D view took last

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.niivue = new Niivue({
      interactive: false, // the page's own pointer and keys decide what a click means
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isSliceMM: false, // planes along the scan's own axes: what is clicked is a voxel of the file
      isNearestInterpolation: false,
      isOrientationTextVisible: false, // the overlay writes letters and the cursor, sharper
      crosshairWidth: 0,
      backColor: [0, 0, 0, 1],
      loadingText: "",
      logLevel: "silent",
    });
    this.tiles = new Tiles(this.niivue, canvas);
    this.camera = new Camera(this.niivue);
  }

  get orientation(): Orientation {
    return this.tiles.orientation;
  }

  /** Begin to draw. Throws Error where the browser cannot. */
  async attach(): Promise<void> {
    if (!document.createElement("canvas").getContext("webgl2")) {
      throw new Error("this browser has no WebGL2, which shows the scan: switch on hardware acceleration, or use another");
    }
    this.niivue.customLayout = tiling(this.layout, false);
    await this.niivue.attachToCanvas(this.canvas);
    this.niivue.drawRimOpacity = 1; // an opaque outline round a translucent mask
    // NiiVue computes gradients of each scan and window for shaded renderings, which this page does not use: a plain
    // copy in place of their filters makes opening a scan several times faster.
    this.niivue.blurShader = this.niivue.sobelFirstOrderShader = this.niivue.passThroughShader ?? null;
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  get isOpen(): boolean {
    return this.image !== null;
  }

  /**
   * Show another scan (.nii.gz), with no labels yet, in the window that is chosen from its lowest intensity (null:
   * NiiVue's own). Throws if it cannot be read or shown.
   */
  async open(scan: ArrayBuffer, choose: (lowest: number) => Window | null): Promise<void> {
    this.close();
    const image = await NVImage.loadFromUrl({ url: "scan.nii.gz", buffer: scan, name: "scan.nii.gz", colormap: "gray" });
    // NVImage.dims is in RAS order; the header's is the file's.
    const [, ni, nj, nk] = image.hdr!.dims as [number, number, number, number];
    const most = this.niivue.uiData.max3D as number;
    if (Math.max(ni, nj, nk) > most) throw new Error(`this graphics card shows at most ${most} voxels along an axis`);
    const window = choose(image.global_min ?? 0);
    if (window) [image.cal_min, image.cal_max] = [window.low, window.high];
    this.niivue.drawLut = cmapper.makeDrawLut(labelColours());
    this.niivue.addVolume(image);
    this.niivue.createEmptyDrawing();
    this.niivue.clickToSegmentGrowingBitmap = null; // as large as the scan, and not used here
    this.labels = this.niivue.drawBitmap as Uint8Array<ArrayBuffer>;
    this.tiles.orientation = { shape: [ni, nj, nk], axes: [...image.permRAS!] as Index };
    this.image = image;
    this.camera.reset();
    this.moveTo(this.orientation.shape.map((n) => (n - 1) / 2) as Index);
  }

  close(): void {
    if (!this.image) return;
    this.niivue.closeDrawing();
    this.niivue.removeVolume(this.image);
    this.image = null;
    this.labels = new Uint8Array(0);
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
    this.niivue.updateGLVolume();
    this.draw();
  }

  /** What NiiVue takes for the window: between the 2nd and the 98th percentile. */
  get ownWindow(): Window {
    return { low: this.image?.robust_min ?? 0, high: this.image?.robust_max ?? 0 };
  }

  set opacity(value: number) {
    this.niivue.drawOpacity = value;
    this.niivue.drawRimOpacity = value > 0 ? Math.min(1, value + 0.5) : 0;
    this.draw();
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
    this.niivue.refreshDrawing(false);
    this.draw();
  }

  /** Take over the labels of one box; nothing else is sent to the graphics card. */
  paste(block: Block): void {
    paste(this.labels, this.orientation, block);
    const { gl } = this.niivue;
    const [x, y, z] = block.box.low;
    const [width, height, depth] = block.box.high.map((h, p) => h - (block.box.low[p] as number)) as Index;
    gl.activeTexture(gl.TEXTURE7); // NiiVue keeps the drawing there
    gl.bindTexture(gl.TEXTURE_3D, this.niivue.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, x, y, z, width, height, depth, gl.RED, gl.UNSIGNED_BYTE, block.values);
    this.draw();
  }

  moveTo(index: Index): void {
    this.cursor = clamp(index, this.orientation.shape);
    const shape = rasShape(this.orientation);
    const ras = toRas(this.orientation, this.cursor);
    ras.forEach((v, p) => (this.niivue.scene.crosshairPos[p as 0 | 1 | 2] = (v + 0.5) / (shape[p] as number)));
    this.camera.keepInView();
    this.draw();
  }

  /** Draw before the next frame; the 3D view when nothing has changed for a moment, or at once. */
  draw(rendered = false): void {
    clearTimeout(this.idle);
    if (rendered || this.layout === "render") return this.request(true);
    this.request(false);
    const pause = Math.min(Math.max(IDLE_MS, this.renderMs), LONGEST_IDLE_MS);
    this.idle = window.setTimeout(() => this.request(true), pause);
  }

  private request(render: boolean): void {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.now(render));
  }

  private now(render: boolean): void {
    const begun = performance.now();
    this.niivue.setCustomLayout(tiling(this.layout, render)); // draws
    const tile = render ? this.tiles.rect("render") : null;
    this.onDraw();
    // What NiiVue draws by itself, for a new size or window, is the planes.
    this.niivue.customLayout = tiling(this.layout, false);
    if (!tile) return;
    this.onRender(tile); // reads the picture, so that the time is that of the graphics card
    this.renderMs = performance.now() - begun;
  }
}
