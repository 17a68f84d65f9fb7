// What a session's objects are, and the way back and forth between steps, as voxsam.interactive.history has them.
import type { Box, Index } from "../engine/engine";
import { isEmpty } from "../stage/geometry";
import { eachRow, countOf, hull, intersection, NOWHERE } from "./boxes";
import type { Prediction } from "./predictor";
import { componentsOf, differs, EMPTY, minus, type Region, union, voxelsOf } from "./region";
import { missedRemark } from "./remarks";

const UNDO_STEPS = 100;
const UNDO_BYTES = 64 * 2 ** 20; // of what only past steps hold; the last step always stays

/**
 * One object: its voxels, and what they come from. A voxel of `added` is in the mask, one of `erased` is not.
 *
 * What was painted, erased or loaded stays through later clicks. A positive click on an erased voxel gives the whole
 * erased component that holds it back to the network, a negative one on an added voxel the added component.
 */
export interface Segmented {
  readonly prediction: Prediction | null;
  readonly notes: readonly string[]; // of the file it was loaded from
  readonly region: Region; // its voxels, after all below
  readonly predicted: Region; // what the network gave, or the clicked components of it
  readonly added: Region; // by hand, or from a file
  readonly erased: Region; // by hand
  readonly locked: boolean; // no other object takes its voxels
  readonly keptByOthers: number; // voxels that it would have, and that belong to locked objects
}

export const NOTHING: Segmented = {
  prediction: null, notes: [], region: EMPTY, predicted: EMPTY, added: EMPTY, erased: EMPTY, locked: true, keptByOthers: 0,
};

/** Whether a hand or a file decides on some of an object's voxels. */
export function isEdited({ added, erased }: Segmented): boolean {
  return !isEmpty(added.box) || !isEmpty(erased.box);
}

/** What a person should know of an object's mask, one line each. */
export function remarksOf(object: Segmented, shape: Index, voxel_ml: number): string[] {
  const { prediction, notes, region, keptByOthers } = object;
  const kept = `${(keptByOthers * voxel_ml).toFixed(2)} mL belong to other objects, which keep them; unlock them, or allow overlap`;
  return [
    ...(prediction?.notes ?? notes),
    ...(keptByOthers ? [kept] : []),
    ...missedRemark(prediction?.clicks ?? [], shape, region),
  ];
}

/** With another prediction; `clicks` are the voxels that are newly clicked in it. */
export function prompted(object: Segmented, found: Prediction | null, keepClicked: boolean, clicks: readonly { voxel: Index; positive: boolean }[] = []): Segmented {
  let { added, erased } = object;
  for (const { voxel, positive } of clicks) {
    if (positive) erased = minus(erased, componentsOf(erased, [voxel]));
    else added = minus(added, componentsOf(added, [voxel]));
  }
  const notes = found ? [] : object.notes;
  return { ...object, prediction: found, notes, predicted: found?.region(keepClicked) ?? EMPTY, added, erased };
}

/** With these voxels, whatever the network says of those that differ from what was. */
export function editedTo(object: Segmented, region: Region): Segmented {
  const more = minus(region, object.region);
  const less = minus(object.region, region);
  return { ...object, added: minus(union(object.added, more), less), erased: minus(union(object.erased, less), more) };
}

/**
 * Everything that undo gives back: the objects by number, which is current, and how masks are made.
 *
 * With `overlap` objects may share voxels; else a locked one keeps its own, and an unlocked one gives them to the
 * object that a later step draws there. `keepClicked`: of a prediction only the components that were clicked.
 */
export interface Snapshot {
  readonly objects: ReadonlyMap<number, Segmented>;
  readonly current: number;
  readonly overlap: boolean;
  readonly keepClicked: boolean;
}

/** With an object (a new number: a new object) drawn anew, and current. */
export function withObject(seen: Snapshot, changed: Segmented, number = seen.current): Snapshot {
  const objects = new Map(seen.objects);
  const wanted = minus(union(changed.predicted, changed.added), changed.erased);
  let region = wanted;
  for (const [other, found] of seen.overlap ? [] : seen.objects) {
    if (other === number || isEmpty(intersection(found.region.box, region.box))) continue;
    if (found.locked) region = minus(region, found.region);
    else objects.set(other, { ...found, region: minus(found.region, region) });
  }
  objects.set(number, { ...changed, region, keptByOthers: voxelsOf(wanted) - voxelsOf(region) });
  return { ...seen, objects, current: number };
}

