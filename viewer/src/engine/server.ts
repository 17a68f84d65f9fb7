// The engine on a VoxSAM server: requests with the key, errors in words, uploads and downloads with progress, events.
import {
  EngineError,
  FILES,
  type Busy,
  type Engine,
  type Entry,
  type FileKind,
  type Info,
  type Loading,
  type NamedFile,
  type Notice,
  type Problem,
  type Series,
  type Slice,
  type Source,
  type State,
  type Step,
  type StepResult,
  type VoxelStream,
  type VoxelType,
} from "./engine";
import { Project } from "./project";
import { RecentSessions } from "./recent";

const OUT_OF_REACH: Problem = {
  message: "The server does not answer",
  remedy: "check that voxsam serve is running; the page goes on by itself once it is back",
};
const DOWNLOADS: Partial<Record<FileKind, string>> = { masks: "masks", sr: "sr", rtstruct: "rtstruct", stl: "stl" }; // not as the file
const PATIENCE_MS = 500; // by then most scans have been read
const NOT_FOUND = [404, 410];
const SILENT: Loading = { signal: new AbortController().signal, progress: () => {} };

/** The problem that a response's body describes, whatever it holds: proxies do not send our JSON. */
export function problemOf(status: number, body: string): Problem {
  try {
    const { error, series } = JSON.parse(body) as { error?: Problem; series?: Series[] };
    if (typeof error?.message === "string") return series ? { ...error, series } : error;
  } catch {
    // Not JSON: the status has to do.
  }
  return { message: `The server answered with status ${status}`, remedy: "try again; its log says more" };
}

/** Decode base64 of zlib-deflated bytes. Throws DOMException if it is not base64, TypeError if it is not zlib. */
export async function inflate(base64: string): Promise<Uint8Array> {
  const deflated = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Server-Sent Events from text that arrives in pieces of any size. */
export async function* readEvents(chunks: AsyncIterable<string>): AsyncGenerator<{ name: string; data: string }> {
  let rest = "";
  for await (const chunk of chunks) {
    const blocks = (rest + chunk).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = { name: "message", data: "" };
      for (const row of block.split("\n")) {
        if (row.startsWith("event:")) event.name = row.slice(6).trim();
        if (row.startsWith("data:")) event.data += row.slice(5).trim();
      }
      if (event.data) yield event;
    }
  }
}

async function* piecesOf<T>(stream: ReadableStream<T>): AsyncGenerator<T> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.releaseLock();
  }
}

/** Slices from bytes that arrive in pieces of any size: each is its k (uint32, little-endian), then its voxels. */
export async function* readSlices(pieces: AsyncIterable<Uint8Array>, sliceBytes: number): AsyncGenerator<Slice> {
  let block = new Uint8Array(4 + sliceBytes);
  let filled = 0;
  for await (const piece of pieces) {
    for (let taken = 0; taken < piece.length; ) {
      const some = piece.subarray(taken, taken + block.length - filled);
      block.set(some, filled);
      filled += some.length;
      taken += some.length;
      if (filled < block.length) continue;
      yield { k: new DataView(block.buffer).getUint32(0, true), bytes: block.subarray(4) };
      block = new Uint8Array(4 + sliceBytes);
      filled = 0;
    }
  }
}

type Wire = Omit<StepResult, "labels"> & { labels: string };

export class ServerEngine implements Engine {
  readonly keepsWork = false;
  readonly project = new Project({
    request: (path, init) => this.request(path, init),
    json: (path) => this.json(path),
    send: (method, path, body) => this.post(path, body, null, method),
  });
  private readonly sessions: RecentSessions;

  /** `base` is the address of the page; `askForKey` is called when the server requires a key. */
  constructor(
    private readonly base: string,
    private key: string | null,
    private readonly askForKey: (wrong: boolean) => Promise<string>,
    store: Pick<Storage, "getItem" | "setItem"> | null = null,
  ) {
    this.sessions = new RecentSessions(store);
  }

  recent = () => this.sessions.list();
  forget = (id: string) => this.sessions.forget(id);

