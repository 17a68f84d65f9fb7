// Predictor: a scan and prompts in, an object on the scan's own voxels out; it remembers encoded crops, but no clicks.
// The prompts choose crops of the scan, each crop is encoded once, each click's prompt features are sampled where it
// lies, every crop is decoded with all clicks, a tumour that reaches the border of its crop is followed into further
// crops, and the result is resampled to the scan: as in src/voxsam/interactive/predictor.py, with the same numbers.
import type { Box, Confidence, Index } from "../engine/engine";
import { isEmpty, sizeOf } from "../stage/geometry";
import { AXES, countOf, eachRow, hull, intersection, perAxis } from "./boxes";
import { className, confidence } from "./confidence";
import { imageOf, modelGrid, paste, readCrop, type Image } from "./crop";
import { Grid, Window } from "./grid";
import type { Encoded, Network, PlacedClick } from "./network";
import { blend, chooseWindows, clickedExtent, connected, isNew, nextWindows, THRESHOLD, tumourParts, voxelsAbove, type Piece } from "./pieces";
import { boxOf, clicksOf, thousandths, voxelOf, type Click, type SessionPrompt } from "./prompts";
import { refusal } from "./refusal";
import { componentsOf, EMPTY, regionOf, union, type Region } from "./region";
import { airRemarks, BOX_IGNORED, cropRemarks, missedRemark, RUNAWAY, scanRemarks, UNLIKE, type End } from "./remarks";
import { MAX_CHANGES, Scale } from "./scale";
import type { Volume } from "./volume";

const MAX_CROPS = 12; // of one tumour, those it is followed into included
const SURE = 1e-5; // probabilities are kept this far from 0 and 1, so that logits are finite
const KEPT_BYTES = 256 * 2 ** 20; // of encoded crops

/** One object as the model sees it, and what it was made from. Immutable. */
export class Prediction {
  private found: Region | null = null;
  private said: string[] | null = null;

  constructor(
    readonly grid: Grid, // of the scan
    readonly prompts: SessionPrompt[] = [],
    readonly clicks: Click[] = [], // of the prompts
    readonly windows: Window[] = [], // chosen for the clicks
    readonly pieces: Piece[] = [], // in these windows, and in those followed into
    readonly box: Box | null = null, // of the scan, outside which the mask is 0; null: no limit
    readonly notes: string[] = [], // remarks other than those on missed clicks
    readonly confidence: Confidence | null = null, // of a calibrated model
    readonly className: string | null = null, // which of the model's classes it looks like
  ) {}

  /**
   * The voxels above 0.5; with `keepClicked` only the components (joined through faces) that hold a positive click, or
   * all if none does.
   */
  region(keepClicked: boolean): Region {
    this.found ??= this.pasted();
    if (!keepClicked) return this.found;
    const clicked = componentsOf(this.found, this.clicks.filter((click) => click.positive).map((click) => voxelOf(thousandths(click.index), this.grid.shape)));
    return clicked === EMPTY ? this.found : clicked;
  }

  /** What a person should know about the mask, one line each. */
  get remarks(): string[] {
    this.said ??= [...this.notes, ...missedRemark(this.clicks, this.grid.shape, this.region(false))];
    return this.said;
  }

  /** The prediction without its pieces: its crops stay when a prompt is removed, its mask does not. */
  withoutPieces(): Prediction {
    return new Prediction(this.grid, this.prompts, this.clicks, this.windows, [], this.box, this.notes);
  }

  /** The prediction as `Predictor.restored` takes it. */
  kept(): KeptPrediction {
    const { clicks, windows, pieces, box, notes, confidence, className } = this;
    return { clicks, windows: windows.map(keptWindow), pieces: pieces.map(({ window, probability }) => ({ ...keptWindow(window), probability })), box, notes, confidence, className };
  }

  /** Bytes that the probabilities and the mask take. */
  get bytes(): number {
    return this.pieces.reduce((sum, piece) => sum + piece.probability.byteLength, this.found?.inside.byteLength ?? 0);
  }

