// The worker of the engine in the browser: model, reader, writer and store, behind the page's calls.
import mjs from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import runtime from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";
import { version } from "../../package.json";
import { EngineError, type Info, type NamedFile, type Notice } from "../engine/engine";
import { answerCalls, type Port } from "./calls";
import type { Card } from "./card";
import { Host, type Tools } from "./host";
import { Network } from "./network";
import { Predictor } from "./predictor";
import { PRESETS } from "./presets";
import { readLabels, readScan } from "./read";
import { Store } from "./store";
import { TYPES } from "./types";
import { wasmBytes } from "./wasm";
import { writeFile } from "./write";

const MAX_THREADS = 4; // more do not make a click faster
const PAGE = new URL("../", self.location.href); // above the folder of the page's scripts
const DEMO = "demo.nii.gz";

async function fetched(name: string, what: string): Promise<Response> {
  const answer = await fetch(new URL(name, PAGE)).catch(() => null);
  if (answer?.ok) return answer;
  throw new EngineError({ message: `${what} could not be loaded`, remedy: "check the connection, then load the page again" }, false);
}

const modelFile = (name: string) => fetched(`model/${name}`, `the model's file ${name}`);
const bytesOf = async (name: string) => new Uint8Array(await (await modelFile(name)).arrayBuffer());

async function demo(): Promise<NamedFile[]> {
  return [{ name: DEMO, file: await (await fetched(DEMO, "the demo scan")).blob() }];
}

async function start(): Promise<Host["handlers"]> {
  const card = (await (await modelFile("card.json")).json()) as Card;
  const info: Info = {
    version,
    model: {
      name: card.name,
      modality: card.preprocessing.modality,
      prompts: Object.fromEntries(["positive", "negative", "box", "scribble", "hint"].map((kind) => [kind, card.prompts.includes(kind)])),
      licence: card.description["licence"] ?? "",
    },
    presets: PRESETS,
    folders: [],
    demo: import.meta.env.DEMO as boolean,
    types: TYPES,
  };
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MAX_THREADS) : 1;
  const network = Promise.all([bytesOf("encoder.onnx"), bytesOf("decoder.onnx"), wasmBytes(runtime)]).then(([encoder, decoder, wasm]) =>
    Network.load(card, encoder, decoder, threads, { mjs: new URL(mjs, self.location.href).href, wasm }),
  );
  network.catch(() => {}); // opening a scan reports it
  const news = new BroadcastChannel("voxsam-local"); // to other tabs, which may have the same session
  const post = (session: string, notice: Notice) => self.postMessage({ session, notice });
  news.addEventListener("message", ({ data }) => post(data.session, data.notice));
  const tools: Tools = {
    info,
    segmenter: async (scan, progress) => new Predictor(await network, scan, { progress }),
    demo,
    read: readScan,
    readLabels,
    write: writeFile,
    store: await Store.open(),
    locks: navigator.locks ?? null, // missing without a secure context
  };
  const tell = (session: string, notice: Notice) => {
    post(session, notice);
    if (notice.kind === "idle") news.postMessage({ session, notice });
  };
  return new Host(tools, tell).handlers;
}

answerCalls(self as unknown as Port, start()); // the page's types do not know a worker's scope
