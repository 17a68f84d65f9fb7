// The engine in the browser: page and worker, what is kept and brought back, several tabs, what goes wrong.
import "fake-indexeddb/auto";
import { IDBFactory } from "fake-indexeddb";
import { beforeEach, describe, expect, it, vi } from "vitest";
import type { Engine, Index, Info, Loading, Notice, Source, State, Step } from "../src/engine/engine";
import { answerCalls, type Port } from "../src/local/calls";
import { LocalEngine } from "../src/local/engine";
import { Grid } from "../src/local/grid";
import { Host, type Tools } from "../src/local/host";
import { type KeptPrediction, Prediction } from "../src/local/predictor";
import { clicksOf, type SessionPrompt } from "../src/local/prompts";
import { refusal } from "../src/local/refusal";
import { regionOf } from "../src/local/region";
import { type KeptStep, Store, type Work } from "../src/local/store";

const SHAPE: Index = [6, 5, 4];
const INFO = { version: "1", model: { name: "known", prompts: { negative: true } } } as unknown as Info;
const CLICK: Step = { kind: "prompt", prompts: [{ kind: "point", index: [2, 2, 2], positive: true }] };
const BRUSH: Step = { kind: "edit", edits: [{ kind: "brush", stroke: [[4, 4, 3]], radius_mm: 0.5, add: true, axis: null, intensities: null }] };
const FILES: Source = { files: [{ name: "scan.nii", file: new Blob(["scan"]) }] };
const UNHEARD: Loading = { signal: new AbortController().signal, progress: () => {} };

const volume = () => ({
  data: Int16Array.from({ length: 120 }, (_, n) => n), shape: SHAPE, affine: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]],
  modality: "CT", remarks: ["odd"], slope: 2, intercept: -10, dicom: null, name: "scan.nii",
});

// The voxels of the positive clicks.
class Clicked extends Prediction {
  override region() {
    const inside = new Uint8Array(120);
    for (const { index: [i, j, k], positive } of this.clicks) if (positive) inside[i + 6 * (j + 5 * k)] = 1;
    return regionOf(inside, SHAPE);
  }
}

let asked = 0; // of the network

async function predict(prompts: SessionPrompt[]): Promise<Prediction> {
  asked++;
  const clicks = prompts.flatMap((prompt) => clicksOf(prompt, { shape: SHAPE, spacing_mm: [1, 1, 2] }));
  return new Clicked(new Grid(SHAPE, volume().affine), prompts, clicks);
}

const restored = (prompts: SessionPrompt[], { clicks }: KeptPrediction) => new Clicked(new Grid(SHAPE, volume().affine), prompts, clicks);

function tools(changes: Partial<Tools> = {}): Tools {
  return {
    info: INFO, segmenter: async () => ({ predict, restored }), read: async () => volume(), readLabels: async () => volume(),
    write: async (kind, _, objects, { seconds }) => new Blob([`${kind} of ${objects.map(({ volume_ml }) => volume_ml)} in ${seconds > 0}`]),
    demo: async () => [{ name: "demo.nii.gz", file: new Blob(["scan"]) }], store: null, locks: null, ...changes,
  };
}

/** A tab: a page with its worker. */
async function tab(changes: Partial<Tools> = {}): Promise<LocalEngine> {
  const { port1, port2 } = new MessageChannel();
  const host = new Host(tools({ store: await Store.open(), ...changes }), (session, notice) => port2.postMessage({ session, notice }));
  answerCalls(port2 as unknown as Port, host.handlers);
  for (const port of [port1, port2]) port.start();
  return new LocalEngine(port1 as unknown as Port);
}

const open = (engine: Engine) => engine.open(FILES, undefined, UNHEARD);
const facts = ({ objects, can_undo, revision }: State) => ({ volumes: objects.map(({ volume_ml }) => volume_ml), can_undo, revision });

beforeEach(() => void (globalThis.indexedDB = new IDBFactory()));

