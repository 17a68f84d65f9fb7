// The network: the two graphs of `voxsam weights export`, run by onnxruntime-web in WASM on one or several threads.
// Places are indices of the crop as this engine counts them (see grid.ts); the graphs take them in reverse.
import * as ort from "onnxruntime-web/wasm";
import type { Index } from "../engine/engine";
import type { Card } from "./card";
import { condition, sampled, type FeatureMap } from "./conditioning";
import { refusal } from "./refusal";

const DEEPEST = 4; // of the feature maps

/** What is kept of an encoded crop. */
export interface Encoded {
  tensors: Record<string, ort.Tensor>; // by the names of the encoder's outputs, which are inputs of the decoder
  crop: Float32Array; // normalised
  bytes: number;
}

/** A click in a crop or outside it: its place, and its prompt features, sampled in this crop or in another. */
export interface PlacedClick {
  at: Index;
  features: Float32Array;
  positive: boolean;
}

/** Where onnxruntime's files are (by default beside its code), or its WebAssembly itself. Each thread loads `mjs`. */
export type WasmFiles = { mjs?: string; wasm: string | Uint8Array<ArrayBuffer> };

export class Network {
  private constructor(
    readonly card: Card,
    private readonly encoder: ort.InferenceSession,
    private readonly decoder: ort.InferenceSession,
  ) {}

  /** Whether a click, wherever it lies, tells by its prompt features what to find in a crop. */
  get seesFarClicks(): boolean {
    return this.card.config.prompt_kind === "sampler";
  }

  /** Load the graphs, ready to run. Throws EngineError for a model that cannot be used with clicks here. */
  static async load(card: Card, encoder: Uint8Array, decoder: Uint8Array, threads: number, files?: WasmFiles): Promise<Network> {
    if (card.automatic) {
      throw refusal(`the model ${card.name}, which was trained for automatic segmentation`, "a model that takes clicks", "export another one");
    }
    if (card.preprocessing.additional.length) {
      const images = card.preprocessing.additional.length + 1;
      throw refusal(`the model ${card.name}, which wants ${images} images of a patient`, "a model for one image", "use it with `voxsam serve`");
    }
    ort.env.wasm.numThreads = threads;
    if (files) {
      const { mjs, wasm } = files;
      ort.env.wasm.wasmPaths = { ...(mjs && { mjs }), ...(typeof wasm === "string" && { wasm }) };
      if (typeof wasm !== "string") ort.env.wasm.wasmBinary = wasm;
    }
    const options: ort.InferenceSession.SessionOptions = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
    return new Network(card, await ort.InferenceSession.create(encoder, options), await ort.InferenceSession.create(decoder, options));
  }

  /** Encode a normalised crop: all that does not depend on clicks. */
  async encode(crop: Float32Array): Promise<Encoded> {
    const side = this.card.config.crop;
    const tensors = { ...(await this.encoder.run({ crop: new ort.Tensor("float32", crop, [1, 1, side, side, side]) })) };
    return { tensors, crop, bytes: Object.values(tensors).reduce((sum, tensor) => sum + tensor.size * 4, crop.byteLength) };
  }

  /** The deepest features of a crop; null if the encoder does not output them, since no click changes them. */
  deepest({ tensors }: Encoded): FeatureMap | null {
    const map = tensors[`level_${DEEPEST}`];
    return map ? featureMap(map) : null;
  }

  /** The prompt features at a place; 0 outside the crop. */
  sample({ tensors }: Encoded, at: Index): Float32Array {
    const { prompt_kind, prompt_levels, crop } = this.card.config;
    if (prompt_kind !== "sampler") return new Float32Array();
    const parts = prompt_levels.map((level) => {
      const map = featureMap(tensors[`level_${level}`]!);
      return sampled(map, at.map((v, axis) => ((v + 0.5) * map.size[axis as 0]!) / crop - 0.5) as Index);
    });
    return Float32Array.from(parts.flatMap((part) => [...part]));
  }

  /** The logits of a crop, tumour minus background, for some clicks. `previous`: those of a mask to start from. */
  async decode(encoded: Encoded, clicks: PlacedClick[], previous: Float32Array | null): Promise<Float32Array> {
    const side = this.card.config.crop;
    const n = clicks.length;
    const shape = [1, 1, side, side, side];
    const prompts: Record<string, () => ort.Tensor> = {
      points: () => new ort.Tensor("float32", Float32Array.from(clicks.flatMap(({ at: [w, h, d] }) => [d, h, w])), [1, n, 3]),
      prompt_features: () => new ort.Tensor("float32", Float32Array.from(clicks.flatMap(({ features }) => [...features])), [1, n, clicks[0]!.features.length]),
      labels: () => new ort.Tensor("int64", BigInt64Array.from(clicks, ({ positive }) => (positive ? 1n : 0n)), [1, n]),
      previous: () => new ort.Tensor("float32", previous ?? new Float32Array(side ** 3), shape),
    };
    const feeds = Object.fromEntries(this.decoder.inputNames.map((name) => [name, encoded.tensors[name] ?? prompts[name]!()]));
    const found = await this.decoder.run(feeds);
    const logits = found["logits"]!.data as Float32Array;
    const tumour = logits.subarray(logits.length / 2);
    const difference = new Float32Array(tumour.length);
    for (let n = 0; n < difference.length; n++) difference[n] = tumour[n]! - logits[n]!;
    const { conditioning } = this.card;
    return conditioning ? condition(difference, [side, side, side], featureMap(found["fused"]!), clicks, conditioning) : difference;
  }

  /** Whether the network takes the previous mask too. */
  get goesOn(): boolean {
    return this.card.config.click_maps.length > 0;
  }
}

function featureMap({ data, dims }: ort.Tensor): FeatureMap {
  const [, count, d, h, w] = dims as [number, number, number, number, number];
  return { data: data as Float32Array, count, size: [w, h, d] };
}
