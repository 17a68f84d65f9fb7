// Calls between the page and its worker: one asks, the other answers; with progress, cancelling, and errors in words.
import { EngineError, type Loading, type Problem } from "../engine/engine";

/** What both ends of a MessageChannel, a worker and a worker's own scope have in common. */
export interface Port {
  postMessage(message: unknown, transfer?: Transferable[]): void;
  addEventListener(type: "message", listener: (event: MessageEvent) => void): void;
}

/** The functions that may be called, by name. By `Loading` each reports its progress and learns of its cancellation. */
export type Handlers = Record<string, (loading: Loading, ...given: any[]) => Promise<unknown>>;
type Given<F> = F extends (loading: Loading, ...given: infer G) => unknown ? G : never;
type Answer<F> = F extends (...all: never[]) => Promise<infer A> ? A : never;

type Asked = { call: number; name: string; given: unknown[] } | { cancel: number };
type Told = { call: number; answer: unknown } | { call: number; problem: Problem; passing: boolean } | { call: number; stage: string; fraction: number | null };

/** An answer whose memory is transferred, not copied. */
export class Handed<T> {
  constructor(
    readonly answer: T,
    readonly transfer: Transferable[],
  ) {}
}

/** Answer calls through a port from now on; calls made before the handlers are ready wait for them. */
export function answerCalls(port: Port, handlers: Handlers | Promise<Handlers>): void {
  const running = new Map<number, AbortController>();
  Promise.resolve(handlers).catch(() => {}); // each caller gets the error
  port.addEventListener("message", async ({ data }: MessageEvent<Asked>) => {
    if ("cancel" in data) return running.get(data.cancel)?.abort();
    if (!("call" in data)) return;
    const { call, name, given } = data;
    const control = new AbortController();
    running.set(call, control);
    try {
      const progress = (stage: string, fraction: number | null) => port.postMessage({ call, stage, fraction } satisfies Told);
      const found = await (await handlers)[name]!({ signal: control.signal, progress }, ...given);
      if (found instanceof Handed) port.postMessage({ call, answer: found.answer } satisfies Told, found.transfer);
      else port.postMessage({ call, answer: found } satisfies Told);
    } catch (error) {
      const problem = error instanceof EngineError ? error.problem : { message: wordsOf(error) };
      port.postMessage({ call, problem, passing: error instanceof EngineError && error.passing } satisfies Told);
    } finally {
      running.delete(call);
    }
  });
}

// WebAssembly throws numbers when it runs out of memory.
function wordsOf(error: unknown): string {
  if (error instanceof RangeError || typeof error === "number") return "this needs more memory than the tab has: close other tabs, or use voxsam serve";
  return error instanceof Error ? error.message : String(error);
}

interface Waiting {
  resolve(answer: unknown): void;
  reject(error: unknown): void;
  loading: Loading | undefined;
}

/** Calls through a port what `answerCalls` answers at its other end. */
export class Caller<H extends Handlers> {
  private readonly waiting = new Map<number, Waiting>();
  private last = 0;
  private failed: Problem | null = null;

  constructor(private readonly port: Port) {
    port.addEventListener("message", ({ data }: MessageEvent<Told>) => {
      const waiting = this.waiting.get(data.call);
      if (!waiting) return;
      if ("stage" in data) return waiting.loading?.progress(data.stage, data.fraction);
      this.waiting.delete(data.call);
      if ("problem" in data) waiting.reject(new EngineError(data.problem, data.passing));
      else waiting.resolve(data.answer);
    });
  }

  /** Throws EngineError, or the signal's reason as soon as it aborts. */
  ask<N extends keyof H & string>(name: N, given: Given<H[N]>, loading?: Loading): Promise<Unhanded<Answer<H[N]>>> {
    const call = ++this.last;
    if (this.failed) return Promise.reject(new EngineError(this.failed, false));
    return new Promise((resolve, reject) => {
      const abort = () => {
        this.port.postMessage({ cancel: call } satisfies Asked);
        this.waiting.delete(call);
        reject(loading?.signal.reason);
      };
      const done = () => loading?.signal.removeEventListener("abort", abort);
      this.waiting.set(call, {
        resolve: (answer) => (done(), resolve(answer as Unhanded<Answer<H[N]>>)),
        reject: (error) => (done(), reject(error)),
        loading,
      });
      this.port.postMessage({ call, name, given } satisfies Asked);
      if (loading?.signal.aborted) return abort();
      loading?.signal.addEventListener("abort", abort);
    });
  }

  /** Fail all calls, those made and those to come: nobody answers any more. */
  fail(problem: Problem): void {
    this.failed = problem;
    for (const { reject } of this.waiting.values()) reject(new EngineError(problem, false));
    this.waiting.clear();
  }
}

type Unhanded<A> = A extends Handed<infer T> ? T : A;