  private pasted(): Region {
    let all = EMPTY;
    for (const { window, probability } of tumourParts(this.pieces)) {
      const { box, values } = paste(probability, window, this.grid);
      const reached = this.box ? intersection(box, this.box) : box;
      const inside = new Uint8Array(countOf(reached));
      eachRow(reached, box, reached, (from, to, length) => {
        for (let n = 0; n < length; n++) inside[to + n] = values[from + n]! > THRESHOLD ? 1 : 0;
      });
      all = union(all, regionOf(inside, sizeOf(reached), reached.low));
    }
    return all;
  }
}

/** A prediction as plain values, without its prompts, to be kept so that it need not be computed again. */
export type KeptPrediction = Pick<Prediction, "clicks" | "box" | "notes" | "confidence" | "className"> & {
  windows: KeptWindow[];
  pieces: (KeptWindow & { probability: Float32Array })[];
};

interface KeptWindow {
  grid: Pick<Grid, "shape" | "affine">; // the model grid
  start: Index;
  size: Index;
}

function keptWindow({ modelGrid: { shape, affine }, start, size }: Window): KeptWindow {
  return { grid: { shape, affine }, start, size };
}

function windowOf({ grid, start, size }: KeptWindow): Window {
  return new Window(new Grid(grid.shape, grid.affine), start, size);
}

export interface PredictorOptions {
  follow?: boolean; // a mask that reaches the border of its crop; true by default
  keptBytes?: number; // of encoded crops
  /** Called with what is being done; an error that it throws ends the prediction. */
  progress?(stage: string, fraction: number | null): void;
}

/** The probabilities in a window; without `whole`, those of the crop alone where a model looks at its mirror image, too. */
type Decode = (window: Window, whole: boolean) => Promise<Float32Array>;

interface Look {
  windows: Window[];
  decode: Decode;
}

interface Segmented {
  windows: Window[];
  pieces: Piece[];
  end: End;
}

export class Predictor {
  readonly grid: Grid;
  private readonly image: Image;
  private readonly scanRemarks: string[];
  private readonly encoded = new Map<string, Encoded>(); // by their windows, the latest last
  private used = new Set<string>(); // by the current object

  constructor(
    readonly network: Network,
    readonly volume: Volume,
    private readonly options: PredictorOptions = {},
  ) {
    const { preprocessing } = network.card;
    this.grid = new Grid(volume.shape, volume.affine);
    this.image = imageOf(volume, preprocessing);
    this.scanRemarks = scanRemarks(volume, preprocessing);
  }

  /** An object without prompts. */
  get empty(): Prediction {
    return new Prediction(this.grid);
  }

  /** Restore a kept prediction of this scan that was made from these prompts. */
  restored(prompts: SessionPrompt[], { clicks, windows, pieces, box, notes, confidence, className }: KeptPrediction): Prediction {
    const own = pieces.map(({ probability, ...window }): Piece => ({ window: windowOf(window), probability }));
    return new Prediction(this.grid, prompts, clicks, windows.map(windowOf), own, box, notes, confidence ?? null, className ?? null); // kept by an older version: none
  }

  /** Free the memory of the encoded crops. */
  forgetFeatures(): void {
    this.encoded.clear();
  }

  /**
   * Segment the object that these prompts, and no others, point at. `previous` is the prediction before the last
   * prompts: crops that still hold all clicks stay where they were, and a model that takes a mask gets its
   * probabilities. Throws EngineError for prompts that cannot be used.
   */
  async predict(prompts: SessionPrompt[], previous: Prediction | null = null): Promise<Prediction> {
    const before = previous ?? this.empty;
    const clicks = this.clicksOf(prompts, before);
    this.check(clicks);
    this.used = new Set(before.pieces.flatMap(({ window }) => [window.key, window.mirrored().key]));
    const { windows, pieces, end } = await this.segment(clicks, before);
    const [sure, kind] = await this.judged(pieces, clicks);
    const box = commonBox(prompts, clicks, this.grid.shape);
    const notes = [
      ...this.scanRemarks,
      ...airRemarks(this.volume, clicks),
      ...cropRemarks(windows.length, pieces.length, end, this.follows),
      ...(sure?.doubtful ? [UNLIKE] : []),
      ...(box === null && prompts.some((prompt) => prompt.kind === "box") ? [BOX_IGNORED] : []),
    ];
    return new Prediction(this.grid, [...prompts], clicks, windows, pieces, box, notes, sure, kind);
  }

