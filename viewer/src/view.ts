// How the scan is looked at: window, opacity of the mask, layout; set by the panel and by keys.
import type { Panel } from "./panel";
import type { Layout } from "./tiles";
import type { Viewer } from "./viewer";

const FIRST_OPACITY = 0.4;

export class View {
  share = FIRST_OPACITY;
  private shown = FIRST_OPACITY; // before the mask was hidden

  /** `relaid` is called when panes are somewhere else. */
  constructor(
    private readonly viewer: Viewer,
    private readonly panel: Panel,
    private readonly relaid: (layout: Layout) => void,
  ) {}

  window(low: number, high: number): void {
    this.viewer.window = { low, high };
    this.panel.window(low, high);
  }

  autoWindow(): void {
    const { low, high } = this.viewer.ownWindow;
    this.window(low, high);
  }

  opacity(share: number): void {
    this.share = Math.min(Math.max(share, 0), 1);
    if (this.share > 0) this.shown = this.share;
    this.viewer.opacity = this.share;
    this.panel.opacity(this.share);
  }

  toggleMask(): void {
    this.opacity(this.share > 0 ? 0 : this.shown);
  }

  layout(layout: Layout): void {
    this.viewer.layout = layout;
    this.relaid(layout);
    this.panel.layout(layout);
    this.viewer.draw(true);
  }
}
