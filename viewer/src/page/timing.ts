// How long a click takes, from the press to the mask on the screen, for browser tools and tests to read.

const [ASKED, CLICK] = ["voxsam:asked", "voxsam:click"];

export function markAsked(): void {
  performance.clearMarks(ASKED);
  performance.mark(ASKED);
}

/** The answer has been applied; it is on the screen after the next frame. */
export function markAnswered(): void {
  if (!performance.getEntriesByName(ASKED).length) return;
  requestAnimationFrame(() => {
    performance.measure(CLICK, ASKED);
    performance.clearMarks(ASKED);
  });
}

const REST_MS = 30_000; // the most of a pause that counts: a longer one is not work on the scan
const SIGNS = ["pointerdown", "pointermove", "wheel", "keydown"];

/** How long somebody has worked on a scan, without pauses; counting continues after a reload. */
export class ActiveTime {
  private session = "";
  private spent = 0;
  private last = 0;

  constructor(
    private readonly clock: () => number = () => performance.now(),
    signs: Pick<EventTarget, "addEventListener"> = window,
    private readonly kept: Pick<Storage, "getItem" | "setItem"> = sessionStorage,
  ) {
    for (const sign of SIGNS) signs.addEventListener(sign, () => this.note(), { passive: true });
  }

  /** A scan was opened. */
  begin(session: string): void {
    if (session === this.session) return;
    this.session = session;
    const [of, spent] = (this.kept.getItem("voxsam-time") ?? "").split(" ");
    this.spent = of === session ? Number(spent) : 0;
    this.last = this.clock();
  }

  get seconds(): number {
    this.note();
    return Math.round(this.spent / 100) / 10;
  }

  private note(): void {
    const now = this.clock();
    this.spent += Math.min(now - this.last, REST_MS);
    this.last = now;
    if (this.session) this.kept.setItem("voxsam-time", `${this.session} ${this.spent}`);
  }
}
