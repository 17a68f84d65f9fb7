// The labels of a changed box, from the scan's own order into the one in which NiiVue draws them.
import { boxToRas, rasShape, sizeOf, toRas, type Orientation } from "./geometry";
import type { Box, Index } from "../engine/engine";

/** A box's labels in RAS order, first axis fastest. */
export interface Block {
  box: Box;
  values: Uint8Array;
}

/**
 * Reorder the labels of a box of the scan's array (i fastest) to RAS order.
 * Throws RangeError if there are not as many as the box has voxels.
 */
export function reorder(orientation: Orientation, box: Box, values: Uint8Array): Block {
  const [ni, nj, nk] = sizeOf(box);
  if (values.length !== ni * nj * nk) {
    throw new RangeError(`${values.length} labels came for a box of ${ni} × ${nj} × ${nk} voxels`);
  }
  const ras = boxToRas(orientation, box);
  const [nx, ny] = sizeOf(ras);
  const strideOf = [1, nx, nx * ny];
  // How far one step along each axis of the array moves in the block.
  const step = [0, 0, 0];
  orientation.axes.forEach((axis, p) => (step[Math.abs(axis) - 1] = Math.sign(axis) * (strideOf[p] as number)));
  const [si, sj, sk] = step as Index;
  const first = toRas(orientation, box.low);
  const start = first.reduce((sum, v, p) => sum + (v - (ras.low[p] as number)) * (strideOf[p] as number), 0);
  const out = new Uint8Array(values.length);
  let n = 0;
  for (let k = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      let to = start + k * sk + j * sj;
      for (let i = 0; i < ni; i++, to += si) out[to] = values[n++] as number;
    }
  }
  return { box: ras, values: out };
}

/** Write a block into the labels of the whole scan (RAS order), row by row. */
export function paste(whole: Uint8Array, orientation: Orientation, { box, values }: Block): void {
  const [width, height] = rasShape(orientation);
  const [nx, ny, nz] = sizeOf(box);
  const [x, y, z] = box.low;
  for (let k = 0; k < nz; k++) {
    for (let j = 0; j < ny; j++) {
      const from = (k * ny + j) * nx;
      whole.set(values.subarray(from, from + nx), ((z + k) * height + y + j) * width + x);
    }
  }
}
