// What a person should know about a mask, one line each, in the words of the Python engine.
import type { Index } from "../engine/engine";
import { eachRow, intersection, perAxis } from "./boxes";
import type { Intensity } from "./card";
import { quantile, written } from "./numbers";
import { thousandths, voxelOf, type Click } from "./prompts";
import { holds, type Region } from "./region";
import type { Volume } from "./volume";

const AIR_HU = -950; // below lung: at most this in the click's voxel and all its neighbours
const CT_MINIMUM_HU = -500; // air is -1000 HU; only CT has whole numbers that far below zero
export const UNLIKE = "what was clicked does not look like a lesion to this model: look at the mask with care";
export const RUNAWAY = 4; // times its size at the spacing chosen for it: a mask that grows beyond it is no longer a lesion

/** How a mask ends: inside its crops, at their border, or grown too large to be followed. */
export type End = "inside" | "open" | "ran away";

/** The scan's remarks, and one if its modality is not the one that the model was trained on. */
export function scanRemarks(scan: Volume, { modality, standardise_others }: Intensity): string[] {
  const other = otherModality(scan, modality);
  if (!other) return [...new Set(scan.remarks)];
  const what = standardise_others ? "; its intensities were standardised" : "";
  return [...new Set([...scan.remarks, `${other}${what}; look at the mask with care`])];
}

/** Why the scan is not, or may not be, of the modality that a model was trained on; "" if it is. */
export function otherModality(scan: Volume, known: string): string {
  if (scan.modality && known && scan.modality !== known) return `the scan is ${scan.modality}, the model was trained on ${known}`;
  const doubt = known === "CT" && !scan.modality && notHounsfield(scan);
  return doubt ? `the model was trained on CT, and the scan may be none: ${doubt}` : "";
}

/** Why the values cannot be Hounsfield units, as half a sentence, or "" if they can. Looks at a sample of voxels. */
function notHounsfield({ data, shape, slope, intercept }: Volume): string {
  const step = perAxis((axis) => Math.max(1, Math.floor(shape[axis] / 27)));
  const some: number[] = [];
  for (let k = 0; k < shape[2]; k += step[2]) {
    for (let j = 0; j < shape[1]; j += step[1]) {
      for (let i = 0; i < shape[0]; i += step[0]) some.push(data[(k * shape[1] + j) * shape[0] + i]! * slope + intercept);
    }
  }
  some.sort((a, b) => a - b);
  const [low, high] = [some[0]!, some.at(-1)!];
  if (low <= CT_MINIMUM_HU && high - low > 300) return "";
  if (high - low <= 2) return `its values lie between ${written(low, 3)} and ${written(high, 3)}: they were scaled and are no Hounsfield units`;
  if (low >= 0 && high <= 255 && some.every(Number.isInteger)) {
    return `its values are whole numbers from ${written(low)} to ${written(high)}: 8 bits of a window and no Hounsfield units`;
  }
  const soft = some.filter((value) => value > 900 && value < 1200);
  if (low >= -50 && soft.length > 0.05 * some.length && quantile(soft, 0.5) > 950) {
    return `its lowest value is ${written(low)}: an offset is missing; with 1024 subtracted it would be Hounsfield units`;
  }
  return low > -50 ? `its lowest value is ${written(low)}, where air has -1000 and fat -100: these are no Hounsfield units` : "";
}

/** A remark for each positive click with nothing but air around it (CT), or in the empty margin of an MR scan. */
export function airRemarks(scan: Volume, clicks: Click[]): string[] {
  const whole = { low: [0, 0, 0] as Index, high: scan.shape };
  return clicks.filter((click) => click.positive).flatMap((click) => {
    const at = voxelOf(thousandths(click.index), scan.shape);
    const near = intersection({ low: perAxis((axis) => at[axis] - 1), high: perAxis((axis) => at[axis] + 2) }, whole);
    const values: number[] = [];
    eachRow(near, whole, near, (from, _, length) => {
      for (let n = 0; n < length; n++) values.push(scan.data[from + n]! * scan.slope + scan.intercept);
    });
    values.sort((a, b) => a - b);
    const place = at.join();
    if (scan.modality === "CT" && values.at(-1)! <= AIR_HU) {
      return [`the click at ${place} lies in air (${quantile(values, 0.5).toFixed(0)} HU): is it in the tumour?`];
    }
    if (scan.modality === "MR" && values.every((value) => value === 0)) {
      return [`the click at ${place} lies outside the patient: all is 0 there; is it in the tumour?`];
    }
    return [];
  });
}

/** Remarks on the numbers of crops, chosen for the clicks and used in the end, and on how the mask ends. */
export function cropRemarks(chosen: number, used: number, end: End, follows: boolean): string[] {
  const found: string[] = [];
  if (chosen > 1) found.push(`the clicks lie farther apart than one crop: ${chosen} crops were used`);
  if (used > chosen) {
    const crops = used - chosen === 1 ? "one further crop" : `${used - chosen} further crops`;
    found.push(`the mask reached the border of its crop and was followed into ${crops}`);
  }
  if (end === "ran away") {
    found.push(`beyond its crop the mask grew more than ${RUNAWAY} times larger and was not followed: look with care`);
  } else if (end === "open") {
    found.push(
      follows
        ? `the mask was not followed beyond ${used} crops and may be incomplete`
        : "the mask reaches the border of its crop and was not followed beyond it",
    );
  }
  return found;
}

export const BOX_IGNORED = "a click in the tumour lies outside the box: the box does not limit the mask";

/** A remark on the positive clicks that a mask does not hold, if there are any. */
export function missedRemark(clicks: Click[], shape: Index, mask: Region): string[] {
  const places = clicks.filter((click) => click.positive).map((click) => thousandths(click.index));
  const missed = places.filter((place) => !holds(mask, voxelOf(place, shape)));
  if (!missed.length) return [];
  const listed = missed.map((place) => place.map((v) => written(v)).join()).join("; ");
  return [`not in the mask, though clicked as tumour: ${listed}; look at the result with care`];
}
