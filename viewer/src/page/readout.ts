// The cursor in words: voxel, position in the patient, intensity and object.
import type { State } from "../engine/engine";
import { toWorld } from "../stage/geometry";
import type { Viewer } from "../stage/viewer";

const SIDES = [["R", "L"], ["A", "P"], ["S", "I"]] as const;

/** Millimetres with the letters of the patient's sides: right, anterior, superior, and their opposites. */
export function describePlace(world: readonly number[]): string {
  return world.map((mm, axis) => `${SIDES[axis]![mm >= 0 ? 0 : 1]} ${Math.abs(mm).toFixed(0)}`).join("  ");
}

export function describeVoxel(viewer: Viewer, state: State): string {
  const { cursor } = viewer;
  const value = viewer.intensity(cursor);
  const unit = state.modality === "CT" ? " HU" : ""; // a NIfTI does not say
  const label = viewer.labelAt(cursor);
  const object = state.objects.find(({ number }) => number === label);
  const parts = [
    `voxel ${cursor.join(", ")}`,
    `${describePlace(toWorld(state.affine, cursor))} mm`,
    `${Number.isInteger(value) ? value : value.toPrecision(4)}${unit}`,
  ];
  return [...parts, ...(object ? [object.name] : [])].join("   ·   ");
}
