// NiiVue, drawing what the page's own camera sees: planes that fill their panes at one scale, and 3D with the body or without.
import { Niivue, SLICE_TYPE } from "@niivue/niivue";
import type { Plane } from "./geometry";
import { panesOf, type Pane, type Tiles } from "./tiles";

const SLICE: Record<Pane, SLICE_TYPE> = {
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};
const PLANE_OF = { 0: "axial", 1: "coronal", 2: "sagittal" } as Record<number, Plane>;

export class Drawing extends Niivue {
  /** Whether the 3D view shows the body, or the masks' surfaces alone, if there are any. */
  body = true;

  constructor(private readonly tiles: Tiles) {
    super({
      interactive: false, // the page's own pointer and keys decide what a click means
      dragAndDropEnabled: false,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isSliceMM: false, // planes along the scan's own axes: what is clicked is a voxel of the file
      isNearestInterpolation: false,
      isOrientationTextVisible: false, // the overlay writes letters and the cursor, sharper
      crosshairWidth: 0,
      meshThicknessOn2D: 0, // surfaces are for the 3D view
      backColor: [0, 0, 0, 1],
      loadingText: "",
      logLevel: "silent",
    });
  }

  /** Draw the panes of the layout; without the 3D view if `render` is false. */
  drawPanes(render: boolean): void {
    const { azimuth, elevation, approach } = this.tiles.camera;
    Object.assign(this.scene, { renderAzimuth: azimuth, renderElevation: elevation, volScaleMultiplier: approach });
    this.setCustomLayout(this.layoutOf(render)); // draws
    this.customLayout = this.layoutOf(false); // for what NiiVue draws by itself, after a change of size or window
  }

  private get showsBody(): boolean {
    return this.body || !this.meshes.length;
  }

  private layoutOf(render: boolean) {
    const panes = panesOf(this.tiles.layout);
    return panes
      .filter(({ pane }) => render || pane !== "render" || panes.length === 1)
      .map(({ pane, rect: { x, y, width, height } }) => {
        return { sliceType: SLICE[pane], position: [x, y, width, height] as [number, number, number, number] };
      });
  }

  // What NiiVue would choose itself:

  /** A plane fills its pane. */
  override calculateWidthHeight(_type: number, _scale: number[], width: number, height: number): [number, number] {
    return [width, height];
  }

  /** What a plane shows, in NiiVue's mm along the scan's axes. */
  override screenFieldOfViewExtendedVox(slice = 0) {
    const whole = super.screenFieldOfViewExtendedVox(slice);
    const field = this.tiles.field(PLANE_OF[slice]!);
    if (!field) return whole;
    const [x, y] = [whole.mnMM[0], whole.mnMM[1]];
    const low: [number, number, number] = [x + field.low[0], y + field.low[1], whole.mnMM[2]];
    const high: [number, number, number] = [x + field.high[0], y + field.high[1], whole.mxMM[2]];
    return { ...whole, mnMM: low, mxMM: high, fovMM: high.map((v, n) => v - low[n]!) as typeof low };
  }

  /** Without the body the 3D view turns about the masks, and they fill it. */
  override setPivot3D(): void {
    super.setPivot3D();
    if (this.showsBody) return;
    const ends = [0, 1, 2].map((axis) => {
      const low = Math.min(...this.meshes.map(({ extentsMin }) => (extentsMin as number[])[axis]!));
      return [low, Math.max(...this.meshes.map(({ extentsMax }) => (extentsMax as number[])[axis]!))] as const;
    });
    this.pivot3D = ends.map(([low, high]) => (low + high) / 2) as [number, number, number];
    this.furthestFromPivot = Math.hypot(...ends.map(([low, high]) => high - low)) / 2;
  }

  override drawImage3D(...view: Parameters<Niivue["drawImage3D"]>): void {
    if (this.showsBody) super.drawImage3D(...view);
  }

  override drawMesh3D(...view: Parameters<Niivue["drawMesh3D"]>): void {
    if (!this.showsBody) super.drawMesh3D(...view);
  }
}
