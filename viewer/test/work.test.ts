// The work on a scan: answers in order, labels in place, the way back after a lost connection, the sleep.
import { describe, expect, it, vi } from "vitest";
import { ApiError, type Api } from "../src/api";
import type { Answer, State } from "../src/types";
import { Work, type Listener } from "../src/work";

const STATE = { id: "a", name: "scan", revision: 0, objects: [], busy: null } as unknown as State;
const VALUES = new Uint8Array([1, 2]);

async function answer(revision: number): Promise<Answer> {
  const stream = new Blob([VALUES]).stream().pipeThrough(new CompressionStream("deflate"));
  const labels = btoa(String.fromCharCode(...new Uint8Array(await new Response(stream).arrayBuffer())));
  return { ...STATE, revision, seconds: 0.1, changed: { low: [0, 0, 0], high: [2, 1, 1] }, labels };
}

/** A page that notes what it is told, and a server of which each test says what it does. */
function setting(server: Partial<Record<keyof Api, unknown>>) {
  const told: string[] = [];
  const page: Listener = {
    scan: async () => void told.push("scan"),
    state: () => {},
    labels: (_, values) => told.push(`labels ${values}`),
    clear: () => told.push("clear"),
    result: ({ revision }) => told.push(`result ${revision}`),
    busy: () => {},
    connection: (connection) => told.push(connection),
    failed: (error) => told.push(`failed: ${(error as Error).message}`),
  };
  const silence = async function* (_: string, signal: AbortSignal) {
    await new Promise((resolve) => signal.addEventListener("abort", resolve));
  };
  const api = { open: async () => STATE, state: async () => STATE, scan: async () => new ArrayBuffer(0), events: silence, ...server };
  return { told, work: new Work(api as unknown as Api, page) };
}

describe("steps", () => {
  it("are sent one after another, and each one's labels are drawn before the next", async () => {
    const asked: string[] = [];
    const undo = async () => (asked.push("undo"), answer(asked.length));
    const prompt = async () => {
      asked.push("prompt");
      await new Promise((resolve) => setTimeout(resolve, 5));
      return answer(1);
    };
    const { told, work } = setting({ prompt, step: undo });
    await work.open({ demo: true });
    await Promise.all([work.prompt({ kind: "point", index: [0, 0, 0], positive: true }), work.undo()]);
    expect(asked).toEqual(["prompt", "undo"]);
    expect(told).toEqual(["scan", "connected", "labels 1,2", "result 1", "labels 1,2", "result 2"]);
    work.leave();
  });

  it("that somebody else made between are not missed: all labels come anew", async () => {
    const { told, work } = setting({ step: () => answer(5), labels: () => answer(5) });
    await work.open({ demo: true });
    await work.undo();
    expect(told.slice(2)).toEqual(["clear", "labels 1,2", "result 5"]);
    work.leave();
  });

  it("that fail are told, and the next one goes on", async () => {
    let failing = true;
    const { told, work } = setting({
      step: () => (failing ? Promise.reject(new ApiError(422, { message: "no" })) : answer(1)),
    });
    await work.open({ demo: true });
    await work.undo();
    failing = false;
    await work.undo();
    expect(told.slice(2)).toEqual(["failed: no", "labels 1,2", "result 1"]);
    work.leave();
  });
});

describe("the connection", () => {
  it("is looked for until the server is back, then the labels come anew", async () => {
    vi.useFakeTimers();
    let down = 0;
    const gone = new ApiError(0, { message: "gone" });
    const { told, work } = setting({
      events: async function* (_: string, signal: AbortSignal) {
        if (down++ === 0) throw gone;
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
      state: () => (down++ < 3 ? Promise.reject(gone) : Promise.resolve(STATE)),
      labels: () => answer(0),
    });
    await work.open({ demo: true });
    await vi.advanceTimersByTimeAsync(10_000);
    vi.useRealTimers();
    await vi.waitFor(() => expect(told).toEqual(["scan", "connected", "lost", "clear", "labels 1,2", "connected"]));
    work.leave();
  });

  it("sleeps when the server closes the session, and the next step wakes it", async () => {
    let closed = false;
    const { told, work } = setting({
      events: async function* (_: string, signal: AbortSignal) {
        const first = !closed;
        closed = true;
        if (first) yield { name: "closed", data: "{}" };
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
      step: () => answer(1),
    });
    await work.open({ demo: true });
    await vi.waitFor(() => expect(told).toContain("asleep"));
    await work.undo();
    expect(told.slice(2)).toEqual(["asleep", "connected", "labels 1,2", "result 1"]);
    work.leave();
  });

  it("is not looked for when the server no longer has the session", async () => {
    const { told, work } = setting({
      events: async function* () {
        throw new ApiError(404, { message: "no such session" });
      },
    });
    await work.open({ demo: true });
    await vi.waitFor(() => expect(told).toEqual(["scan", "connected", "none", "failed: no such session"]));
    work.leave();
  });
});
