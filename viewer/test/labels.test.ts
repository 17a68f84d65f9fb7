// Labels of a changed box: inflated, reordered, pasted; compared with the slow way, voxel by voxel.
import { describe, expect, it } from "vitest";
import { rasShape, toRas, type Orientation } from "../src/stage/geometry";
import { inflate } from "../src/engine/server";
import { paste, reorder } from "../src/stage/labels";
import type { Box, Index } from "../src/engine/engine";

const ORIENTATIONS: Index[] = [[1, 2, 3], [-1, -2, 3], [-2, -1, 3], [3, -1, 2], [-3, 2, -1]];
const SHAPE: Index = [4, 5, 6];
const BOX: Box = { low: [1, 0, 2], high: [3, 5, 5] };

async function deflate(values: Uint8Array<ArrayBuffer>): Promise<string> {
  const stream = new Blob([values]).stream().pipeThrough(new CompressionStream("deflate"));
  return btoa(String.fromCharCode(...new Uint8Array(await new Response(stream).arrayBuffer())));
}

describe("inflate", () => {
  it("gives back what was deflated", async () => {
    const values = Uint8Array.from({ length: 1000 }, (_, n) => n % 7);
    expect(await inflate(await deflate(values))).toEqual(values);
  });

  it("refuses what is not deflated", async () => {
    await expect(inflate(btoa("no zlib stream"))).rejects.toThrow();
  });
});

describe("a block of labels", () => {
  it.each(ORIENTATIONS)("lands on the same voxels as one by one (axes %i %i %i)", (...axes) => {
    const orientation: Orientation = { shape: SHAPE, axes };
    const [width, height, depth] = rasShape(orientation);
    const slow = new Uint8Array(width * height * depth).fill(9);
    const fast = slow.slice();
    const values = new Uint8Array(2 * 5 * 3);
    let n = 0;
    for (let k = BOX.low[2]; k < BOX.high[2]; k++)
      for (let j = BOX.low[1]; j < BOX.high[1]; j++)
        for (let i = BOX.low[0]; i < BOX.high[0]; i++) {
          values[n] = n + 10;
          const [x, y, z] = toRas(orientation, [i, j, k]);
          slow[(z * height + y) * width + x] = values[n++]!;
        }
    const before = values.slice();
    paste(fast, orientation, reorder(orientation, BOX, values));
    expect(fast).toEqual(slow);
    expect(values).toEqual(before);
    expect(fast.filter((v) => v === 9)).toHaveLength(4 * 5 * 6 - values.length); // nothing outside the box
  });

  it("is refused if it is not as large as its box", () => {
    expect(() => reorder({ shape: SHAPE, axes: [1, 2, 3] }, BOX, new Uint8Array(29))).toThrow("29 labels came for a box of 2 × 5 × 3");
  });
});
