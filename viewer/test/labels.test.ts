// Labels of a changed box: inflated and pasted; compared with the slow way, voxel by voxel.
import { describe, expect, it } from "vitest";
import { inflate } from "../src/engine/server";
import { paste } from "../src/stage/labels";
import type { Box, Index } from "../src/engine/engine";

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

describe("a box of labels", () => {
  it("lands on the same voxels as one by one, and what was there and is there is said", () => {
    const slow = new Uint8Array(4 * 5 * 6).fill(9);
    const fast = slow.slice();
    const values = new Uint8Array(2 * 5 * 3);
    let n = 0;
    for (let k = BOX.low[2]; k < BOX.high[2]; k++)
      for (let j = BOX.low[1]; j < BOX.high[1]; j++)
        for (let i = BOX.low[0]; i < BOX.high[0]; i++) {
          values[n] = n % 3;
          slow[(k * 5 + j) * 4 + i] = values[n++]!;
        }
    const before = values.slice();
    expect([...paste(fast, SHAPE, BOX, values)].sort()).toEqual([1, 2, 9]);
    expect(fast).toEqual(slow);
    expect(values).toEqual(before);
  });

  it("is refused if it is not as large as its box", () => {
    expect(() => paste(new Uint8Array(120), SHAPE, BOX, new Uint8Array(29))).toThrow("29 labels came for a box of 2 × 5 × 3");
  });
});