  /** The confidence (null if the model is not calibrated), and the class it looks like (null if there are none). */
  private async judged(pieces: Piece[], clicks: Click[]): Promise<[Confidence | null, string | null]> {
    const { calibration, classes } = this.network.card;
    if (!calibration && !classes) return [null, null];
    const [first] = pieces as [Piece, ...Piece[]];
    const encoded = await this.encode(first.window);
    const tokens = this.network.deepest(encoded);
    if (!tokens) return [null, null];
    const seen = clicks.map(({ index, positive }) => ({ world: this.grid.toWorld(index), positive }));
    const volume_ml = voxelsAbove(pieces) * first.window.modelGrid.voxelVolume;
    const sure = calibration ? confidence(calibration, pieces, seen, encoded.crop, volume_ml) : null;
    return [sure, classes ? className(classes, first, tokens) : null];
  }

  private get follows(): boolean {
    // A model that cannot see clicks outside a crop would guess there.
    return (this.options.follow ?? true) && this.network.seesFarClicks;
  }

  // The clicks that the prompts become; those of prompts already in `before` are reused.
  private clicksOf(prompts: SessionPrompt[], before: Prediction): Click[] {
    if (!prompts.length) throw refusal("no prompt", "a click, box, scribble or mask hint", "give at least one");
    const isKnown = before.prompts.every((prompt, n) => prompt === prompts[n]);
    const scan = { shape: this.grid.shape, spacing_mm: this.grid.spacing };
    const fresh = prompts.slice(isKnown ? before.prompts.length : 0).flatMap((prompt) => clicksOf(prompt, scan));
    return [...(isKnown ? before.clicks : []), ...fresh];
  }

  private check(clicks: Click[]): void {
    if (!clicks.some((click) => click.positive)) {
      throw refusal("negative clicks only", "at least one click in the tumour", "click the tumour first");
    }
    const { name, config } = this.network.card;
    if (!config.polarity && !clicks.every((click) => click.positive)) {
      const expected = "positive clicks: this model was trained without polarity";
      throw refusal(`a negative click for the model ${name}`, expected, "leave it out, or use a model that takes negative clicks");
    }
  }

  /** The windows chosen for the clicks, the pieces there and where the mask was followed, and how it ends. */
  private async segment(clicks: Click[], before: Prediction): Promise<Segmented> {
    const { preprocessing } = this.network.card;
    const scale = Scale.of(this.network.card);
    if (!scale) return this.followed(this.look(modelGrid(this.grid, preprocessing), clicks, before));
    const own = modelGrid(this.grid, preprocessing);
    const world = clicks.map((click) => this.grid.toWorld(click.index));
    const places = world.map((at) => own.toIndex(at).map((v, axis) => v * own.spacing[axis as 0]!) as Index);
    const positive = world.filter((_, n) => clicks[n]!.positive);
    const missed = before.pieces.length > 0 && !voxelsAbove(before.pieces);
    const known = missed ? undefined : before.windows[0]?.modelGrid.spacing;
    const isCorrected = known !== undefined && positive.length < clicks.length;
    // Look at several spacings, and keep the one where the mask is surest and fits.
    const looks = new Map<number, Look & { across: number; sure: number }>();
    const look = async (spacing: number) => {
      const { windows, decode } = this.look(modelGrid(this.grid, preprocessing, spacing), clicks, before);
      const pieces: Piece[] = [];
      for (const window of windows) pieces.push({ window, probability: await decode(window, false) });
      looks.set(spacing, { windows, decode, ...clickedExtent(pieces, positive) });
    };
    for (const spacing of scale.first(places, known ? Math.max(...known) : null)) await look(spacing);
    let [spacing] = [...looks].reduce((best, other) => (Scale.preference(other[1]) > Scale.preference(best[1]) ? other : best));
    const chosen = [spacing];
    for (let n = 0; n < MAX_CHANGES; n++) {
      const { across } = looks.get(spacing)!;
      const wanted = scale.next(spacing, across, places, isCorrected);
      if (!looks.has(wanted)) await look(wanted);
      if (chosen.includes(wanted) || (across && !looks.get(wanted)!.across)) break; // keep a mask that holds the click
      chosen.push((spacing = wanted));
    }
    return this.followed(looks.get(spacing)!);
  }

