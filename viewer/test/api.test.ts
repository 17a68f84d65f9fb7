// The server's answers: events in pieces of any size, errors in words, the key asked for, uploads.
import { afterEach, describe, expect, it, vi } from "vitest";
import { Api, ApiError, problemOf, readEvents } from "../src/api";

async function* pieces(...texts: string[]) {
  yield* texts;
}

afterEach(() => vi.unstubAllGlobals());

describe("events", () => {
  it("are read whatever the pieces are", async () => {
    const text = ': alive\n\nevent: progress\ndata: {"stage":"features","share":0.5}\n\ndata: a\r\n\r\nevent: late\ndata: unfinished';
    for (const size of [1, 7, text.length]) {
      const cut = text.match(new RegExp(`[^]{1,${size}}`, "g")) as string[];
      const events = [];
      for await (const event of readEvents(pieces(...cut))) events.push(event);
      expect(events).toEqual([
        { name: "progress", data: '{"stage":"features","share":0.5}' },
        { name: "message", data: "a" },
      ]);
    }
  });
});

describe("errors", () => {
  it("are the server's words, or tell the status", () => {
    const problem = { message: "a click outside the scan", remedy: "check the order" };
    expect(problemOf(422, JSON.stringify({ error: problem }))).toEqual(problem);
    expect(problemOf(413, "<html>nginx</html>").message).toContain("413");
    expect(problemOf(500, "null").message).toContain("500");
  });

  it("say that the server does not answer", async () => {
    vi.stubGlobal("fetch", () => Promise.reject(new TypeError("failed")));
    const error = await new Api("", null, async () => "").info().catch((e: unknown) => e);
    expect(error).toBeInstanceOf(ApiError);
    expect((error as ApiError).isOffline).toBe(true);
    expect((error as ApiError).message).toBe("The server does not answer");
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
    const api = new Api("/base/", null, async (wrong) => (asked.push(wrong) === 1 ? "wrong" : "right"));
    expect((await api.info()).version).toBe("1");
    expect(keys).toEqual([null, "Bearer wrong", "Bearer right"]);
    expect(asked).toEqual([false, true]);
  });
});
