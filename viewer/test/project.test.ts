// A project in the page: what is asked of the server, and what is said of scans and of learning.
import { describe, expect, it } from "vitest";
import { Project, type Learning, type Row } from "../src/engine/project";
import { ServerEngine } from "../src/engine/server";
import { LocalEngine } from "../src/local/engine";
import { inWords } from "../src/page/learning";
import { ActiveTime } from "../src/page/timing";
import { described } from "../src/page/worklist";

const IDLE: Learning = { stage: "idle", fraction: 0, minutes: 20, said: "", failed: false, impossible: "", every: 0, new: 0 };
const NOW = Date.parse("2026-11-30T12:00:00Z");

describe("what is asked of the server", () => {
  const asked: unknown[][] = [];
  const answer = (...call: unknown[]) => {
    asked.push(call);
    return Promise.resolve({ case: "b c+d" } as never);
  };
  const project = new Project({ json: answer, send: answer, request: answer });

  it("is a scan for a reader, and the one before", async () => {
    expect(await project.next("anna", null)).toBe("b c+d");
    expect(asked.pop()).toEqual(["POST", "project/next", { reader: "anna", after: null }]);
    await project.previous("anna", "b c+d");
    expect(asked.pop()).toEqual(["project/previous?reader=anna&before=b+c%2Bd"]);
  });

  it("names a scan in the address whatever it is called", async () => {
    await project.forget("b c+d");
    expect(asked.pop()).toEqual(["DELETE", "project/cases/b%20c%2Bd"]);
    await project.skip("b c+d", "anna");
    expect(asked.pop()?.[0]).toBe("project/cases/b%20c%2Bd/skip");
  });
});

it("is no part of the engine in the browser", () => {
  const port = { postMessage() {}, addEventListener() {} } as never;
  expect(new LocalEngine(port).project).toBeNull();
  expect(new ServerEngine("", null, () => Promise.resolve("")).project).toBeInstanceOf(Project);
});

describe("a scan in words", () => {
  const row: Row = { name: "a", state: "to do", reader: "", since: "", readers: [], clicks: null, volume_ml: null };

  it("says who has it, and what was found", () => {
    expect(described(row, NOW)).toBe("to do");
    expect(described({ ...row, state: "in work", reader: "anna", since: "2026-11-30T11:00:00+00:00" }, NOW)).toMatch(/^in work · anna · since today \d/);
    expect(described({ ...row, state: "done", reader: "ben", readers: ["anna", "ben"], clicks: 1, volume_ml: 12.34 }, NOW)).toBe("done · anna, ben · 1 click · 12.3 mL");
  });
});

describe("learning in words", () => {
  it("says beforehand how long it takes, and why it cannot begin", () => {
    expect(inWords(IDLE)).toBe("Learning takes at most 20 min at the lowest priority, and waits while somebody clicks.");
    expect(inWords({ ...IDLE, impossible: "2 more scans must be done first" })).toMatch(/^2 more scans must be done first\. Learning takes/);
    expect(inWords({ ...IDLE, every: 6, new: 5 })).toMatch(/It begins by itself after 1 more scan\.$/);
  });

  it("says what is left, that it waits, and why it ended", () => {
    expect(inWords({ ...IDLE, stage: "running", fraction: 0.75, minutes: 8, said: "part 3 of 3: training on 4 scans" })).toBe(
      "Learning: about 2 of 8 min left. Part 3 of 3: training on 4 scans",
    );
    expect(inWords({ ...IDLE, stage: "paused" })).toContain("waits while somebody clicks");
    expect(inWords({ ...IDLE, failed: true, said: "no space left" })).toBe("Learning ended: no space left");
  });
});

describe("the time of work", () => {
  it("leaves pauses out, and goes on after a reload", () => {
    let now = 1000;
    const kept = new Map<string, string>();
    const store = { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, value: string) => void kept.set(key, value) };
    const signs = new EventTarget();
    const time = new ActiveTime(() => now, signs, store);
    const after = (ms: number) => {
      now += ms;
      signs.dispatchEvent(new Event("keydown"));
    };
    time.begin("a");
    after(4000);
    after(600_000); // a coffee: 30 s of it count
    expect(time.seconds).toBe(34);
    const again = new ActiveTime(() => now, signs, store);
    again.begin("a");
    now += 1000;
    expect(again.seconds).toBe(35);
    again.begin("b");
    expect(again.seconds).toBe(0);
  });
});