  /** The windows of a model grid chosen for the clicks, and a function that computes a window's probabilities. */
  private look(grid: Grid, clicks: Click[], before: Prediction): Look {
    const at = clicks.map((click) => grid.toIndex(this.grid.toWorld(click.index)));
    const side = this.network.card.config.crop;
    const windows = chooseWindows(grid, at, side, before.windows.filter((window) => window.modelGrid.key === grid.key));
    if (windows.length > 1 && this.options.follow === false) {
      const span = Math.max(...AXES.map((axis) => (Math.max(...at.map((v) => v[axis])) - Math.min(...at.map((v) => v[axis]))) * grid.spacing[axis]));
      const given = `clicks ${span.toFixed(0)} mm apart with one crop of ${side} voxels`;
      throw refusal(given, "clicks that fit well inside one crop", "segment them one by one");
    }
    const direct = this.logitsOf(windows, clicks, before.pieces);
    const reflected = before.pieces.map(({ window, probability }): Piece => ({ window: window.mirrored(), probability: flipped(probability, window.size) }));
    const mirror = this.logitsOf(windows.map((window) => window.mirrored()), clicks, reflected);
    const decode = async (window: Window, whole: boolean) => {
      let logits = await direct(window);
      if (whole && this.network.card.mirrored) {
        const other = flipped(await mirror(window.mirrored()), window.size);
        logits = logits.map((v, n) => (v + other[n]!) / 2);
      }
      return this.probabilities(logits);
    };
    return { windows, decode };
  }

  /** A function that computes, once, the logits in a window for clicks whose windows these are. */
  private logitsOf(windows: Window[], clicks: Click[], before: Piece[]): (window: Window) => Promise<Float32Array> {
    const { modelGrid } = windows[0]!;
    const at = clicks.map((click) => modelGrid.toIndex(this.grid.toWorld(click.index)));
    const features: Float32Array[] = [];
    const known = new Map<string, Float32Array>();
    return async (window) => {
      for (const place of at.slice(features.length)) {
        // Sampled in the window that it is most central in.
        const apart = (window: Window) => Math.max(...AXES.map((axis) => Math.abs(place[axis] - (window.start[axis] + window.size[axis] / 2 - 0.5))));
        const home = windows.reduce((best, window) => (apart(window) < apart(best) ? window : best));
        features.push(this.network.sample(await this.encode(home), within(place, home)));
      }
      const placed = clicks.map(({ positive }, n): PlacedClick => ({ at: within(at[n]!, window), features: features[n]!, positive }));
      const logits = known.get(window.key) ?? (await this.network.decode(await this.encode(window), placed, this.network.goesOn ? previousLogits(window, before) : null));
      known.set(window.key, logits);
      return logits;
    };
  }

  /** The windows, the pieces with those followed into, and how the mask ends; the first alone if it ran away. */
  private async followed({ windows, decode }: Look): Promise<Segmented> {
    const first: Piece[] = [];
    for (const window of windows) first.push({ window, probability: await decode(window, true) });
    const most = this.network.card.preprocessing.spacing_range_mm ? RUNAWAY * voxelsAbove(first) : Infinity;
    const pieces = [...first];
    let waiting = first.flatMap(({ window, probability }) => nextWindows(window, probability));
    for (;;) {
      waiting = waiting.filter((window) => isNew(window, pieces));
      const window = waiting.shift();
      if (!window) return { windows, pieces, end: "inside" };
      if (!this.follows || pieces.length >= MAX_CROPS) return { windows, pieces, end: "open" };
      const piece = { window, probability: await decode(window, true) };
      pieces.push({ window, probability: connected(piece, blend(pieces, window)) });
      if (most < Infinity && voxelsAbove(pieces) > most) return { windows, pieces: first, end: "ran away" };
      waiting.push(...nextWindows(window, blend(pieces, window)));
    }
  }

