// A session: one scan, one model, any number of objects, and every step of the page, as in voxsam.interactive.session.
import type { Edit, Index, ObjectFacts, ObjectState, State, Step } from "../engine/engine";
import { isEmpty } from "../stage/geometry";
import { type Drawable, edited } from "./editing";
import { editedTo, extentOf, History, isEdited, labelsIn, NOTHING, prompted, remarksOf, type Segmented, type Snapshot, withObject, withoutObject } from "./history";
import { Grid } from "./grid";
import { measure, type Measurement } from "./measure";
import type { KeptPrediction, Prediction, Predictor } from "./predictor";
import { knownPrompt, type SessionPrompt, thousandths, voxelOf } from "./prompts";
import { refusal } from "./refusal";
import { differs, type Region } from "./region";
import { TYPES } from "./types";

const MAX_OBJECTS = 255; // labels in a byte
const LONGEST_NAME = 64; // characters that DICOM allows
export const COLOURS = ["#ff5a5f", "#69fff0", "#ffff1e", "#b44bff", "#3c96b4", "#e1960f"];

/** Segments the scan. */
export type Segmenter = Pick<Predictor, "predict" | "restored">;

/** Masks from a file, on the scan, each of which becomes an object. */
export interface LoadedMasks {
  kind: "masks";
  masks: { name: string; region: Region }[];
  remarks: string[];
}

/** What changes a session: a step of the page, or the masks read for one. */
export type SessionStep = Exclude<Step, { kind: "mask" }> | LoadedMasks;

type Description = Pick<ObjectFacts, "name" | "colour" | "visible" | "type">;

/** The part of the page's state that is the session's own. */
export type SessionState = Pick<State, "objects" | "current" | "overlap" | "keep_clicked" | "can_undo" | "can_redo">;

export class Session {
  private readonly history: History;
  private readonly described = new Map<number, Description>(); // including objects that undo may bring back
  private readonly measured = new WeakMap<Region, Measurement>();

  constructor(
    readonly scan: Drawable,
    private readonly segmenter: Segmenter,
    options: { keepClicked?: boolean; undoBytes?: number } = {},
  ) {
    const begin = { objects: new Map([[1, NOTHING]]), current: 1, overlap: false, keepClicked: options.keepClicked ?? true };
    this.history = new History(begin, options.undoBytes);
  }

  /**
   * Take a step; returns whether anything was done. Throws EngineError for input that cannot be used, and leaves the
   * session as it was. Afterwards `changed` is the box of the voxels that an object gained or lost. `kept` is what the
   * network gave when the step was first taken (`found`): it does not run again.
   */
  async take(step: SessionStep, kept: KeptPrediction | null = null): Promise<boolean> {
    const before = this.seen;
    switch (step.kind) {
      case "prompt": await this.prompt(step.prompts, kept); break;
      case "delete prompt": await this.deletePrompt(step.number, step.index, kept); break;
      case "edit": this.edit(step.edits); break;
      case "masks": this.load(step); break;
      case "undo": this.history.undo(); break;
      case "redo": this.history.redo(); break;
      case "reset": this.reset(); break;
      case "new object": this.newObject(); break;
      case "select": this.object(step.number); this.history.select(step.number); break;
      case "delete object": this.object(step.number); this.history.enter(withoutObject(before, step.number)); break;
      case "describe": this.describe(step.number, step.facts); break;
      case "rules": this.rules(step.rules); break;
    }
    return this.seen !== before || step.kind === "describe";
  }

  /** What the network gave for the step taken last; null if it did not run for that step. */
  found({ kind }: SessionStep): KeptPrediction | null {
    const { prediction } = this.object(this.seen.current);
    return kind === "prompt" || kind === "delete prompt" ? (prediction?.kept() ?? null) : null;
  }

  get seen(): Snapshot {
    return this.history.seen;
  }

  get changed() {
    return this.history.changed;
  }

  get extent() {
    return extentOf(this.seen);
  }

  labels(box = this.extent): Uint8Array {
    return labelsIn(this.seen, box);
  }

  state(): SessionState {
    const { objects, current, overlap, keepClicked } = this.seen;
    return {
      objects: [...objects].map(([number, object]) => this.objectState(number, object)),
      current,
      overlap,
      keep_clicked: keepClicked,
      can_undo: this.history.canUndo,
      can_redo: this.history.canRedo,
    };
  }

  measurement(region: Region): Measurement {
    const found = this.measured.get(region) ?? measure(region, this.scan);
    this.measured.set(region, found);
    return found;
  }

  private objectState(number: number, object: Segmented): ObjectState {
    const { volume_ml, longest, perpendicular } = this.measurement(object.region);
    const { shape, affine } = this.scan;
    return {
      number,
      ...this.description(number),
      locked: object.locked,
      prompts: (object.prediction?.prompts ?? []).map((prompt) => knownPrompt(prompt, shape)),
      edited: isEdited(object),
      volume_ml,
      longest_diameter_mm: longest?.mm ?? 0,
      longest: longest && { mm: longest.mm, ends: longest.ends.map(thousandths) as [Index, Index] },
      perpendicular: perpendicular && { mm: perpendicular.mm, ends: perpendicular.ends.map(thousandths) as [Index, Index] },
      class_name: object.prediction?.className ?? null,
      confidence: isEdited(object) || object.keptByOthers ? null : (object.prediction?.confidence ?? null),
      messages: remarksOf(object, shape, new Grid(shape, affine).voxelVolume),
    };
  }

  private description(number: number): Description {
    const colour = COLOURS[(number - 1) % COLOURS.length]!;
    return this.described.get(number) ?? { name: `Tumour ${number}`, colour, visible: true, type: TYPES[0]! };
  }

