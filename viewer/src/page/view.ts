// How the scan is displayed: window, mask, layout, body; set by the panel, by keys and by drags.
import type { Layout } from "../stage/tiles";
import type { Viewer } from "../stage/viewer";
import type { Window } from "../stage/windowing";

const FIRST_OPACITY = 0.4;

export class View {
  opacity = FIRST_OPACITY;
  outline = false;
  body = true;
  diameters = true;
  private shown = FIRST_OPACITY; // before the mask was hidden

  /** `changed` is called when a setting changes, `relaid` when the layout does. */
  constructor(
    private readonly viewer: Viewer,
    private readonly changed: () => void,
    private readonly relaid: (layout: Layout) => void,
  ) {}

  get window(): Window {
    return this.viewer.window;
  }

  setWindow(low: number, high: number): void {
    this.viewer.window = { low, high };
    this.changed();
  }

  autoWindow(): void {
    const { low, high } = this.viewer.ownWindow;
    this.setWindow(low, high);
  }

  setOpacity(fraction: number): void {
    this.opacity = Math.min(Math.max(fraction, 0), 1);
    if (this.opacity > 0) this.shown = this.opacity;
    this.restyle();
  }

  toggleMask(): void {
    this.setOpacity(this.opacity > 0 ? 0 : this.shown);
  }

  setOutline(outline: boolean): void {
    this.outline = outline;
    this.restyle();
  }

  setBody(shown: boolean): void {
    this.body = shown;
    this.viewer.body = shown;
    this.changed();
  }

  setDiameters(shown: boolean): void {
    this.diameters = shown;
    this.viewer.draw();
    this.changed();
  }

  get layout(): Layout {
    return this.viewer.layout;
  }

  setLayout(layout: Layout): void {
    this.viewer.layout = layout;
    this.relaid(layout);
    this.changed();
  }

  /** Show the whole scan in the planes. */
  fit(): void {
    this.viewer.tiles.camera.reset();
    this.viewer.draw();
  }

  private restyle(): void {
    this.viewer.mask = { opacity: this.opacity, outline: this.outline };
    this.changed();
  }
}
