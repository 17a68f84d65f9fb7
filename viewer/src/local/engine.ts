// The engine in the browser: the page's side of the worker that reads, segments and keeps the work. Nothing is sent.
import { EngineError, type Engine, type Entry, type FileKind, type Loading, type Notice, type Slice, type Source, type State, type Step, type StepResult, type VoxelStream } from "../engine/engine";
import { RecentSessions } from "../engine/recent";
import { Caller, type Port } from "./calls";
import type { Host } from "./host";

const RECENT = "voxsam-recent-local";

/** What the worker reports without being asked. */
export interface Told {
  session: string;
  notice: Notice;
}

export class LocalEngine implements Engine {
  readonly keepsWork = true;
  readonly project = null;
  private readonly caller: Caller<Host["handlers"]>;
  private readonly sessions: RecentSessions;
  private readonly watchers = new Set<(told: Told) => void>();

  /** `port` leads to a worker that runs worker.ts. */
  constructor(port: Port, store: Pick<Storage, "getItem" | "setItem"> | null = null) {
    this.caller = new Caller(port);
    this.sessions = new RecentSessions(store, RECENT);
    port.addEventListener("message", ({ data }: MessageEvent<Told | { call: number }>) => {
      if ("session" in data) for (const hear of this.watchers) hear(data);
    });
  }

  /** An engine with a worker of its own. */
  static start(store: Pick<Storage, "getItem" | "setItem"> | null): LocalEngine {
    const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
    const engine = new LocalEngine(worker, store);
    worker.addEventListener("error", ({ message }) => {
      engine.caller.fail({ message: message || "the engine could not be started in this browser", remedy: "load the page again, or use a newer browser" });
    });
    return engine;
  }

  info = () => this.caller.ask("info", []);
  entries = async (): Promise<Entry[]> => []; // only the user chooses folders

  recent = () => this.sessions.list();

  /** Delete a session, and its scan, from this browser. */
  forget(id: string): void {
    this.sessions.forget(id);
    void this.caller.ask("forget", [id]).catch(() => {});
  }

  async open(source: Source, name: string | undefined, loading: Loading): Promise<State> {
    const id = [...crypto.getRandomValues(new Uint8Array(18))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    try {
      const opened = this.noted(await this.caller.ask("open", [id, source, name], loading));
      void globalThis.navigator?.storage?.persist?.().catch(() => {}); // so that a full disk does not cost the work
      return opened;
    } catch (error) {
      if (error instanceof EngineError && error.problem.series) error.source = source; // for a choice of one of them
      throw error;
    }
  }

  async state(id: string): Promise<State> {
    return this.noted(await this.caller.ask("state", [id]));
  }

  async voxels(id: string, from: number, signal: AbortSignal): Promise<VoxelStream> {
    const facts = await this.caller.ask("voxels", [id]);
    return { ...facts, slices: this.slices(id, from, signal) };
  }

  private async *slices(id: string, from: number, signal: AbortSignal): AsyncGenerator<Slice> {
    for (let next = from; !signal.aborted; ) {
      const some = await this.caller.ask("slices", [id, next]);
      if (!some.length) return;
      next += some.length;
      yield* some;
    }
  }

  labels = (id: string) => this.caller.ask("labels", [id]);

  async step(id: string, step: Step, loading?: Loading): Promise<StepResult> {
    return this.noted(await this.caller.ask("step", [id, step], loading));
  }

  file = (id: string, kind: FileKind) => this.caller.ask("file", [id, kind]);

  async *watch(id: string, signal: AbortSignal): AsyncGenerator<Notice> {
    const waiting: Notice[] = [];
    let wake = () => {};
    const hear = ({ session, notice }: Told) => {
      if (session === id) waiting.push(notice);
      wake();
    };
    signal.addEventListener("abort", () => wake());
    this.watchers.add(hear);
    try {
      while (!signal.aborted) {
        const next = waiting.shift();
        if (next) yield next;
        else await new Promise<void>((resolve) => (wake = resolve));
      }
    } finally {
      this.watchers.delete(hear);
    }
  }

  // Sessions that no longer fit in the list are deleted: nobody would find them again.
  private noted<T extends State>(state: T): T {
    for (const id of this.sessions.note(state)) void this.caller.ask("forget", [id]).catch(() => {});
    return state;
  }
}
