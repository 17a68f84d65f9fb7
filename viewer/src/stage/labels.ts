// The labels of a changed box, written into those of the whole scan.
import { sizeOf } from "./geometry";
import type { Box, Index } from "../engine/engine";

/**
 * Write the labels of a box (i fastest) into the whole array, row by row; returns the labels that are or were in it.
 * Throws RangeError if there are more or fewer labels than the box has voxels.
 */
export function paste(whole: Uint8Array, [width, height]: Index, box: Box, values: Uint8Array): Set<number> {
  const [ni, nj, nk] = sizeOf(box);
  if (values.length !== ni * nj * nk) {
    throw new RangeError(`${values.length} labels came for a box of ${ni} × ${nj} × ${nk} voxels`);
  }
  const isFound = new Uint8Array(256); // faster than a Set, which would be asked a million times
  const [i, j, k] = box.low;
  for (let row = 0; row < nj * nk; row++) {
    const at = ((k + Math.floor(row / nj)) * height + j + (row % nj)) * width + i;
    for (let n = 0; n < ni; n++) {
      isFound[whole[at + n]!] = 1;
      isFound[values[row * ni + n]!] = 1;
      whole[at + n] = values[row * ni + n]!;
    }
  }
  const found = new Set<number>();
  for (let label = 1; label < 256; label++) if (isFound[label]) found.add(label);
  return found;
}
