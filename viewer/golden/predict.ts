// Predicts through the browser's code, so that tests/web can compare it with Python's.
// usage: node predict.js FOLDER, which holds job.json, model/ of `voxsam weights export`, and the scans' voxels;
// the masks of each scan's steps go to NAME-STEP.bin (uint8, i fastest), what is said of them to answers.json.
import { readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import type { Index } from "../src/engine/engine";
import { Network } from "../src/local/network";
import { Predictor, type Prediction } from "../src/local/predictor";
import type { SessionPrompt } from "../src/local/prompts";
import { regionOf, voxelsOf, within } from "../src/local/region";
import type { VoxelArray } from "../src/local/volume";

interface Scan {
  name: string; // of the file NAME.bin
  type: "Int16Array" | "Float32Array" | "Uint8Array";
  shape: Index;
  affine: number[][];
  modality: string;
  keepClicked: boolean;
  follow: boolean;
  steps: SessionPrompt[][]; // of each the prompts that are added
  hint: Index[] | null; // voxels of a mask that goes before them
}

const folder = process.argv[2] as string;
const job = JSON.parse(readFileSync(join(folder, "job.json"), "utf8")) as { threads: number; scans: Scan[] };
const bytes = (name: string) => Uint8Array.from(readFileSync(join(folder, name)));
const ort = pathToFileURL(resolve("node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded")).href;
const card = JSON.parse(readFileSync(join(folder, "model", "card.json"), "utf8"));
const network = await Network.load(card, bytes("model/encoder.onnx"), bytes("model/decoder.onnx"), job.threads, { mjs: `${ort}.mjs`, wasm: `${ort}.wasm` });
const answers: object[] = [];
const used = () => process.cpuUsage().user / 1e6;

for (const { name, type, shape, affine, modality, keepClicked, follow, steps, hint } of job.scans) {
  const data = new { Int16Array, Float32Array, Uint8Array }[type](bytes(`${name}.bin`).buffer) as VoxelArray;
  const predictor = new Predictor(network, { data, shape, affine, modality, remarks: [], slope: 1, intercept: 0, dicom: null, name }, { follow });
  let before: Prediction | null = null;
  let prompts: SessionPrompt[] = [];
  for (const [n, added] of steps.entries()) {
    if (n === 0 && hint) {
      const inside = new Uint8Array(data.length);
      for (const [i, j, k] of hint) inside[(k * shape[1] + j) * shape[0] + i] = 1;
      prompts.push({ kind: "hint", region: regionOf(inside, shape) });
    }
    prompts = [...prompts, ...added];
    const begun = used();
    try {
      before = await predictor.predict(prompts, before);
      const region = before.region(keepClicked);
      const seconds = used() - begun;
      writeFileSync(join(folder, `${name}-${n}.bin`), within(region, { low: [0, 0, 0], high: shape }));
      answers.push({ scan: name, step: n, voxels: voxelsOf(region), remarks: before.remarks, crops: before.pieces.length, confidence: before.confidence, className: before.className, seconds });
    } catch (error) {
      answers.push({ scan: name, step: n, error: (error as Error).message });
    }
  }
}
writeFileSync(join(folder, "answers.json"), JSON.stringify(answers));
