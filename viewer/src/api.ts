// The server, as functions: requests with the key, errors in words, uploads with progress, events as they come.
import type { Answer, Entry, Info, Problem, Prompt, Source, State } from "./types";

/** A request that failed. `status` is 0 when no answer came, which is what `isOffline` tells. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly problem: Problem,
  ) {
    super(problem.message);
  }

  get isOffline(): boolean {
    return this.status === 0 || this.status === 502 || this.status === 504;
  }
}

const UNREACHABLE: Problem = {
  message: "The server does not answer",
  remedy: "check that voxsam serve is running; the page goes on by itself once it is back",
};

/** The problem in an answer's body, whatever came; servers in between do not send ours. */
export function problemOf(status: number, body: string): Problem {
  try {
    const { error } = JSON.parse(body) as { error?: Problem };
    if (typeof error?.message === "string") return error;
  } catch {
    // Not JSON: told by the status below.
  }
  return { message: `The server answered with status ${status}`, remedy: "try again; its log says more" };
}

export interface Event {
  name: string;
  data: string;
}

/** Server-Sent Events out of a stream of text, in pieces of any size. */
export async function* readEvents(chunks: AsyncIterable<string>): AsyncGenerator<Event> {
  let rest = "";
  for await (const chunk of chunks) {
    const blocks = (rest + chunk).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const event: Event = { name: "message", data: "" };
      for (const row of block.split("\n")) {
        if (row.startsWith("event:")) event.name = row.slice(6).trim();
        if (row.startsWith("data:")) event.data += row.slice(5).trim();
      }
      if (event.data) yield event;
    }
  }
}

async function* textOf(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

export class Api {
  /** `base` is where the page lies; `askForKey` is called when the server wants one. */
  constructor(
    private readonly base: string,
    public key: string | null,
    private readonly askForKey: (wrong: boolean) => Promise<string>,
  ) {}

  info = () => this.json<Info>("info");
  files = (folder: string, path: string) => this.json<{ entries: Entry[] }>(`files?${new URLSearchParams({ folder, path })}`);
  open = (source: Source, name?: string) => this.post<State>("sessions", name ? { source, name } : { source });
  state = (id: string) => this.json<State>(`sessions/${id}`);
  /** All labels there are; the box is where they are. */
  labels = (id: string) => this.json<Answer>(`sessions/${id}/labels?box=none`);
  prompt = (id: string, prompts: Prompt[]) => this.post<Answer>(`sessions/${id}/prompts`, { prompts });
  step = (id: string, what: "undo" | "redo" | "reset" | "objects") => this.post<Answer>(`sessions/${id}/${what}`);
  select = (id: string, number: number) => this.post<Answer>(`sessions/${id}/objects/${number}/select`);
  close = (id: string) => this.request(`sessions/${id}`, { method: "DELETE", keepalive: true });

  /** The scan as .nii.gz. */
  async scan(id: string): Promise<ArrayBuffer> {
    return (await this.request(`sessions/${id}/scan`)).arrayBuffer();
  }

  async download(id: string, file: string): Promise<Blob> {
    return (await this.request(`sessions/${id}/download/${file}`)).blob();
  }

  /** Events of a session until the server ends them or the signal aborts. Throws ApiError. */
  async *events(id: string, signal: AbortSignal): AsyncGenerator<Event> {
    const response = await this.request(`sessions/${id}/events`, { signal, headers: { Accept: "text/event-stream" } });
    yield* readEvents(textOf(response));
  }

  /** Send files one after another as one upload; returns its name. `progress` gets the share of all bytes. */
  async upload(files: { name: string; file: Blob }[], progress: (share: number) => void): Promise<string> {
    const total = files.reduce((sum, { file }) => sum + file.size, 0) || 1;
    let sent = 0;
    let upload = "";
    for (const { name, file } of files) {
      const query = new URLSearchParams(upload ? { name, upload } : { name });
      const answer = await this.send(`uploads?${query}`, file, (bytes) => progress((sent + bytes) / total));
      upload = (JSON.parse(answer) as { upload: string }).upload;
      sent += file.size;
      progress(sent / total);
    }
    return upload;
  }

  // fetch does not tell how much of a body was sent; XMLHttpRequest does.
  private send(path: string, body: Blob, progress: (bytes: number) => void): Promise<string> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", `${this.base}api/${path}`);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      if (this.key) request.setRequestHeader("Authorization", `Bearer ${this.key}`);
      request.upload.onprogress = (event) => progress(event.loaded);
      request.onerror = () => reject(new ApiError(0, UNREACHABLE));
      request.onload = () => {
        const { status, responseText } = request;
        if (status < 300) resolve(responseText);
        else reject(new ApiError(status, problemOf(status, responseText)));
      };
      request.send(body);
    });
  }

  private async json<T>(path: string, init: RequestInit = {}): Promise<T> {
    return (await this.request(path, init)).json() as Promise<T>;
  }

  private post<T>(path: string, body: unknown = {}): Promise<T> {
    return this.json<T>(path, {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
    });
  }

  private async request(path: string, init: RequestInit = {}): Promise<Response> {
    for (;;) {
      const headers = new Headers(init.headers);
      if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
      let response: Response;
      try {
        response = await fetch(`${this.base}api/${path}`, { ...init, headers });
      } catch (cause) {
        if (init.signal?.aborted) throw cause;
        throw new ApiError(0, UNREACHABLE);
      }
      if (response.ok) return response;
      if (response.status !== 401) throw new ApiError(response.status, problemOf(response.status, await response.text()));
      this.key = await this.askForKey(this.key !== null);
    }
  }
}