  /** The window's encoded crop, encoded now unless it is kept. */
  private async encode(window: Window): Promise<Encoded> {
    this.used.add(window.key);
    let encoded = this.encoded.get(window.key);
    if (!encoded) {
      this.options.progress?.("encoding", null); // onnxruntime does not report progress
      const mirror = this.encoded.get(window.mirrored().key);
      encoded = await this.network.encode(mirror ? flipped(mirror.crop, window.size) : readCrop(this.image, window, this.network.card.preprocessing));
      this.makeRoom(encoded.bytes);
    }
    this.encoded.delete(window.key);
    this.encoded.set(window.key, encoded);
    return encoded;
  }

  // Drop crops of other objects, the oldest first, then the latest of this object: a click uses all of them in the same
  // order, and if the oldest went, none would be there when its turn comes.
  private makeRoom(bytes: number): void {
    const limit = this.options.keptBytes ?? KEPT_BYTES;
    const isFull = () => [...this.encoded.values()].reduce((sum, encoded) => sum + encoded.bytes, bytes) > limit;
    for (const key of [...this.encoded.keys()].filter((key) => !this.used.has(key))) if (isFull()) this.encoded.delete(key);
    while (this.encoded.size && isFull()) this.encoded.delete([...this.encoded.keys()].at(-1)!);
  }

  /** The probabilities of logits. Throws EngineError if the model's prediction is NaN. */
  private probabilities(logits: Float32Array): Float32Array {
    const probability = new Float32Array(logits.length);
    let sum = 0;
    for (let n = 0; n < logits.length; n++) sum += probability[n] = 1 / (1 + Math.exp(-logits[n]!));
    if (Number.isNaN(sum)) {
      throw refusal(`the model ${this.network.card.name} answered with NaN`, "probabilities", "load the page again");
    }
    return probability;
  }
}

function within(place: Index, { start }: Window): Index {
  return perAxis((axis) => place[axis] - start[axis]);
}

/** A crop's mirror image: its first axis, the last one of the model's, the other way round. */
function flipped(crop: Float32Array, [width]: Index): Float32Array {
  return crop.map((_, n) => crop[n - (n % width) * 2 + width - 1]!);
}

/** The logits of the pieces in a window of their grid, 0 elsewhere; null if there are none. */
function previousLogits(window: Window, before: Piece[]): Float32Array | null {
  const shared = (piece: Piece) => intersection(piece.window.box, window.box);
  const pieces = before.filter((piece) => piece.window.modelGrid.key === window.modelGrid.key && !isEmpty(shared(piece)));
  if (!pieces.length) return null;
  const known = blend(pieces, window);
  const logits = new Float32Array(known.length);
  for (const piece of pieces) {
    eachRow(shared(piece), window.box, window.box, (at, _, length) => {
      for (let n = at; n < at + length; n++) {
        const probability = Math.min(Math.max(known[n]!, SURE), 1 - SURE);
        logits[n] = Math.log(probability / (1 - probability));
      }
    });
  }
  return logits;
}

/** The hull of the boxes among the prompts; null without boxes, or if a positive click lies outside it. */
function commonBox(prompts: SessionPrompt[], clicks: Click[], shape: Index): Box | null {
  const boxes = prompts.flatMap((prompt) => (prompt.kind === "box" ? [boxOf(prompt, shape)] : []));
  if (!boxes.length) return null;
  const box = hull(boxes);
  const isBeyond = ({ index }: Click) => AXES.some((axis) => index[axis] < box.low[axis] - 0.5 || index[axis] > box.high[axis] - 0.5);
  return clicks.some((click) => click.positive && isBeyond(click)) ? null : box;
}
