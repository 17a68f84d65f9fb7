// The view of the scan: the scale and centre of the planes, the rotation and zoom of the 3D view.
import type { Plane } from "./geometry";

const MAX_ZOOM = 20;
const [MIN_APPROACH, MAX_APPROACH] = [0.5, 4];

/** The axes (RAS) that run along a plane's sides: across the screen, and up. */
export const SIDES: Record<Plane, [across: 0 | 1 | 2, up: 0 | 1 | 2]> = {
  axial: [0, 1],
  coronal: [0, 2],
  sagittal: [1, 2],
};

export interface Size {
  width: number;
  height: number;
}

/**
 * Positions are mm along the scan's own axes in RAS order, from the outer corner of its first voxel. All planes share
 * one scale, so that lengths can be compared; a plane fills its pane, whatever the scan's proportions are.
 */
export class Camera {
  zoom = 1; // 1: the whole scan is shown
  middle: number[] = [0, 0, 0];
  azimuth = 110;
  elevation = 10;
  approach = 1;

  constructor(private extent_mm: readonly number[] = [1, 1, 1]) {
    this.reset();
  }

  /** Show the whole of a scan of this size. */
  open(extent_mm: readonly number[]): void {
    this.extent_mm = extent_mm;
    this.reset();
  }

  reset(): void {
    this.zoom = 1;
    this.middle = this.extent_mm.map((mm) => mm / 2);
  }

  /** Width and height of a pixel in mm, in panes of this size. */
  mmPerPixel(planes: readonly Plane[], { width, height }: Size): number {
    const needed = planes.map((plane) => {
      const [across, up] = SIDES[plane];
      return Math.max(this.extent_mm[across]! / Math.max(width, 1), this.extent_mm[up]! / Math.max(height, 1));
    });
    return Math.max(...needed) / this.zoom;
  }

  /** Zoom; the position `at` stays where it is on the screen. At zoom 1 the whole scan is shown. */
  enlarge(factor: number, at: readonly number[]): void {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), MAX_ZOOM);
    if (zoom === 1) return this.reset();
    this.middle = at.map((mm, axis) => mm + ((this.middle[axis]! - mm) * this.zoom) / zoom);
    this.zoom = zoom;
  }

  /** Pan the planes so that what is at `from` moves to `to`. */
  drag(from: readonly number[], to: readonly number[]): void {
    this.show(this.middle.map((mm, axis) => mm + from[axis]! - to[axis]!));
  }

  /** Centre a position on the axes where it is out of view; `seen` is half of what is shown along each. */
  keepInView(at: readonly number[], seen: readonly number[]): void {
    this.show(this.middle.map((mm, axis) => (Math.abs(at[axis]! - mm) > seen[axis]! ? at[axis]! : mm)));
  }

  /** Turn the 3D view by degrees. */
  rotate(azimuth: number, elevation: number): void {
    this.azimuth = (this.azimuth + azimuth) % 360;
    this.elevation = Math.min(Math.max(this.elevation + elevation, -90), 90);
  }

  /** Zoom the 3D view. */
  come(factor: number): void {
    this.approach = Math.min(Math.max(this.approach * factor, MIN_APPROACH), MAX_APPROACH);
  }

  // The centre stays on the scan.
  private show(middle: number[]): void {
    this.middle = middle.map((mm, axis) => Math.min(Math.max(mm, 0), this.extent_mm[axis]!));
  }
}