describe("a session in the browser", () => {
  it("is opened, clicked, undone; each answer has the labels that changed", async () => {
    const engine = await tab();
    const state = await open(engine);
    expect(state).toMatchObject({ name: "scan.nii", shape: SHAPE, spacing_mm: [1, 1, 2], modality: "CT", dicom: false, revision: 0, notes: ["odd"], keep_clicked: true });
    const clicked = await engine.step(state.id, CLICK);
    expect(clicked).toMatchObject({ revision: 1, changed: { low: [2, 2, 2], high: [3, 3, 3] }, labels: Uint8Array.of(1), can_undo: true });
    expect(clicked.objects[0]).toMatchObject({ name: "Tumour 1", prompts: [{ kind: "point" }], volume_ml: 0.002, edited: false });
    const undone = await engine.step(state.id, { kind: "undo" });
    expect(undone).toMatchObject({ revision: 2, labels: Uint8Array.of(0), can_undo: false, can_redo: true });
    expect((await engine.step(state.id, { kind: "undo" })).revision).toBe(2); // there was nothing to take back
    await engine.step(state.id, { kind: "redo" });
    expect(await engine.labels(state.id)).toMatchObject({ changed: { low: [2, 2, 2], high: [3, 3, 3] }, labels: Uint8Array.of(1) });
    expect(await (await engine.file(state.id, "json")).text()).toBe("json of 0.002 in true");
  });

  it("gives the scan's voxels as they mean, from any slice on", async () => {
    const engine = await tab();
    const { id } = await open(engine);
    const { type, coarse, slices } = await engine.voxels(id, 2, UNHEARD.signal);
    expect([type, coarse]).toEqual(["int16", 4]);
    const found = [];
    for await (const { k, bytes } of slices) found.push([k, new Int16Array(bytes.buffer)[0]]);
    expect(found).toEqual([[2, 2 * 60 - 10], [3, 2 * 90 - 10]]);
  });

  it("says what it is doing, and that it is idle", async () => {
    const heard: Notice[] = [];
    const engine = await tab({ segmenter: async (_, progress) => ({ restored, predict: (prompts) => (progress("encoding", 0.5), predict(prompts)) }) });
    const { id } = await open(engine);
    const control = new AbortController();
    const watching = (async () => {
      for await (const notice of engine.watch(id, control.signal)) heard.push(notice);
    })();
    await engine.step(id, CLICK);
    control.abort();
    await watching;
    expect(heard).toEqual([{ kind: "progress", busy: { stage: "encoding", fraction: 0.5 } }, { kind: "idle", revision: 1 }]);
  });

  it("refuses in words what cannot be used, and is as it was", async () => {
    const engine = await tab();
    const { id } = await open(engine);
    const outside: Step = { kind: "prompt", prompts: [{ kind: "point", index: [9, 0, 0], positive: true }] };
    await expect(engine.step(id, outside)).rejects.toMatchObject({ message: expect.stringContaining("a click outside the scan"), passing: false, problem: { remedy: expect.any(String) } });
    expect(facts(await engine.state(id))).toEqual({ volumes: [0], can_undo: false, revision: 0 });
    const scans = await tab({ read: async () => Promise.reject(refusal("no scan", "one", "choose one")) });
    await expect(open(scans)).rejects.toThrow("no scan; expected one");
    await expect(engine.open({ folder: "1", path: "ct" }, undefined, UNHEARD)).rejects.toThrow("expected files on this computer");
  });

  it("opens the demo scan, comes back to it, and asks the browser to keep the work", async () => {
    const persist = vi.fn(async () => true);
    vi.stubGlobal("navigator", { storage: { persist } });
    const { id } = await (await tab()).open({ demo: true }, undefined, UNHEARD);
    vi.unstubAllGlobals();
    expect(persist).toHaveBeenCalledOnce();
    const again = await tab({ demo: () => expect.fail("it is kept") });
    expect(await again.state(id)).toMatchObject({ name: "scan.nii", revision: 0 });
  });

  it("takes masks of a file, each label an object", async () => {
    const mask = { ...volume(), data: Int16Array.from({ length: 120 }, (_, n) => (n === 7 ? 9 : n === 8 ? 4 : 0)), slope: 1, intercept: 0 };
    const engine = await tab({ readLabels: async () => mask });
    const { id } = await open(engine);
    const loaded = await engine.step(id, { kind: "mask", source: FILES });
    expect(loaded.objects.map(({ edited, messages }) => [edited, messages])).toEqual([[true, ["odd"]], [true, ["odd"]]]);
    expect(loaded).toMatchObject({ changed: { low: [1, 1, 0], high: [3, 2, 1] }, labels: Uint8Array.of(2, 1) });
    const empty = await tab({ readLabels: async () => ({ ...mask, data: new Int16Array(120) }) });
    await expect(empty.step((await open(empty)).id, { kind: "mask", source: FILES })).rejects.toThrow("scan.nii has no voxels on the scan");
  });
});

