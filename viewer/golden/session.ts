// Plays scripts of steps through the browser's session, so that tests/web can compare it with Python's.
// usage: node session.js FOLDER, which holds scripts as *.json; the answers are written beside them as *.answers.json.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import type { Box, Index, Prompt } from "../src/engine/engine";
import { Grid } from "../src/local/grid";
import { Prediction } from "../src/local/predictor";
import { clicksOf, type Click, type SessionPrompt, voxelOf } from "../src/local/prompts";
import { componentsOf, holds, type Region, regionOf } from "../src/local/region";
import { Session, type SessionStep } from "../src/local/session";

interface Script {
  shape: Index;
  affine: number[][];
  scan: string; // base64 of int16, i fastest
  predictions: Mask[]; // what the network gives, one after the other
  steps: (SessionStep | { kind: "masks"; masks: (Mask & { name: string })[]; remarks: string[] })[];
}

interface Mask {
  box: Box;
  inside: string; // base64 of a byte a voxel
}

const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, "base64"));
const regionIn = ({ box, inside }: Mask) => regionOf(bytesOf(inside), box.high.map((h, axis) => h - box.low[axis]!) as Index, box.low);

class Known extends Prediction {
  constructor(
    grid: Grid,
    prompts: SessionPrompt[],
    clicks: Click[],
    note: string,
    private readonly mask: Region,
  ) {
    super(grid, prompts, clicks, [], [], null, [note]);
  }

  override region(keepClicked: boolean): Region {
    const clicked = this.clicks.filter(({ positive }) => positive).map(({ index }) => voxelOf(index, this.grid.shape));
    return keepClicked && clicked.some((voxel) => holds(this.mask, voxel)) ? componentsOf(this.mask, clicked) : this.mask;
  }

  override get bytes(): number {
    return 4 * this.mask.inside.length;
  }
}

// A network whose masks are known beforehand.
function known(masks: Region[], grid: Grid) {
  let calls = 0;
  return {
    restored: (): Prediction => {
      throw new Error("nothing was kept");
    },
    predict: async (prompts: SessionPrompt[], previous: Prediction | null = null): Promise<Prediction> => {
      const before = previous?.prompts ?? [];
      const isFurther = before.every((prompt, n) => prompt === prompts[n]);
      const fresh = prompts.slice(isFurther ? before.length : 0).flatMap((prompt) => clicksOf(prompt, { shape: grid.shape, spacing_mm: grid.spacing }));
      const mask = masks[++calls % masks.length]!;
      return new Known(grid, prompts, [...(isFurther ? previous?.clicks ?? [] : []), ...fresh], `prediction ${calls}`, mask);
    },
  };
}

async function play({ shape, affine, scan, predictions, steps }: Script) {
  const segmenter = known(predictions.map(regionIn), new Grid(shape, affine));
  const data = new Int16Array(bytesOf(scan).buffer);
  const session = new Session({ data, shape, affine, slope: 1, intercept: 0 }, segmenter);
  const answers = [];
  for (const step of steps) {
    const given = step.kind === "masks" ? { ...step, masks: step.masks.map((mask) => ("region" in mask ? mask : { name: mask.name, region: regionIn(mask) })) } : step;
    let refused: string | null = null;
    let done = false;
    try {
      done = await session.take(given as SessionStep);
    } catch (error) {
      refused = (error as Error).message;
    }
    const box = session.extent;
    const clicks = [...session.seen.objects].map(([number, object]) => [number, object.prediction?.clicks ?? []]);
    answers.push({ done, refused, changed: session.changed, box, labels: Buffer.from(session.labels(box)).toString("base64"), clicks, ...session.state() });
  }
  return answers;
}

const folder = process.argv[2]!;
for (const name of readdirSync(folder).filter((one) => one.endsWith(".json") && !one.endsWith(".answers.json"))) {
  const answers = await play(JSON.parse(readFileSync(join(folder, name), "utf8")) as Script & { steps: { prompts?: Prompt[] }[] });
  writeFileSync(join(folder, `${basename(name, ".json")}.answers.json`), JSON.stringify(answers));
}
