// The work on one scan: open, prompt, undo; resume after a reload, a lost connection or a restart of the engine.
import { EngineError, type Box, type Busy, type Engine, type Loading, type Prompt, type Slice, type Source, type State, type Step, type StepResult } from "../engine/engine";
import { isEmpty } from "../stage/geometry";
import { Voxels } from "../stage/voxels";

/** `asleep`: the engine closed a session that was not used for long; the next step wakes it. */
export type Connection = "none" | "connected" | "lost" | "asleep";

/** What the page does on each event. */
export interface Listener {
  /** A scan is open; its coarse slices have arrived. */
  scan(voxels: Voxels, state: State): Promise<void>;
  /** More voxels have arrived. */
  arrived(voxels: Voxels): void;
  /** The state has changed; null: no scan is open, or another one is replacing it. */
  showState(state: State | null): void;
  labels(box: Box, values: Uint8Array): void;
  clear(): void;
  result(result: StepResult, step: Step): void;
  busy(busy: Busy | null, cancel?: () => void): void;
  connection(connection: Connection): void;
  failed(error: unknown): void;
}

const SLOW: Step["kind"][] = ["prompt", "delete prompt", "undo", "redo", "rules"]; // the model may have to run
const PAUSES_S = [0.5, 1, 2, 4, 5]; // between attempts to reach the engine again; the last one repeats

export class Work {
  state: State | null = null;
  connection: Connection = "none";
  private queue: Promise<unknown> = Promise.resolve();
  private unanswered = 0;
  private loading: AbortController | null = null;
  private watching = new AbortController();
  private filling = new AbortController();

  constructor(
    private readonly engine: Engine,
    private readonly page: Listener,
  ) {}

  /** Open a scan. The previous session stays in the engine and can be resumed. Does nothing while one is opening. */
  open(source: Source, name?: string): Promise<void> {
    return this.load(async (loading) => {
      loading.progress("Opening the scan", null); // at once: an engine that is still starting says nothing yet
      await this.show(await this.engine.open(source, name, loading), loading);
    });
  }

  /** Resume a session. Throws EngineError if it does not exist. */
  resume(id: string): Promise<void> {
    return this.load(async (loading) => {
      loading.progress("Bringing your work back", null);
      const state = await this.engine.state(id);
      await this.show(state, loading);
    });
  }

  prompt = (...prompts: Prompt[]) => this.step({ kind: "prompt", prompts });
  select = (number: number) => this.step({ kind: "select", number });

  /** Take a step, after those before it: each result changes the labels that the last one left. */
  step(step: Step, loading?: Loading): Promise<void> {
    const next = this.queue.then(() => this.take(step, loading)).catch((error: unknown) => {
      if (!loading?.signal.aborted) this.page.failed(error);
    });
    this.queue = next;
    return next;
  }

  /** Resolves when every requested step has been answered. */
  settled = () => this.queue.then(() => {});

  /** Load a mask into the current object: a slow step, which can be cancelled while the mask is sent. */
  loadMask = (source: Source) => this.load((loading) => this.step({ kind: "mask", source }, loading));

  /** Stop watching; the session stays in the engine. */
  leave(): void {
    this.watching.abort();
    this.filling.abort();
    this.state = null;
    this.become("none");
    this.page.showState(null);
  }

  // The open scan stays until the new one has arrived; cancelling leaves it as it is.
  private async load(act: (loading: Loading) => Promise<void>): Promise<void> {
    if (this.loading) return;
    const control = new AbortController();
    this.loading = control;
    const progress = (stage: string, fraction: number | null) => {
      if (!control.signal.aborted) this.page.busy({ stage, fraction }, () => control.abort());
    };
    try {
      await act({ signal: control.signal, progress });
    } catch (error) {
      if (!control.signal.aborted) throw error;
    } finally {
      this.loading = null;
      this.page.busy(this.state?.busy ?? null);
    }
  }

  private async show(state: State, loading: Loading): Promise<void> {
    const filling = new AbortController();
    loading.signal.addEventListener("abort", () => filling.abort(loading.signal.reason));
    loading.progress("Loading the scan", 0);
    const { type, coarse, slices } = await this.engine.voxels(state.id, 0, filling.signal);
    const voxels = new Voxels(type, state.shape);
    while (voxels.count < coarse) {
      const { done, value } = await slices.next();
      if (done) break;
      voxels.put(value);
      loading.progress("Loading the scan", voxels.count / coarse);
    }
    loading.signal.throwIfAborted();
    this.leave();
    this.filling = filling;
    this.page.busy({ stage: "Drawing the scan", fraction: null });
    await this.page.scan(voxels, state);
    this.accept(state);
    this.wake(state.id);
    if (state.objects.some(({ prompts, volume_ml }) => prompts.length || volume_ml)) await this.reload();
    if (!voxels.isComplete) void this.fill(state.id, voxels, slices, filling.signal);
  }

