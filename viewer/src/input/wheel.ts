// The wheel and the trackpad at a sane speed: what a wheel event reports depends on device, system and browser.

type Turn = Pick<WheelEvent, "deltaY" | "deltaMode">;

const PIXELS_PER_LINE = 33; // where a notch of the wheel is reported as three lines
const PIXELS_PER_PAGE = 300;
const NOTCH = 100; // pixels of one notch of a mouse's wheel: one slice
const REST_MS = 250; // after a pause this long the first movement counts at once
const MAX_ZOOM_PIXELS = 30; // of one event: a pinch reports a few, a notch with Ctrl a hundred
const ZOOM_PER_PIXEL = 0.0075;

function pixelsOf({ deltaY, deltaMode }: Turn): number {
  return deltaY * ([1, PIXELS_PER_LINE, PIXELS_PER_PAGE][deltaMode] ?? 1);
}

/** The zoom factor of a turn with Ctrl; browsers report a pinch on a trackpad as one, too. */
export function zoomOf(turn: Turn): number {
  const pixels = Math.min(Math.max(pixelsOf(turn), -MAX_ZOOM_PIXELS), MAX_ZOOM_PIXELS);
  return Math.exp(-pixels * ZOOM_PER_PIXEL);
}

/** Makes turns into whole slices: a notch is one, and a trackpad's small movements add up. */
export class Wheel {
  private rest = 0; // pixels that do not make a slice yet
  private last = -Infinity; // ms

  /** Slices to move by, positive when the wheel is turned away from the user; `now` in ms. */
  slices(turn: Turn, now: number): number {
    const pixels = -pixelsOf(turn);
    if (pixels === 0) return 0;
    const rested = now - this.last > REST_MS;
    this.last = now;
    if (rested || Math.sign(pixels) !== Math.sign(this.rest)) this.rest = 0;
    if (Math.abs(pixels) >= NOTCH * 0.9) {
      this.rest = 0;
      return Math.round(pixels / (NOTCH * 1.2)) || Math.sign(pixels); // a notch in Chrome is 100 to 120
    }
    if (rested) return Math.sign(pixels);
    this.rest += pixels;
    const whole = Math.trunc(this.rest / NOTCH) + 0; // no -0
    this.rest -= whole * NOTCH;
    return whole;
  }
}
