// The work on one scan: opened, prompted, undone; brought back after a reload, a lost connection or a new engine.
import { EngineError, type Box, type Busy, type Engine, type Loading, type Prompt, type Source, type State, type Step, type StepResult } from "../engine/engine";
import { isEmpty } from "../stage/geometry";

/** `asleep`: the engine closed a session that nobody used for long; the next step wakes it. */
export type Connection = "none" | "connected" | "lost" | "asleep";

/** What the page does when something has happened. */
export interface Listener {
  scan(scan: ArrayBuffer, state: State): Promise<void>;
  /** The state is another; null: no scan is open, or another one takes its place. */
  showState(state: State | null): void;
  labels(box: Box, values: Uint8Array): void;
  clear(): void;
  result(result: StepResult): void;
  busy(busy: Busy | null, cancel?: () => void): void;
  connection(connection: Connection): void;
  failed(error: unknown): void;
}

const PAUSES_S = [0.5, 1, 2, 4, 5]; // between attempts to reach the engine again; the last one goes on

export class Work {
  state: State | null = null;
  connection: Connection = "none";
  private queue: Promise<unknown> = Promise.resolve();
  private unanswered = 0;
  private loading: AbortController | null = null;
  private watching = new AbortController();

  constructor(
    private readonly engine: Engine,
    private readonly page: Listener,
  ) {}

  /** Open a scan. What was open before stays in the engine and can be come back to. Does nothing if one is opening. */
  open(source: Source, name?: string): Promise<void> {
    return this.load(async (loading) => this.show(await this.engine.open(source, name, loading), loading));
  }

  /** Come back to a session. Throws EngineError if there is none. */
  resume(id: string): Promise<void> {
    return this.load(async (loading) => {
      loading.progress("Bringing your work back", null);
      const state = await this.engine.state(id);
      await this.show(state, loading);
      if (state.objects.some(({ prompts }) => prompts.length)) await this.reload();
    });
  }

  prompt = (prompt: Prompt) => this.step({ kind: "prompt", prompts: [prompt] });
  select = (number: number) => this.step({ kind: "select", number });

  /** One step after another: each result changes the labels that the one before has left. */
  step(step: Step): Promise<void> {
    const next = this.queue.then(() => this.take(step)).catch((error: unknown) => this.page.failed(error));
    this.queue = next;
    return next;
  }

  /** Stop watching; the session stays in the engine. */
  leave(): void {
    this.watching.abort();
    this.state = null;
    this.become("none");
    this.page.showState(null);
  }

  // What was open stays open until the new scan is here; cancelling leaves it as it is.
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
    const scan = await this.engine.scan(state.id, loading);
    loading.signal.throwIfAborted();
    this.leave();
    this.page.busy({ stage: "Drawing the scan", fraction: null });
    await this.page.scan(scan, state);
    this.accept(state);
    this.wake(state.id);
  }

  private wake(id: string): void {
    this.become("connected");
    this.watching = new AbortController();
    void this.watch(id, this.watching.signal);
  }

  private async take(step: Step): Promise<void> {
    const before = this.state;
    if (!before) return;
    this.busy({ stage: "Segmenting", fraction: null });
    this.unanswered++;
    try {
      const result = await this.engine.step(before.id, step);
      if (this.connection === "asleep") this.wake(before.id);
      if (this.state?.id !== result.id) return; // another scan was opened meanwhile
      const missed = result.revision > before.revision + 1; // somebody else works on the same session
      if (missed) await this.reload();
      else this.draw(result);
      this.accept(result);
      this.page.result(result);
    } finally {
      if (!--this.unanswered) this.busy(null);
    }
  }

  /** All labels anew. */
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

  // While a scan is loading that is what is being done.
  private busy(busy: Busy | null): void {
    if (!this.loading) this.page.busy(busy);
  }

  private become(connection: Connection): void {
    if (this.connection === connection) return;
    this.connection = connection;
    this.page.connection(connection);
  }

  // To watch keeps the session alive and says when the engine goes; then it is asked for until it is back.
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

  // Nothing is being done any more: if it was done for somebody else, it is shown here too.
  private rest(id: string, revision: number | null): void {
    if (this.unanswered) return;
    this.busy(null);
    const catchUp = async () => {
      if (revision !== null && this.state?.id === id && revision > this.state.revision) await this.reload();
    };
    this.queue = this.queue.then(catchUp).catch(() => {}); // an engine out of reach is noticed by watching it
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
