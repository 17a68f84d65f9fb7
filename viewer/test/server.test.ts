// The server's answers: events in pieces of any size, errors in words, the key asked for, uploads.
import { afterEach, describe, expect, it, vi } from "vitest";
import { EngineError, type Loading, type Step } from "../src/engine/engine";
import { problemOf, readEvents, readSlices, ServerEngine } from "../src/engine/server";

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
  const loading = (): { control: AbortController; loading: Loading } => {
    const control = new AbortController();
    return { control, loading: { signal: control.signal, progress: () => {} } };
  };
  const slices = (...ks: number[]) => ks.flatMap((k) => [k, 1, 0, 0, 10 + k, 20 + k]); // k + 256, then two bytes of voxels

  it("comes slice by slice, whatever the pieces are, and without those that are here", async () => {
    const bytes = Uint8Array.from(slices(0, 2, 1));
    for (const size of [1, 5, 7, bytes.length]) {
      const cut = async function* () {
        for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
      };
      const found = [];
      for await (const { k, bytes } of readSlices(cut(), 2)) found.push([k, ...bytes]);
      expect(found).toEqual([[256, 10, 20], [258, 12, 22], [257, 11, 21]]);
    }
    vi.stubGlobal("fetch", async (path: string) => {
      expect(path).toBe("api/sessions/a/voxels?from=2");
      const headers = { "X-Voxel-Type": "int16", "X-Slice-Bytes": "2", "X-Coarse-Slices": "2" };
      return new Response(Uint8Array.from(slices(1)), { headers });
    });
    const stream = await new ServerEngine("", null, async () => "").voxels("a", 2, loading().loading.signal);
    expect([stream.type, stream.coarse]).toEqual(["int16", 2]);
    expect((await stream.slices.next()).value.k).toBe(257);
  });

  it("that breaks off is the server out of reach", async () => {
    const broken = new ReadableStream<Uint8Array>({ pull: (stream) => stream.error(new TypeError("network error")) });
    vi.stubGlobal("fetch", async () => new Response(broken, { headers: { "X-Slice-Bytes": "2" } }));
    const { slices } = await new ServerEngine("", null, async () => "").voxels("a", 0, loading().loading.signal);
    const error = await slices.next().catch((e: unknown) => e);
    expect(error).toBeInstanceOf(EngineError);
    expect((error as EngineError).passing).toBe(true);
  });

  it("says how far the server is with reading it", async () => {
    vi.useFakeTimers();
    const event = 'event: progress\ndata: {"stage": "reading", "fraction": 0.25}\n\n';
    let answer = (_: Response): void => {};
    vi.stubGlobal("fetch", (path: string) => {
      if (path.endsWith("/events")) return Promise.resolve(new Response(event));
      return new Promise<Response>((resolve) => (answer = resolve));
    });
    const heard: [string, number | null][] = [];
    const progress = (stage: string, fraction: number | null) => void heard.push([stage, fraction]);
    const opening = new ServerEngine("", null, async () => "").open({ demo: true }, undefined, { ...loading().loading, progress });
    await vi.advanceTimersByTimeAsync(1000);
    answer(Response.json({ id: "a", name: "scan", objects: [] }));
    await opening;
    vi.useRealTimers();
    expect(heard).toEqual([["Reading the scan", null], ["Reading the scan", 0.25]]);
  });

  it("of several series keeps what was sent, so that one can be chosen", async () => {
    const series = [{ uid: "1.2", description: "arterial" }];
    vi.stubGlobal("fetch", async () => Response.json({ error: { message: "two series" }, series }, { status: 409 }));
    const source = { folder: "0", path: "study" };
    const error = await new ServerEngine("", null, async () => "").open(source, undefined, loading().loading).catch((e: unknown) => e);
    expect((error as EngineError).problem.series).toEqual(series);
    expect((error as EngineError).source).toEqual(source);
  });

  it("that is cancelled is no failure of the server", async () => {
    vi.stubGlobal("fetch", (_: string, { signal }: RequestInit) => {
      return new Promise((_resolve, reject) => {
        if (signal!.aborted) reject(signal!.reason);
        signal!.addEventListener("abort", () => reject(signal!.reason));
      });
    });
    const { control, loading: given } = loading();
    const opening = new ServerEngine("", null, async () => "").open({ demo: true }, undefined, given);
    control.abort();
    const error = await opening.catch((e: unknown) => e);
    expect(error).not.toBeInstanceOf(EngineError);
    expect((error as Error).name).toBe("AbortError");
  });
});

describe("a step", () => {
  const steps: [Step, string, string, unknown][] = [
    [{ kind: "undo" }, "POST", "/undo", {}],
    [{ kind: "new object" }, "POST", "/objects", {}],
    [{ kind: "select", number: 2 }, "POST", "/objects/2/select", {}],
    [{ kind: "edit", edits: [{ kind: "fill", axis: 2 }] }, "POST", "/edits", { edits: [{ kind: "fill", axis: 2 }] }],
    [{ kind: "mask", source: { folder: "0", path: "m.nii" } }, "POST", "/mask", { source: { folder: "0", path: "m.nii" } }],
    [{ kind: "describe", number: 3, facts: { locked: true } }, "PATCH", "/objects/3", { locked: true }],
    [{ kind: "delete object", number: 3 }, "DELETE", "/objects/3", undefined],
    [{ kind: "delete prompt", number: 3, index: 0 }, "DELETE", "/objects/3/prompts/0", undefined],
    [{ kind: "rules", rules: { overlap: true } }, "PATCH", "", { overlap: true }],
  ];

  it.each(steps)("goes to its address: %o", async (step, method, path, body) => {
    vi.stubGlobal("fetch", async (address: string, init: RequestInit) => {
      expect([init.method, address]).toEqual([method, `api/sessions/a${path}`]);
      expect(init.body === undefined ? undefined : JSON.parse(init.body as string)).toEqual(body);
      return Response.json({ id: "a", name: "scan", objects: [], labels: "" });
    });
    expect((await new ServerEngine("", null, async () => "").step("a", step)).labels).toHaveLength(0);
  });
});
