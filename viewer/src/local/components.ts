// The connected components of a mask: voxels joined through faces.
import type { Index } from "../engine/engine";

/** For each voxel of an array of `size`, i fastest, the number of its component, from 1; 0 where `inside` is 0. */
export function label(inside: Uint8Array, size: Index): { labels: Int32Array; count: number } {
  const labels = new Int32Array(inside.length);
  const flood = flooding(inside, size, labels);
  let count = 0;
  for (let seed = 0; seed < inside.length; seed++) if (inside[seed] && !labels[seed]) flood(seed, ++count);
  return { labels, count };
}

/** 1 in the components that hold any of `places`, which are offsets in the array. */
export function componentsAt(inside: Uint8Array, size: Index, places: number[]): Uint8Array {
  const found = new Uint8Array(inside.length);
  const flood = flooding(inside, size, found);
  for (const seed of places) if (inside[seed] && !found[seed]) flood(seed, 1);
  return found;
}

/** A function that numbers a voxel and all those joined to it that have no number yet. */
function flooding(inside: Uint8Array, [ni, nj, nk]: Index, numbers: Uint8Array | Int32Array): (seed: number, number: number) => void {
  const plane = ni * nj;
  let stack = new Int32Array(1024);
  return (seed, number) => {
    numbers[seed] = number;
    stack[0] = seed;
    for (let depth = 1; depth > 0; ) {
      const at = stack[--depth]!;
      const k = (at / plane) | 0;
      const rest = at - k * plane;
      const j = (rest / ni) | 0;
      const i = rest - j * ni;
      if (depth + 6 > stack.length) {
        const longer = new Int32Array(2 * stack.length);
        longer.set(stack);
        stack = longer;
      }
      // Written out, since a function for the six would be called for every voxel.
      if (i > 0 && inside[at - 1] && !numbers[at - 1]) numbers[(stack[depth++] = at - 1)] = number;
      if (i < ni - 1 && inside[at + 1] && !numbers[at + 1]) numbers[(stack[depth++] = at + 1)] = number;
      if (j > 0 && inside[at - ni] && !numbers[at - ni]) numbers[(stack[depth++] = at - ni)] = number;
      if (j < nj - 1 && inside[at + ni] && !numbers[at + ni]) numbers[(stack[depth++] = at + ni)] = number;
      if (k > 0 && inside[at - plane] && !numbers[at - plane]) numbers[(stack[depth++] = at - plane)] = number;
      if (k < nk - 1 && inside[at + plane] && !numbers[at + plane]) numbers[(stack[depth++] = at + plane)] = number;
    }
  };
}
