// The components of a mask: voxels that are joined through faces.
import type { Index } from "../engine/engine";

/** For each voxel of an array of `size`, i fastest, the number of its component, from 1; 0 where `inside` is 0. */
export function label(inside: Uint8Array, [ni, nj, nk]: Index): { labels: Int32Array; count: number } {
  const labels = new Int32Array(inside.length);
  const plane = ni * nj;
  let stack = new Int32Array(1024);
  let count = 0;
  for (let seed = 0; seed < inside.length; seed++) {
    if (!inside[seed] || labels[seed]) continue;
    labels[seed] = ++count;
    stack[0] = seed;
    for (let depth = 1; depth > 0; ) {
      const at = stack[--depth]!;
      const i = at % ni;
      const j = Math.trunc(at / ni) % nj;
      const k = Math.trunc(at / plane);
      if (depth + 6 > stack.length) {
        const longer = new Int32Array(2 * stack.length);
        longer.set(stack);
        stack = longer;
      }
      const visit = (next: number) => {
        if (!inside[next] || labels[next]) return;
        labels[next] = count;
        stack[depth++] = next;
      };
      if (i > 0) visit(at - 1);
      if (i < ni - 1) visit(at + 1);
      if (j > 0) visit(at - ni);
      if (j < nj - 1) visit(at + ni);
      if (k > 0) visit(at - plane);
      if (k < nk - 1) visit(at + plane);
    }
  }
  return { labels, count };
}
