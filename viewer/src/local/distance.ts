// The exact Euclidean distance transform: how far each voxel is from the nearest one outside.
import type { Index } from "../engine/engine";

const TIE = 1e-6; // of an index: parabolas that cross so near are compared by their values, free of rounding errors

/**
 * For each voxel of `inside` (i fastest; not 0 is inside) the distance from its centre to that of the nearest voxel
 * outside, in the unit of `spacing`; 0 outside, Infinity if nothing is outside.
 *
 * One axis after the other, each by the lower envelope of parabolas (Felzenszwalb and Huttenlocher 2012).
 */
export function distances(inside: Uint8Array, shape: Index, spacing: readonly number[]): Float64Array {
  const squared = Float64Array.from(inside, (value) => (value ? Infinity : 0));
  const strides = [1, shape[0], shape[0] * shape[1]];
  const longest = Math.max(...shape);
  const line = new Float64Array(longest);
  const tops = new Int32Array(longest); // of the parabolas in the envelope
  const borders = new Float64Array(longest + 1); // where each becomes the lowest
  for (const axis of [0, 1, 2]) {
    const n = shape[axis]!;
    const stride = strides[axis]!;
    const step = spacing[axis]!;
    for (let first = 0; first < squared.length; first++) {
      if (Math.floor(first / stride) % n) continue; // not the first voxel of a line
      let found = 0;
      for (let at = 0; at < n; at++) {
        const height = squared[first + at * stride]!;
        line[at] = height;
        if (height === Infinity) continue;
        let begins = -Infinity;
        while (found) {
          const before = tops[found - 1]!;
          begins = ((height - line[before]!) / (step * step) + at * at - before * before) / (2 * (at - before));
          if (begins > borders[found - 1]! - TIE) break;
          found--;
        }
        borders[found] = found ? begins : -Infinity;
        tops[found++] = at;
      }
      if (!found) continue;
      for (let at = 0, lowest = 0; at < n; at++) {
        while (lowest + 1 < found && borders[lowest + 1]! < at - TIE) lowest++;
        let least = Infinity;
        for (let one = lowest; one < found && (one === lowest || borders[one]! <= at + TIE); one++) {
          const away = (at - tops[one]!) * step;
          least = Math.min(least, line[tops[one]!]! + away * away);
        }
        squared[first + at * stride] = least;
      }
    }
  }
  return squared.map(Math.sqrt);
}
