// Strokes drawn here are drawn again where the server still knows them.
import { describe, expect, it } from "vitest";
import { Strokes } from "../src/input/strokes";
import type { Index, Prompt } from "../src/engine/engine";

const stroke = (positive: boolean, ...voxels: Index[]): Prompt => ({ kind: "scribble", positive, voxels });

describe("strokes", () => {
  const strokes = new Strokes();
  const [first, second] = [stroke(true, [1, 1, 1], [2, 1, 1], [1, 1, 1]), stroke(false, [5, 5, 5])];
  const point: Prompt = { kind: "point", index: [0, 0, 0], positive: true };
  strokes.sent(1, first);
  strokes.sent(1, point);
  strokes.sent(1, second);

  it("are found by their sign and their number of different voxels", () => {
    const known = [{ kind: "scribble", count: 2, positive: true }, point, { kind: "scribble", count: 1, positive: false }] as const;
    expect(strokes.complete(1, [...known])).toEqual([first, point, second]);
  });

  it("are gone after undo, and not another object's", () => {
    expect(strokes.complete(1, [point])).toEqual([point]);
    expect(strokes.complete(2, [{ kind: "scribble", count: 2, positive: true }])).toEqual([]);
  });
});