  // The remaining slices arrive while the user works; a stream that breaks off is resumed.
  private async fill(id: string, voxels: Voxels, slices: AsyncGenerator<Slice>, signal: AbortSignal): Promise<void> {
    for (let failures = 0; ; failures++) {
      try {
        for await (const slice of slices) {
          if (signal.aborted) return;
          voxels.put(slice);
          failures = 0;
          this.page.arrived(voxels);
        }
        if (voxels.isComplete) return;
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof EngineError && error.passing)) return this.page.failed(error);
      }
      await pause(PAUSES_S[Math.min(failures, PAUSES_S.length - 1)] as number);
      slices = this.slices(id, voxels.count, signal);
    }
  }

  private async *slices(id: string, from: number, signal: AbortSignal): AsyncGenerator<Slice> {
    yield* (await this.engine.voxels(id, from, signal)).slices;
  }

  private wake(id: string): void {
    this.become("connected");
    this.watching = new AbortController();
    void this.watch(id, this.watching.signal);
  }

  private async take(step: Step, loading?: Loading): Promise<void> {
    const before = this.state;
    if (!before) return;
    if (SLOW.includes(step.kind)) this.busy({ stage: "Segmenting", fraction: null });
    this.unanswered++;
    try {
      const result = await this.engine.step(before.id, step, loading);
      if (this.connection === "asleep") this.wake(before.id);
      if (this.state?.id !== result.id) return; // another scan was opened meanwhile
      const missed = result.revision > before.revision + 1; // somebody else works on the same session
      if (missed) await this.reload();
      else this.draw(result);
      this.accept(result);
      this.page.result(result, step);
    } finally {
      if (!--this.unanswered) this.busy(null);
    }
  }

  /** Fetch and draw all labels again. */
  private async reload(): Promise<void> {
    const result = await this.engine.labels(this.state!.id);
    this.page.clear();
    this.draw(result);
    this.accept(result);
    this.busy(result.busy);
  }

  private draw({ changed, labels }: StepResult): void {
    if (!isEmpty(changed)) this.page.labels(changed, labels);
  }

  private accept(state: State): void {
    this.state = state;
    this.page.showState(state);
  }

  // While a scan is loading, its progress is shown instead.
  private busy(busy: Busy | null): void {
    if (!this.loading) this.page.busy(busy);
  }

  private become(connection: Connection): void {
    if (this.connection === connection) return;
    this.connection = connection;
    this.page.connection(connection);
  }

  // Watching keeps the session alive and tells when the engine is gone; it is then retried until it is back.
  private async watch(id: string, signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        if (failures) await this.rejoin(id);
        for await (const notice of this.engine.watch(id, signal)) {
          failures = 0;
          if (notice.kind === "progress") this.busy(notice.busy);
          if (notice.kind === "idle") this.rest(id, notice.revision);
          if (notice.kind === "closed") return this.become("asleep");
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof EngineError && !error.passing) return this.lose(error);
      }
      if (signal.aborted) return;
      this.become("lost");
      await pause(PAUSES_S[Math.min(failures, PAUSES_S.length - 1)] as number);
    }
  }

  // The engine has finished: a step that somebody else took is shown here too.
  private rest(id: string, revision: number | null): void {
    if (this.unanswered) return;
    this.busy(null);
    const catchUp = async () => {
      if (revision !== null && this.state?.id === id && revision > this.state.revision) await this.reload();
    };
    this.queue = this.queue.then(catchUp).catch(() => {}); // watching notices an engine out of reach
  }

  // The scan is still on the page; the labels may be older or newer than the engine's.
  private async rejoin(id: string): Promise<void> {
    const state = await this.engine.state(id);
    const stale = this.connection === "lost";
    this.state = state;
    if (stale) await this.reload();
    this.become("connected");
  }

  private lose(error: EngineError): void {
    this.become("none"); // it will not come back
    this.page.failed(error);
  }
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}
