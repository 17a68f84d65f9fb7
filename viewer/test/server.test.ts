// The server's answers: events in pieces of any size, errors in words, the key asked for, uploads.
import { afterEach, describe, expect, it, vi } from "vitest";
import { EngineError, type Loading } from "../src/engine/engine";
import { problemOf, readEvents, ServerEngine } from "../src/engine/server";

async function* pieces(...texts: string[]) {
  yield* texts;
}

afterEach(() => vi.unstubAllGlobals());

describe("events", () => {
  it("are read whatever the pieces are", async () => {
    const text = ': alive\n\nevent: progress\ndata: {"stage":"features","fraction":0.5}\n\ndata: a\r\n\r\nevent: late\ndata: unfinished';
    for (const size of [1, 7, text.length]) {
      const cut = text.match(new RegExp(`[^]{1,${size}}`, "g")) as string[];
      const events = [];
      for await (const event of readEvents(pieces(...cut))) events.push(event);
      expect(events).toEqual([
        { name: "progress", data: '{"stage":"features","fraction":0.5}' },
        { name: "message", data: "a" },
      ]);
    }
  });
});

describe("errors", () => {
  it("are the server's words, or name the status", () => {
    const problem = { message: "a click outside the scan", remedy: "check the order" };
    expect(problemOf(422, JSON.stringify({ error: problem }))).toEqual(problem);
    expect(problemOf(413, "<html>nginx</html>").message).toContain("413");
    expect(problemOf(500, "null").message).toContain("500");
  });

  it("say that the server does not answer", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("failed")));
    const error = await new ServerEngine("", null, async () => "").info().catch((e: unknown) => e);
    expect(error).toBeInstanceOf(EngineError);
    expect((error as EngineError).passing).toBe(true);
    expect((error as EngineError).message).toBe("The server does not answer");
  });
});

describe("the key", () => {
  it("is asked for until the server takes it, and travels in the header", async () => {
    const keys: (string | null)[] = [];
    vi.stubGlobal("fetch", async (path: string, init: RequestInit) => {
      keys.push(new Headers(init.headers).get("Authorization"));
      expect(path).toBe("/base/api/info");
      return keys.at(-1) === "Bearer right" ? Response.json({ version: "1" }) : new Response("", { status: 401 });
    });
    const asked: boolean[] = [];
    const engine = new ServerEngine("/base/", null, async (wrong) => (asked.push(wrong) === 1 ? "wrong" : "right"));
    expect((await engine.info()).version).toBe("1");
    expect(keys).toEqual([null, "Bearer wrong", "Bearer right"]);
    expect(asked).toEqual([false, true]);
  });
});

describe("a scan", () => {
  const loading = () => {
    const control = new AbortController();
    const heard: [string, number | null][] = [];
    const progress: Loading["progress"] = (stage, fraction) => heard.push([stage, fraction]);
    return { control, heard, loading: { signal: control.signal, progress } };
  };
  const pieces = (...sizes: number[]) => {
    return new ReadableStream<Uint8Array>({
      start(stream) {
        for (const size of sizes) stream.enqueue(new Uint8Array(size).fill(size));
        stream.close();
      },
    });
  };

  it("comes in pieces, and how much of it is here is known from its length", async () => {
    vi.stubGlobal("fetch", async () => new Response(pieces(1, 3), { headers: { "Content-Length": "4" } }));
    const { heard, loading: given } = loading();
    const scan = await new ServerEngine("", null, async () => "").scan("a", given);
    expect([...new Uint8Array(scan)]).toEqual([1, 3, 3, 3]);
    expect(heard).toEqual([["Loading the scan", null], ["Loading the scan", 0.25], ["Loading the scan", 1]]);
  });

  it("whose length nobody knows is not said to be half here", async () => {
    vi.stubGlobal("fetch", async () => new Response(pieces(2)));
    const { heard, loading: given } = loading();
    await new ServerEngine("", null, async () => "").scan("a", given);
    expect(heard.map(([, fraction]) => fraction)).toEqual([null, null]);
  });

  it("that is cancelled is no failure of the server", async () => {
    vi.stubGlobal("fetch", (_: string, { signal }: RequestInit) => {
      return new Promise((_resolve, reject) => signal!.addEventListener("abort", () => reject(signal!.reason)));
    });
    const { control, loading: given } = loading();
    const opening = new ServerEngine("", null, async () => "").open({ demo: true }, undefined, given);
    control.abort();
    const error = await opening.catch((e: unknown) => e);
    expect(error).not.toBeInstanceOf(EngineError);
    expect((error as Error).name).toBe("AbortError");
  });
});
