// The server's project as the page sees it: the work list, the scans done, and the models that learn from them.

export type CaseState = "to do" | "in work" | "done" | "skipped";

export interface Row {
  name: string;
  state: CaseState;
  reader: string; // who is working on it, or did it last
  since: string; // ISO time
  readers: string[]; // who have done it
  clicks: number | null;
  volume_ml: number | null;
}

export interface LearnedModel {
  name: string;
  made: string; // ISO time
  state: "offered" | "refused" | "retired";
  reason: string; // why it was retired
  gate: string; // "5.1 -> 3.4 clicks to the same mask on 6 scans, fewer on 5 (p = 0.031)"
  cases: string[]; // the scans that it was trained on
}

export interface Learning {
  stage: "idle" | "beginning" | "running" | "paused" | "cut off";
  fraction: number;
  minutes: number; // for the whole run
  said: string; // its latest message
  failed: boolean;
  impossible: string; // why no run can start; "": one can
  every: number; // scans after which a run starts by itself; 0: never
  new: number; // scans done since the last run
}

export interface ProjectState {
  name: string;
  rows: Row[];
  order: string; // of the work, in words
  counts: Partial<Record<CaseState, number>>;
  start: string; // the model that every learning run starts from
  in_use: string;
  offered: string | null;
  can_go_back: boolean;
  models: LearnedModel[];
  curve: [name: string, clicks: number][];
  minutes_saved: number | null;
  learning: Learning;
}

/** A scan that two readers have done. */
export interface Agreement {
  case: string;
  dice: number;
  volumes_ml: [number, number];
  differences: { reader: string; volume_ml: number; index: [number, number, number] }[];
}

export interface Kept {
  case: string;
  clicks: number;
  volume_ml: number;
}

/** Sends requests; `path` is relative to the server's API. */
export interface Requests {
  request(path: string, init?: RequestInit): Promise<Response>;
  json<T>(path: string): Promise<T>;
  send<T>(method: string, path: string, body?: unknown): Promise<T>;
}

export class Project {
  constructor(private readonly server: Requests) {}

  state = () => this.server.json<ProjectState>("project");

  /** Assign the next scan to this reader; null if none is left. */
  async next(reader: string, after: string | null): Promise<string | null> {
    return (await this.server.send<{ case: string | null }>("POST", "project/next", { reader, after })).case;
  }

  /** The scan that this reader did or skipped last, or the one before `before`; null if there is none. */
  async previous(reader: string, before: string | null): Promise<string | null> {
    const query = new URLSearchParams(before === null ? { reader } : { reader, before });
    return (await this.server.json<{ case: string | null }>(`project/previous?${query}`)).case;
  }

  /** Keep a session's mask and clicks, and close the session. */
  done = (session: string, seconds: number) => this.server.send<Kept>("POST", "project/done", { session, seconds });

  skip = (name: string, reader: string) => this.call("POST", `${this.of(name)}/skip`, { reader });
  release = (name: string) => this.call("POST", `${this.of(name)}/release`);
  forget = (name: string) => this.server.send<{ retired: string[] }>("DELETE", this.of(name));
  compare = (first: string, second: string) => this.server.json<Agreement[]>(`project/agreement?${new URLSearchParams({ first, second })}`);
  thumbnail = async (name: string) => (await this.server.request(`${this.of(name)}/thumbnail`)).blob();

  learn = () => this.server.send<ProjectState>("POST", "project/learning");
  stop = () => this.server.send<ProjectState>("DELETE", "project/learning");
  learnEvery = (scans: number) => this.server.send<ProjectState>("PATCH", "project", { learn_every: scans });
  use = (model: string) => this.server.send<ProjectState>("POST", "project/model", { model });
  back = () => this.server.send<ProjectState>("POST", "project/model/back");

  private of = (name: string) => `project/cases/${encodeURIComponent(name)}`;

  private async call(method: string, path: string, body: unknown = {}): Promise<void> {
    await this.server.request(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  }
}