/** Without an object; if it was the last one, with an empty object 1. */
export function withoutObject(seen: Snapshot, number: number): Snapshot {
  const objects = new Map([...seen.objects].filter(([other]) => other !== number));
  if (!objects.size) objects.set(1, NOTHING);
  const below = [...objects.keys()].filter((other) => other < number);
  const current = objects.has(seen.current) ? seen.current : below.length ? Math.max(...below) : Math.min(...objects.keys());
  return { ...seen, objects, current };
}

/** All labels in a box, i fastest: 0, and each object's number; of several that share a voxel the highest. */
export function labelsIn({ objects }: Snapshot, box: Box): Uint8Array {
  const labels = new Uint8Array(countOf(box));
  for (const [number, { region }] of [...objects].sort(([a], [b]) => a - b)) {
    eachRow(intersection(region.box, box), region.box, box, (from, to, length) => {
      for (let n = 0; n < length; n++) if (region.inside[from + n]) labels[to + n] = number;
    });
  }
  return labels;
}

/** The box outside which all labels are 0. */
export function extentOf({ objects }: Snapshot): Box {
  return hull([...objects.values()].map(({ region }) => region.box));
}

/** What is seen, what was seen before, and what was taken back; `changed` is where the last step drew. */
export class History {
  changed: Box = NOWHERE;
  seen: Snapshot;
  private past: Snapshot[] = [];
  private future: Snapshot[] = [];

  constructor(
    readonly begin: Snapshot,
    private readonly undoBytes = UNDO_BYTES,
  ) {
    this.seen = begin;
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  /** Make a new step; what was taken back is forgotten. */
  enter(snapshot: Snapshot): void {
    this.past = affordable([...this.past, this.seen].slice(-UNDO_STEPS), snapshot, this.undoBytes);
    this.future = [];
    this.show(snapshot);
  }

  undo(): void {
    this.go(this.past, this.future);
  }

  redo(): void {
    this.go(this.future, this.past);
  }

  /** Make an object current; no step. */
  select(number: number): void {
    this.seen = { ...this.seen, current: number };
    this.changed = NOWHERE;
  }

  private go(from: Snapshot[], to: Snapshot[]): void {
    this.changed = NOWHERE;
    const next = from.pop();
    if (!next) return;
    to.push(this.seen);
    this.show(next);
  }

  private show(snapshot: Snapshot): void {
    const numbers = new Set([...this.seen.objects.keys(), ...snapshot.objects.keys()]);
    const boxes = [...numbers].map((number) => {
      const [before, after] = [this.seen, snapshot].map(({ objects }) => objects.get(number)?.region ?? EMPTY) as [Region, Region];
      return before === after ? NOWHERE : differs(before, after);
    });
    this.changed = hull(boxes);
    this.seen = snapshot;
  }
}

function sizesOf({ objects }: Snapshot): Map<object, number> {
  const sizes = new Map<object, number>();
  for (const { prediction, region, predicted, added, erased } of objects.values()) {
    if (prediction) sizes.set(prediction, prediction.bytes);
    for (const part of [region, predicted, added, erased]) sizes.set(part, part.inside.byteLength);
  }
  return sizes;
}

// The latest past snapshots, one at least, as far as `maxBytes` suffice for what the one that is seen lacks. Those that
// add nothing to those after them cost nothing and stay with them.
function affordable(past: Snapshot[], seen: Snapshot, maxBytes: number): Snapshot[] {
  const counted = new Set(sizesOf(seen).keys());
  let total = 0;
  let kept = 0;
  for (const snapshot of [...past].reverse()) {
    const parts = [...sizesOf(snapshot)].filter(([part]) => !counted.has(part));
    const added = parts.reduce((sum, [, size]) => sum + size, 0);
    for (const [part] of parts) counted.add(part);
    total += added;
    if (kept && added && total > maxBytes) break;
    kept++;
  }
  return past.slice(past.length - kept);
}
