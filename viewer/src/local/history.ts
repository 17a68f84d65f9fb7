// History: the objects of a session, undo and redo, and all objects as one label map, as in voxsam.interactive.history.
import type { Box, Index } from "../engine/engine";
import { isEmpty } from "../stage/geometry";
import { eachRow, countOf, hull, intersection, NOWHERE } from "./boxes";
import type { Prediction } from "./predictor";
import { componentsOf, differs, EMPTY, minus, type Region, union, voxelsOf } from "./region";
import { missedRemark } from "./remarks";

const UNDO_STEPS = 100;
const UNDO_BYTES = 64 * 2 ** 20; // of what only past steps hold; the last one always stays

/**
 * One object: its voxels, and where they come from. A voxel of `added` is in the mask, one of `erased` is not.
 *
 * What was painted, erased or loaded survives later clicks, with one exception: a positive click on an erased voxel
 * returns its whole erased component to the network, and a negative click on an added voxel its added component.
 */
export interface Segmented {
  readonly prediction: Prediction | null;
  readonly notes: readonly string[]; // of the file it was loaded from
  readonly region: Region; // its voxels, after everything below
  readonly predicted: Region; // by the network: all of it, or only the clicked components
  readonly added: Region; // by hand, or from a file
  readonly erased: Region; // by hand
  readonly locked: boolean; // no other object takes its voxels
  readonly keptByOthers: number; // voxels that it would have, but that belong to locked objects
}

export const NOTHING: Segmented = {
  prediction: null, notes: [], region: EMPTY, predicted: EMPTY, added: EMPTY, erased: EMPTY, locked: true, keptByOthers: 0,
};

/** Whether some of an object's voxels were set by hand or from a file. */
export function isEdited({ added, erased }: Segmented): boolean {
  return !isEmpty(added.box) || !isEmpty(erased.box);
}

/** What a person should know about an object's mask, one line each. */
export function remarksOf(object: Segmented, shape: Index, voxel_ml: number): string[] {
  const { prediction, notes, region, keptByOthers } = object;
  const kept = `${(keptByOthers * voxel_ml).toFixed(2)} mL belong to other objects, which keep them; unlock them, or allow overlap`;
  return [
    ...(prediction?.notes ?? notes),
    ...(keptByOthers ? [kept] : []),
    ...missedRemark(prediction?.clicks ?? [], shape, region),
  ];
}

/** The object with another prediction; `clicks` are the voxels newly clicked for it. */
export function prompted(object: Segmented, found: Prediction | null, keepClicked: boolean, clicks: readonly { voxel: Index; positive: boolean }[] = []): Segmented {
  let { added, erased } = object;
  for (const { voxel, positive } of clicks) {
    if (positive) erased = minus(erased, componentsOf(erased, [voxel]));
    else added = minus(added, componentsOf(added, [voxel]));
  }
  const notes = found ? [] : object.notes;
  return { ...object, prediction: found, notes, predicted: found?.region(keepClicked) ?? EMPTY, added, erased };
}

/** The object with exactly these voxels: those that differ from before now override the network. */
export function editedTo(object: Segmented, region: Region): Segmented {
  const more = minus(region, object.region);
  const less = minus(object.region, region);
  return { ...object, added: minus(union(object.added, more), less), erased: minus(union(object.erased, less), more) };
}

/**
 * Everything that undo restores: the objects by number, which of them is current, and how masks are made.
 *
 * With `overlap`, objects may share voxels; otherwise a locked one keeps its own, and an unlocked one loses them to the
 * object that a later step draws there. `keepClicked`: only the clicked components of a prediction count.
 */
export interface Snapshot {
  readonly objects: ReadonlyMap<number, Segmented>;
  readonly current: number;
  readonly overlap: boolean;
  readonly keepClicked: boolean;
}

/** The snapshot with one object redrawn (added, if its number is new) and current. */
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

/** The snapshot without an object; if that was the last one, with an empty object 1. */
export function withoutObject(seen: Snapshot, number: number): Snapshot {
  const objects = new Map([...seen.objects].filter(([other]) => other !== number));
  if (!objects.size) objects.set(1, NOTHING);
  const below = [...objects.keys()].filter((other) => other < number);
  const current = objects.has(seen.current) ? seen.current : below.length ? Math.max(...below) : Math.min(...objects.keys());
  return { ...seen, objects, current };
}

/** The labels in a box, i fastest: each object's number, the highest where several share a voxel, and 0 elsewhere. */
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

/** The snapshot seen, those before it, and those undone; `changed` is the box in which the last step changed labels. */
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

  /** Make a new step; undone steps are forgotten. */
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

  /** Make an object current; this is not a step. */
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

// The latest past snapshots, at least one, whose parts that `seen` does not share fit into `maxBytes`. Those that add
// nothing to the ones after them cost nothing and stay with them.
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
