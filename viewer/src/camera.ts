// From where the scan is looked at: planes enlarged and moved, the 3D view turned.
import type { Niivue } from "@niivue/niivue";

const MOST_ZOOM = 12;
const AXES = [0, 1, 2] as const;

export class Camera {
  constructor(private readonly niivue: Niivue) {}

  get zoomed(): number {
    return this.niivue.scene.pan2Dxyzmm[3] as number;
  }

  reset(): void {
    this.look([0, 0, 0], 1);
  }

  /** Enlarge the planes; the cursor stays where it is. At 1 the whole scan is shown. */
  zoom(factor: number): void {
    const zoom = Math.min(Math.max(this.zoomed * factor, 1), MOST_ZOOM);
    if (zoom === 1) return this.reset();
    const [pan, at] = [this.pan, this.cursor];
    // NiiVue shows (extent - pan) / zoom: the cursor stays where cursor × zoom + pan stays.
    this.look(AXES.map((axis) => pan[axis]! + at[axis]! * (this.zoomed - zoom)), zoom);
  }

  /** Move the enlarged planes by the way between two places of the scan (texture coordinates). */
  drag(from: readonly number[], to: readonly number[]): void {
    if (this.zoomed === 1) return;
    const [a, b, pan] = [this.mm(from), this.mm(to), this.pan];
    this.look(AXES.map((axis) => pan[axis]! + this.zoomed * (b[axis]! - a[axis]!)), this.zoomed);
  }

  /** If the cursor has left what the enlarged planes show, bring it to their middle. */
  keepInView(): void {
    const [low, high, at, pan] = [this.mm([0, 0, 0]), this.mm([1, 1, 1]), this.cursor, this.pan];
    const seen = (axis: number) => {
      const shown = at[axis]! * this.zoomed + pan[axis]!;
      return low[axis]! <= shown && shown <= high[axis]!;
    };
    if (AXES.every(seen)) return;
    this.look(AXES.map((axis) => (low[axis]! + high[axis]!) / 2 - at[axis]! * this.zoomed), this.zoomed);
  }

  /** Turn the 3D view by degrees. */
  rotate(azimuth: number, elevation: number): void {
    const { scene } = this.niivue;
    scene.renderAzimuth = (scene.renderAzimuth + azimuth) % 360;
    scene.renderElevation = Math.min(Math.max(scene.renderElevation + elevation, -90), 90);
  }

  /** Enlarge the 3D view. */
  approach(factor: number): void {
    const { scene } = this.niivue;
    scene.volScaleMultiplier = Math.min(Math.max(scene.volScaleMultiplier * factor, 0.5), 4);
  }

  private get pan(): number[] {
    return [...this.niivue.scene.pan2Dxyzmm].slice(0, 3);
  }

  private get cursor(): number[] {
    return this.mm(this.niivue.scene.crosshairPos as unknown as number[]);
  }

  // In the millimetres along the scan's own axes in which NiiVue draws its planes.
  private mm(fraction: readonly number[]): number[] {
    return [...this.niivue.frac2mm([...fraction] as never)].slice(0, 3);
  }

  private look(pan: number[], zoom: number): void {
    this.niivue.scene.pan2Dxyzmm = [...pan, zoom] as never;
  }
}
