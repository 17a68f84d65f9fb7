// The work on one scan: opened, prompted, undone; brought back after a reload, a lost connection or a new server.
import { ApiError, type Api } from "./api";
import { isEmpty } from "./geometry";
import { inflate } from "./labels";
import type { Answer, Box, Busy, Prompt, Source, State } from "./types";

/** `asleep`: the server closed a session that nobody used for long; the next step wakes it. */
export type Connection = "none" | "connected" | "lost" | "asleep";

/** What the page does when something has happened. */
export interface Listener {
  scan(scan: ArrayBuffer, state: State): Promise<void>;
  state(state: State | null): void;
  labels(box: Box, values: Uint8Array): void;
  clear(): void;
  result(answer: Answer): void;
  busy(busy: Busy | null): void;
  connection(connection: Connection): void;
  failed(error: unknown): void;
}

const PAUSES_S = [0.5, 1, 2, 4, 5]; // between attempts to reach the server again; the last one goes on

export class Work {
  state: State | null = null;
  connection: Connection = "none";
  private queue: Promise<unknown> = Promise.resolve();
  private asked = 0; // requests that are not answered
  private listening = new AbortController();

  constructor(
    private readonly api: Api,
    private readonly page: Listener,
  ) {}

  /** Open a scan. What was open before stays on the server and can be come back to. */
  async open(source: Source, name?: string): Promise<void> {
    this.page.busy({ stage: "Reading the scan", fraction: null });
    await this.show(await this.api.open(source, name));
  }

  /** Come back to a session. Throws ApiError if there is none. */
  async resume(id: string): Promise<void> {
    this.page.busy({ stage: "Bringing your work back", fraction: null });
    const state = await this.api.state(id);
    await this.show(state);
    if (state.objects.some(({ prompts }) => prompts.length)) await this.reload();
  }

  prompt = (prompt: Prompt) => this.ask((id) => this.api.prompt(id, [prompt]));
  undo = () => this.ask((id) => this.api.step(id, "undo"));
  redo = () => this.ask((id) => this.api.step(id, "redo"));
  reset = () => this.ask((id) => this.api.step(id, "reset"));
  newObject = () => this.ask((id) => this.api.step(id, "objects"));
  select = (number: number) => this.ask((id) => this.api.select(id, number));

  /** Stop listening; the session stays on the server. */
  leave(): void {
    this.listening.abort();
    this.state = null;
    this.become("none");
    this.page.state(null);
  }

  private async show(state: State): Promise<void> {
    this.leave();
    this.page.busy({ stage: "Loading the scan", fraction: null });
    const scan = await this.api.scan(state.id);
    await this.page.scan(scan, state);
    this.take(state);
    this.page.busy(state.busy);
    this.wake(state.id);
  }

  private wake(id: string): void {
    this.become("connected");
    this.listening = new AbortController();
    void this.listen(id, this.listening.signal);
  }

  // One request after another: each answer changes the labels that the one before has left.
  private ask(request: (id: string) => Promise<Answer>): Promise<void> {
    const next = this.queue.then(() => this.answer(request)).catch((error: unknown) => this.page.failed(error));
    this.queue = next;
    return next;
  }

  private async answer(request: (id: string) => Promise<Answer>): Promise<void> {
    const before = this.state;
    if (!before) return;
    this.page.busy({ stage: "Segmenting", fraction: null });
    this.asked++;
    try {
      const answer = await request(before.id);
      if (this.connection === "asleep") this.wake(before.id);
      if (this.state?.id !== answer.id) return; // another scan was opened meanwhile
      const missed = answer.revision > before.revision + 1; // somebody else works on the same session
      if (missed) await this.reload();
      else await this.draw(answer);
      this.take(answer);
      this.page.result(answer);
    } finally {
      if (!--this.asked) this.page.busy(null);
    }
  }

  /** All labels anew. */
  private async reload(): Promise<void> {
    const answer = await this.api.labels(this.state!.id);
    this.page.clear();
    await this.draw(answer);
    this.take(answer);
    this.page.busy(answer.busy);
  }

  private async draw({ changed, labels }: Answer): Promise<void> {
    if (!isEmpty(changed)) this.page.labels(changed, await inflate(labels));
  }

  private take(state: State): void {
    this.state = state;
    this.page.state(state);
  }

  private become(connection: Connection): void {
    if (this.connection === connection) return;
    this.connection = connection;
    this.page.connection(connection);
  }

  // Events keep the session alive and tell when the server goes; then it is asked for until it is back.
  private async listen(id: string, signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; failures++) {
      try {
        if (failures) await this.rejoin(id);
        for await (const { name, data } of this.api.events(id, signal)) {
          failures = 0;
          if (name === "progress") this.page.busy(JSON.parse(data) as Busy);
          if (name === "idle" && !this.asked) this.page.busy(null);
          if (name === "closed") return this.become("asleep");
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof ApiError && !error.isOffline && error.status < 500) return this.lose(error);
      }
      if (signal.aborted) return;
      this.become("lost");
      await pause(PAUSES_S[Math.min(failures, PAUSES_S.length - 1)] as number);
    }
  }

  // The scan is still on the page; the labels may be older or newer than the server's.
  private async rejoin(id: string): Promise<void> {
    const state = await this.api.state(id);
    const stale = this.connection === "lost";
    this.state = state;
    if (stale) await this.reload();
    this.become("connected");
  }

  private lose(error: ApiError): void {
    this.become("none"); // it will not come back
    this.page.failed(error);
  }
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}