  info = () => this.json<Info>("info");

  async entries(folder: string, path: string): Promise<Entry[]> {
    return (await this.json<{ entries: Entry[] }>(`files?${new URLSearchParams({ folder, path })}`)).entries;
  }

  async open(source: Source, name: string | undefined, loading: Loading): Promise<State> {
    const given = await this.given(source, loading);
    loading.progress("Reading the scan", null);
    const id = [...crypto.getRandomValues(new Uint8Array(18))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    const cancel = () => void this.post(`sessions/${id}/cancel`).catch(() => {}); // it may be too late, or too early
    loading.signal.addEventListener("abort", cancel);
    const heard = new AbortController();
    void this.hear(id, loading, heard.signal);
    try {
      return this.noted(await this.post<State>("sessions", { source: given, id, ...(name && { name }) }, loading.signal));
    } catch (error) {
      // The user will choose one of several series: what was sent is not sent again.
      if (error instanceof EngineError && error.problem.series) error.source = given;
      throw error;
    } finally {
      heard.abort();
      loading.signal.removeEventListener("abort", cancel);
    }
  }

  // Report the server's progress if reading takes long; errors come with the response that `open` waits for.
  private async hear(id: string, { progress }: Loading, signal: AbortSignal): Promise<void> {
    await new Promise((resolve) => setTimeout(resolve, PATIENCE_MS));
    if (signal.aborted) return;
    try {
      for await (const notice of this.watch(id, signal)) {
        if (notice.kind === "progress" && notice.busy.fraction && !signal.aborted) progress("Reading the scan", notice.busy.fraction);
      }
    } catch {
      return;
    }
  }

  async state(id: string): Promise<State> {
    try {
      return this.noted(await this.json<State>(`sessions/${id}`));
    } catch (error) {
      if (error instanceof RequestError && NOT_FOUND.includes(error.status)) this.sessions.forget(id);
      throw error;
    }
  }

  async voxels(id: string, from: number, signal: AbortSignal): Promise<VoxelStream> {
    const { body, headers } = await this.request(`sessions/${id}/voxels?from=${from}`, { signal });
    const slices = this.reachable(readSlices(piecesOf(body!), Number(headers.get("X-Slice-Bytes"))), signal);
    return { type: headers.get("X-Voxel-Type") as VoxelType, coarse: Number(headers.get("X-Coarse-Slices")), slices };
  }

  labels = async (id: string) => this.result(await this.json<Wire>(`sessions/${id}/labels?box=none`));

  async step(id: string, step: Step, loading?: Loading): Promise<StepResult> {
    const [method, path, body] = await this.asked(step, loading);
    return this.result(await this.post<Wire>(`sessions/${id}${path}`, body, loading?.signal, method));
  }

  private async asked(step: Step, loading?: Loading): Promise<[method: string, path: string, body?: unknown]> {
    switch (step.kind) {
      case "prompt": return ["POST", "/prompts", { prompts: step.prompts }];
      case "edit": return ["POST", "/edits", { edits: step.edits }];
      case "mask": return ["POST", "/mask", { source: await this.given(step.source, loading) }];
      case "select": return ["POST", `/objects/${step.number}/select`];
      case "new object": return ["POST", "/objects"];
      case "describe": return ["PATCH", `/objects/${step.number}`, step.facts];
      case "delete object": return ["DELETE", `/objects/${step.number}`];
      case "delete prompt": return ["DELETE", `/objects/${step.number}/prompts/${step.index}`];
      case "rules": return ["PATCH", "", step.rules];
      default: return ["POST", `/${step.kind}`];
    }
  }

  async file(id: string, kind: FileKind): Promise<Blob> {
    return (await this.request(`sessions/${id}/download/${DOWNLOADS[kind] ?? FILES[kind]}`)).blob();
  }

  async *watch(id: string, signal: AbortSignal): AsyncGenerator<Notice> {
    const response = await this.request(`sessions/${id}/events`, { signal, headers: { Accept: "text/event-stream" } });
    for await (const { name, data } of readEvents(piecesOf(response.body!.pipeThrough(new TextDecoderStream())))) {
      if (name === "progress") yield { kind: "progress", busy: JSON.parse(data) as Busy };
      if (name === "idle") yield { kind: "idle", revision: (JSON.parse(data) as { revision?: number }).revision ?? null };
      if (name === "closed") return yield { kind: "closed" };
    }
  }

  // The source as the server takes it, with files uploaded.
  private async given(source: Source, loading: Loading = SILENT): Promise<Exclude<Source, { files: NamedFile[] }>> {
    if (!("files" in source)) return source;
    const { files, ...others } = source;
    return { upload: await this.upload(files, loading), ...others };
  }

  // A stream that breaks off means that the server is out of reach.
  private async *reachable<T>(stream: AsyncGenerator<T>, signal: AbortSignal): AsyncGenerator<T> {
    try {
      yield* stream;
    } catch (cause) {
      if (signal.aborted) throw cause;
      throw new RequestError(0, OUT_OF_REACH);
    }
  }

  // Send files one by one as one upload; returns its name.
  private async upload(files: NamedFile[], { signal, progress }: Loading): Promise<string> {
    const total = files.reduce((sum, { file }) => sum + file.size, 0) || 1;
    const stage = files.length > 1 ? `Sending ${files.length} files` : `Sending ${files[0]?.name}`;
    let sent = 0;
    let upload = "";
    for (const { name, file } of files) {
      const query = new URLSearchParams(upload ? { name, upload } : { name });
      const answer = await this.send(`uploads?${query}`, file, signal, (bytes) => progress(stage, (sent + bytes) / total));
      upload = (JSON.parse(answer) as { upload: string }).upload;
      sent += file.size;
      progress(stage, sent / total);
    }
    return upload;
  }

  // fetch does not report how much of a body was sent; XMLHttpRequest does.
  private send(path: string, body: Blob, signal: AbortSignal, progress: (bytes: number) => void): Promise<string> {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      const abort = () => request.abort();
      request.open("POST", `${this.base}api/${path}`);
      request.setRequestHeader("Content-Type", "application/octet-stream");
      if (this.key) request.setRequestHeader("Authorization", `Bearer ${this.key}`);
      request.upload.onprogress = (event) => progress(event.loaded);
      request.onerror = () => reject(new RequestError(0, OUT_OF_REACH));
      request.onabort = () => reject(signal.reason as Error);
      request.onload = () => {
        const { status, responseText } = request;
        if (status < 300) resolve(responseText);
        else reject(new RequestError(status, problemOf(status, responseText)));
      };
      request.onloadend = () => signal.removeEventListener("abort", abort);
      if (signal.aborted) return reject(signal.reason as Error);
      signal.addEventListener("abort", abort);
      request.send(body);
    });
  }

  private noted<T extends State>(state: T): T {
    this.sessions.note(state);
    return state;
  }

  private async result(wire: Wire): Promise<StepResult> {
    return this.noted({ ...wire, labels: wire.labels ? await inflate(wire.labels) : new Uint8Array(0) });
  }

  private async json<T>(path: string, init: RequestInit = {}): Promise<T> {
    return (await this.request(path, init)).json() as Promise<T>;
  }

  private post<T>(path: string, body: unknown = {}, signal: AbortSignal | null = null, method = "POST"): Promise<T> {
    const headers = { "Content-Type": "application/json" };
    return this.json<T>(path, { method, ...(method !== "DELETE" && { body: JSON.stringify(body), headers }), signal });
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
        throw new RequestError(0, OUT_OF_REACH);
      }
      if (response.ok) return response;
      if (response.status !== 401) throw new RequestError(response.status, problemOf(response.status, await response.text()));
      this.key = await this.askForKey(this.key !== null);
    }
  }
}

// `status` is 0 if there was no response.
class RequestError extends EngineError {
  constructor(
    readonly status: number,
    problem: Problem,
  ) {
    super(problem, status === 0 || status >= 500);
  }
}