  private object(number: number): Segmented {
    const found = this.seen.objects.get(number);
    if (found) return found;
    throw refusal(`object ${number}`, `one of [${[...this.seen.objects.keys()].join(", ")}]`, "begin it with new_object()");
  }

  // The mask of an object that was painted or loaded, and has no prompts yet, is given as a hint.
  private async prompt(prompts: SessionPrompt[], kept: KeptPrediction | null): Promise<void> {
    if (!prompts.length) throw refusal("no prompt", "a click, box, scribble or mask hint", "give at least one");
    const { seen } = this;
    const object = this.object(seen.current);
    const before = object.prediction;
    const hint: SessionPrompt[] = before || isEmpty(object.region.box) ? [] : [{ kind: "hint", region: object.region }];
    const found = await this.predicted([...(before?.prompts ?? []), ...hint, ...prompts], before, kept);
    const clicks = found.clicks.slice(before?.clicks.length ?? 0);
    const placed = clicks.map(({ index, positive }) => ({ voxel: voxelOf(thousandths(index), this.scan.shape), positive }));
    this.history.enter(withObject(seen, prompted(object, found, seen.keepClicked, placed)));
  }

  private async deletePrompt(number: number, index: number, kept: KeptPrediction | null): Promise<void> {
    const { seen } = this;
    const object = this.object(number);
    const before = object.prediction;
    const prompts = before?.prompts ?? [];
    if (!before || !(index >= 0 && index < prompts.length)) {
      throw refusal(`prompt ${index} of object ${number}`, `one of its ${prompts.length}, from 0 on`, "choose one of them");
    }
    const left = prompts.filter((_, n) => n !== index);
    const found = left.length ? await this.predicted(left, before.withoutPieces(), kept) : null;
    this.history.enter(withObject(seen, prompted({ ...object, notes: [] }, found, seen.keepClicked), number));
  }

  private async predicted(prompts: SessionPrompt[], before: Prediction | null, kept: KeptPrediction | null): Promise<Prediction> {
    return kept ? this.segmenter.restored(prompts, kept) : this.segmenter.predict(prompts, before);
  }

  private edit(edits: Edit[]): void {
    const { seen } = this;
    const object = this.object(seen.current);
    const after = withObject(seen, editedTo(object, edited(object.region, edits, this.scan)));
    if (!isEmpty(differs(after.objects.get(seen.current)!.region, object.region))) this.history.enter(after);
  }

  // The first mask replaces the current object, and every further one becomes an object of its own.
  private load({ masks, remarks }: LoadedMasks): void {
    if (!masks.length || masks.some(({ region }) => isEmpty(region.box))) {
      throw refusal("a mask without voxels on the scan", "a mask of this scan", "check the file");
    }
    const { current } = this.seen;
    const numbers = [current, ...this.free(masks.length - 1)];
    let { seen } = this;
    masks.forEach(({ region }, n) => {
      const locked = seen.objects.get(numbers[n]!)?.locked ?? true;
      seen = withObject(seen, { ...NOTHING, notes: remarks, added: region, locked }, numbers[n]!);
    });
    this.history.enter({ ...seen, current });
    masks.forEach(({ name }, n) => {
      if (name) this.described.set(numbers[n]!, { ...this.description(numbers[n]!), name });
    });
  }

  // The rules of how masks are made stay.
  private reset(): void {
    const { begin, seen } = this.history;
    if (seen.objects !== begin.objects) this.history.enter({ ...begin, overlap: seen.overlap, keepClicked: seen.keepClicked });
  }

  private newObject(): void {
    const [number] = this.free(1);
    this.described.delete(number!);
    this.history.enter(withObject(this.seen, NOTHING, number!));
  }

  // The numbers of `count` new objects.
  private free(count: number): number[] {
    const first = Math.max(...this.seen.objects.keys()) + 1;
    if (first + count - 1 > MAX_OBJECTS) {
      const given = `object ${Math.max(first, MAX_OBJECTS + 1)}`;
      throw refusal(given, `at most ${MAX_OBJECTS} objects`, "save the mask and begin anew");
    }
    return Array.from({ length: count }, (_, n) => first + n);
  }

  // A change of name, colour, type or visibility is not a step of undo; that of the lock is one.
  private describe(number: number, { locked, ...facts }: Partial<ObjectFacts>): void {
    const object = this.object(number);
    if (facts.name !== undefined && !isName(facts.name)) {
      throw refusal(`the name ${JSON.stringify(facts.name.slice(0, 80))}`, `1 to ${LONGEST_NAME} characters without a backslash`, "shorten it");
    }
    this.described.set(number, { ...this.description(number), ...facts });
    this.history.changed = { low: [0, 0, 0], high: [0, 0, 0] };
    if (locked === undefined || locked === object.locked) return;
    this.history.enter({ ...this.seen, objects: new Map(this.seen.objects).set(number, { ...object, locked }) });
  }

  // Each rule is a step of its own.
  private rules({ overlap, keep_clicked }: Partial<Pick<State, "overlap" | "keep_clicked">>): void {
    const drawn = this.seen;
    this.history.changed = { low: [0, 0, 0], high: [0, 0, 0] };
    if (overlap !== undefined && overlap !== drawn.overlap) this.history.enter({ ...drawn, overlap });
    if (keep_clicked === undefined || keep_clicked === this.seen.keepClicked) return;
    let seen: Snapshot = { ...this.seen, keepClicked: keep_clicked };
    for (const [number, object] of seen.objects) {
      seen = withObject(seen, prompted(object, object.prediction, keep_clicked), number);
    }
    this.history.enter({ ...seen, current: drawn.current });
  }
}

function isName(name: string): boolean {
  return name.trim().length > 0 && name.length <= LONGEST_NAME && !/[\\\p{C}]/u.test(name);
}
