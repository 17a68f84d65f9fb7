// The work on a scan: answers in order, labels in place, the way back after a lost connection, the sleep.
import { describe, expect, it, vi } from "vitest";
import { EngineError, type Engine, type Notice, type State, type Step, type StepResult, type VoxelStream } from "../src/engine/engine";
import { Work, type Listener } from "../src/page/work";

const STATE = { id: "a", name: "scan", shape: [1, 1, 3], revision: 0, objects: [], busy: null } as unknown as State;
const VALUES = new Uint8Array([1, 2]);

function result(revision: number): StepResult {
  return { ...STATE, revision, seconds: 0.1, changed: { low: [0, 0, 0], high: [2, 1, 1] }, labels: VALUES };
}

const voxels = (...ks: number[]): VoxelStream => {
  const slices = (async function* () {
    for (const k of ks) yield { k, bytes: new Uint8Array(2) };
  })();
  return { type: "int16", coarse: ks.length, slices };
};

async function* silence(_: string, signal: AbortSignal): AsyncGenerator<Notice> {
  await new Promise((resolve) => signal.addEventListener("abort", resolve));
}

/** A page that notes what it hears, and an engine of which each test says what it does. */
function setting(engine: Partial<Engine>) {
  const heard: string[] = [];
  const stages: string[] = [];
  let cancel: (() => void) | undefined;
  const page: Listener = {
    scan: async () => void heard.push("scan"),
    arrived: ({ count }) => heard.push(`${count} slices`),
    showState: () => {},
    labels: (_, values) => heard.push(`labels ${values}`),
    clear: () => heard.push("clear"),
    result: ({ revision }) => heard.push(`result ${revision}`),
    busy: (busy, stop) => {
      cancel = stop;
      if (busy) stages.push(busy.stage);
    },
    connection: (connection) => heard.push(connection),
    failed: (error) => heard.push(`failed: ${(error as Error).message}`),
  };
  const calm = { open: async () => STATE, state: async () => STATE, voxels: async () => voxels(0, 1, 2), watch: silence };
  return { heard, stages, cancel: () => cancel?.(), work: new Work({ ...calm, ...engine } as unknown as Engine, page) };
}

describe("steps", () => {
  it("are sent one after another, and each one's labels are drawn before the next", async () => {
    const asked: string[] = [];
    const step = async (_: string, { kind }: Step) => {
      asked.push(kind);
      if (kind === "prompt") await new Promise((resolve) => setTimeout(resolve, 5));
      return result(asked.length);
    };
    const { heard, work } = setting({ step });
    await work.open({ demo: true });
    await Promise.all([work.prompt({ kind: "point", index: [0, 0, 0], positive: true }), work.step({ kind: "undo" })]);
    expect(asked).toEqual(["prompt", "undo"]);
    expect(heard).toEqual(["scan", "connected", "labels 1,2", "result 1", "labels 1,2", "result 2"]);
    work.leave();
  });

  it("that somebody else made between are not missed: all labels come anew", async () => {
    const { heard, work } = setting({ step: async () => result(5), labels: async () => result(5) });
    await work.open({ demo: true });
    await work.step({ kind: "undo" });
    expect(heard.slice(2)).toEqual(["clear", "labels 1,2", "result 5"]);
    work.leave();
  });

  it("that somebody else makes are shown once they are done", async () => {
    const watch = async function* (id: string, signal: AbortSignal): AsyncGenerator<Notice> {
      for (const revision of [null, 0, 1]) yield { kind: "idle", revision };
      yield* silence(id, signal);
    };
    const { heard, work } = setting({ watch, labels: async () => result(1) });
    await work.open({ demo: true });
    await vi.waitFor(() => expect(heard).toEqual(["scan", "connected", "clear", "labels 1,2"]));
    work.leave();
  });

  it("that fail are reported, and the next one goes on", async () => {
    let failing = true;
    const { heard, work } = setting({
      step: () => (failing ? Promise.reject(new EngineError({ message: "no" }, false)) : Promise.resolve(result(1))),
    });
    await work.open({ demo: true });
    await work.step({ kind: "undo" });
    failing = false;
    await work.step({ kind: "undo" });
    expect(heard.slice(2)).toEqual(["failed: no", "labels 1,2", "result 1"]);
    work.leave();
  });
});