describe("what is kept", () => {
  it("brings the work back in another tab, with undo", async () => {
    const first = await tab();
    const { id } = await open(first);
    for (const step of [CLICK, BRUSH, { kind: "new object" }, { kind: "describe", number: 1, facts: { name: "liver" } }] as Step[]) await first.step(id, step);
    const read: string[] = [];
    const second = await tab({ read: async (files) => {
      for (const { name, file } of files) read.push(`${name}: ${await file.text()}`);
      return volume();
    } });
    asked = 0;
    const back = await second.state(id);
    expect(asked).toBe(0); // what the network found is kept
    expect(read).toEqual(["scan.nii: scan"]);
    expect(facts(back)).toEqual({ volumes: [0.004, 0], can_undo: true, revision: 4 });
    expect(back.objects[0]!.name).toBe("liver");
    expect(facts(await second.step(id, { kind: "undo" }))).toEqual({ volumes: [0.004], can_undo: true, revision: 5 });
    expect(facts(await second.step(id, { kind: "undo" }))).toEqual({ volumes: [0.002], can_undo: true, revision: 6 });
    const third = await tab({ info: { ...INFO, model: { ...INFO.model, name: "another" } } });
    expect((await third.state(id)).notes).toEqual(["odd", "made with the model known, computed again with another"]);
    expect(asked).toBe(1);
  });

  it("is one session for two tabs: neither overwrites the other", async () => {
    const [one, other] = [await tab(), await tab()];
    const { id } = await open(one);
    await one.step(id, CLICK);
    await other.state(id);
    await one.step(id, BRUSH);
    expect(facts(await other.step(id, { kind: "new object" }))).toEqual({ volumes: [0.004, 0], can_undo: true, revision: 3 });
    expect(facts(await one.state(id)).volumes).toEqual([0.004, 0]);
    // At the same time, where tabs cannot wait for each other: one of them has to do it again.
    const both = await Promise.allSettled([one.step(id, { kind: "undo" }), other.step(id, { kind: "undo" })]);
    expect(both.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    for (const engine of [one, other]) expect(facts(await engine.state(id))).toEqual({ volumes: [0.004], can_undo: true, revision: 4 });
  });

  it("is deleted when it is forgotten, or when the list has no place for it", async () => {
    const kept = new Map<string, string>();
    const engine = await tab();
    const { id } = await open(engine);
    await engine.step(id, CLICK);
    engine.forget(id);
    await expect(engine.state(id)).rejects.toThrow("a session that is not kept in this browser");
    const store = (await Store.open())!;
    expect([await store.find(id), await store.stepsAfter(id, 0)]).toEqual([undefined, []]);
    const { port1, port2 } = new MessageChannel();
    answerCalls(port2 as unknown as Port, new Host(tools({ store }), () => {}).handlers);
    for (const port of [port1, port2]) port.start();
    const storage = { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, value: string) => void kept.set(key, value) };
    const many = new LocalEngine(port1 as unknown as Port, storage);
    const ids = [];
    for (let n = 0; n < 13; n++) ids.push((await open(many)).id);
    await many.labels(ids[12]!);
    expect(many.recent().map((one) => one.id)).toEqual(ids.slice(1).reverse());
    expect([await store.find(ids[0]!), (await store.find(ids[1]!))?.name]).toEqual([undefined, "scan.nii"]);
  });

  it("is nothing when opening is cancelled", async () => {
    const control = new AbortController();
    const stages: string[] = [];
    const engine = await tab({ read: () => new Promise((resolve) => setTimeout(() => resolve(volume()), 20)) });
    const opening = engine.open(FILES, undefined, { signal: control.signal, progress: (stage) => (stages.push(stage), control.abort(new Error("cancelled"))) });
    await expect(opening).rejects.toThrow("cancelled");
    expect(stages).toEqual(["Reading the scan"]);
    await new Promise((resolve) => setTimeout(resolve, 40));
    expect(await indexedDB.databases()).toHaveLength(1);
    await expect(engine.state("a")).rejects.toThrow("is not kept in this browser");
  });

  it("is noted where there is no room, and the work goes on", async () => {
    const engine = await tab({ store: null });
    const state = await open(engine);
    expect(state.notes[1]).toBe("the work could not be kept in this browser: it would not outlive this tab");
    const { notes, revision } = await engine.step(state.id, CLICK);
    expect([notes.length, revision]).toEqual([2, 1]);
    const broken = await tab({ store: null, read: async (files) => (files[0]!.name === "scan.nii" ? volume() : Promise.reject(refusal("no scan", "one", "choose one"))) });
    const kept = await open(broken);
    await expect(broken.open({ files: [{ name: "other", file: new Blob() }] }, undefined, UNHEARD)).rejects.toThrow("no scan");
    expect((await broken.step(kept.id, CLICK)).revision).toBe(1); // what was open is still there
    expect(facts(await engine.step(state.id, { kind: "undo" })).volumes).toEqual([0]);
  });

  it("is kept later, where there was no room at first", async () => {
    const store = (await Store.open())!;
    let isFull = true;
    const full = new DOMException("full", "QuotaExceededError");
    const tight = {
      find: (id: string) => store.find(id), stepsAfter: (id: string, from: number) => store.stepsAfter(id, from),
      begin: (work: Work) => (isFull ? Promise.reject(full) : store.begin(work)), add: (steps: KeptStep[]) => (isFull ? Promise.reject(full) : store.add(steps)),
    } as unknown as Store;
    const engine = await tab({ store: tight });
    const { id } = await open(engine);
    expect((await engine.step(id, CLICK)).notes).toHaveLength(2);
    isFull = false;
    expect((await engine.step(id, BRUSH)).notes).toEqual(["odd"]);
    expect(facts(await (await tab()).state(id))).toEqual({ volumes: [0.004], can_undo: true, revision: 2 });
  });
});