describe("loading", () => {
  it("shows the mask that a scan was opened with, and that of a session that was painted alone", async () => {
    const painted = { ...STATE, objects: [{ prompts: [], volume_ml: 2 }] } as unknown as State;
    const { heard, work } = setting({ open: async () => painted, state: async () => painted, labels: async () => result(1) });
    await work.open({ case: "a", reader: "anna" });
    expect(heard).toEqual(["scan", "connected", "clear", "labels 1,2"]);
    await work.resume("a");
    expect(heard.slice(-2)).toEqual(["clear", "labels 1,2"]);
    work.leave();
  });

  it("is cancelled, and what was open stays open", async () => {
    let first = true;
    const stuck = (_: string, _from: number, signal: AbortSignal) => {
      if (first) return Promise.resolve(voxels(0, 1, 2));
      return new Promise<VoxelStream>((_resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    };
    const { heard, stages, cancel, work } = setting({ voxels: stuck });
    await work.open({ demo: true });
    expect(stages[0]).toBe("Opening the scan"); // before the engine says anything
    first = false;
    const opening = work.open({ demo: true });
    await vi.waitFor(() => expect(stages.filter((stage) => stage === "Loading the scan").length).toBeGreaterThan(4));
    await work.open({ demo: true }); // one at a time: does nothing
    cancel();
    await opening;
    expect(heard).toEqual(["scan", "connected"]);
    expect(work.state).toBe(STATE);
    work.leave();
  });

  it("goes on after the coarse slices, and where a stream broke off", async () => {
    vi.useFakeTimers();
    const asked: number[] = [];
    const stream = async (_: string, from: number): Promise<VoxelStream> => {
      asked.push(from);
      if (from === 2) return voxels(1);
      const slices = (async function* () {
        yield* voxels(0, 2).slices;
        throw new EngineError({ message: "gone" }, true);
      })();
      return { type: "int16", coarse: 1, slices };
    };
    const { heard, work } = setting({ voxels: stream });
    await work.open({ demo: true });
    expect(heard.slice(0, 2)).toEqual(["scan", "connected"]);
    await vi.advanceTimersByTimeAsync(2000);
    vi.useRealTimers();
    await vi.waitFor(() => expect(heard.slice(2)).toEqual(["2 slices", "3 slices"]));
    expect(asked).toEqual([0, 2]);
    work.leave();
  });

  it("that fails says so and keeps what was open", async () => {
    const { work } = setting({});
    await work.open({ demo: true });
    const broken = setting({ open: () => Promise.reject(new EngineError({ message: "no scan" }, false)) });
    await expect(broken.work.open({ demo: true })).rejects.toThrow("no scan");
    expect(work.state).toBe(STATE);
    work.leave();
  });
});

describe("the connection", () => {
  it("is looked for until the engine is back, then the labels come anew", async () => {
    vi.useFakeTimers();
    let down = 0;
    const gone = new EngineError({ message: "gone" }, true);
    const { heard, work } = setting({
      watch: async function* (id: string, signal: AbortSignal) {
        if (down++ === 0) throw gone;
        yield* silence(id, signal);
      },
      state: () => (down++ < 3 ? Promise.reject(gone) : Promise.resolve(STATE)),
      labels: async () => result(0),
    });
    await work.open({ demo: true });
    await vi.advanceTimersByTimeAsync(10_000);
    vi.useRealTimers();
    await vi.waitFor(() => expect(heard).toEqual(["scan", "connected", "lost", "clear", "labels 1,2", "connected"]));
    work.leave();
  });

  it("sleeps when the engine closes the session, and the next step wakes it", async () => {
    let closed = false;
    const { heard, work } = setting({
      watch: async function* (id: string, signal: AbortSignal) {
        const first = !closed;
        closed = true;
        if (first) yield { kind: "closed" };
        yield* silence(id, signal);
      },
      step: async () => result(1),
    });
    await work.open({ demo: true });
    await vi.waitFor(() => expect(heard).toContain("asleep"));
    await work.step({ kind: "undo" });
    expect(heard.slice(2)).toEqual(["asleep", "connected", "labels 1,2", "result 1"]);
    work.leave();
  });

  it("is not looked for when the engine no longer has the session", async () => {
    const { heard, work } = setting({
      watch: async function* () {
        throw new EngineError({ message: "no such session" }, false);
      },
    });
    await work.open({ demo: true });
    await vi.waitFor(() => expect(heard).toEqual(["scan", "connected", "none", "failed: no such session"]));
    work.leave();
  });
});
