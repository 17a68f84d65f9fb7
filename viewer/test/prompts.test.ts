// The tools: presses, drags and keys become exactly these prompts.
import { beforeEach, describe, expect, it } from "vitest";
import { Prompter } from "../src/input/prompts";
import type { Index } from "../src/engine/engine";

const SCAN = { shape: [40, 50, 20] as Index, axes: [-1, -2, 3] as Index, spacing: [1, 2, 4] as Index };
let can: Record<string, boolean>;
let prompter: Prompter;

beforeEach(() => {
  can = { negative: true, box: true, scribble: true };
  prompter = new Prompter(() => SCAN, (what) => can[what]!);
});

describe("clicks", () => {
  it("add, and remove by the other button or the other sign", () => {
    expect(prompter.point([1, 2, 3])).toEqual({ kind: "point", index: [1, 2, 3], positive: true });
    expect(prompter.point([1, 2, 3], true)).toMatchObject({ positive: false });
    prompter.positive = false;
    expect(prompter.enter([4, 5, 6])).toEqual({ kind: "point", index: [4, 5, 6], positive: false });
  });

  it("only add with a model that knows no other", () => {
    can.negative = false;
    expect(prompter.point([1, 2, 3], true)).toMatchObject({ positive: true });
  });

  it("mark nothing with the tool that looks", () => {
    prompter.choose("look");
    expect(prompter.enter([4, 5, 6])).toBeNull();
  });
});

describe("a box", () => {
  beforeEach(() => void prompter.choose("box"));

  it("is as deep as it is wide, about the plane it was drawn in", () => {
    prompter.begin([10, 20, 9], "axial");
    prompter.move([25, 13, 9]); // 16 mm by 16 mm: 4 slices of 4 mm, as far as an odd number can be
    expect(prompter.end()).toBeNull(); // waits
    expect(prompter.accept()).toEqual({ kind: "box", low: [10, 13, 7], high: [25, 20, 11] });
    expect(prompter.draft).toBeNull();
  });

  it("takes its depth from a second plane", () => {
    prompter.begin([10, 20, 9], "axial");
    prompter.move([25, 13, 9]);
    prompter.end();
    prompter.begin([12, 16, 2], "coronal"); // its sides are axes 0 and 2
    prompter.move([24, 16, 15]);
    expect(prompter.end()).toBeNull();
    expect(prompter.accept()).toEqual({ kind: "box", low: [12, 13, 2], high: [24, 20, 15] });
  });

  it("stays on the scan", () => {
    prompter.begin([0, 0, 1], "axial");
    prompter.move([39, 49, 1]);
    prompter.end();
    expect(prompter.accept()).toMatchObject({ low: [0, 0, 0], high: [39, 49, 9] });
  });

  it("is drawn with the keyboard: a corner, the opposite one, and once more", () => {
    expect(prompter.enter([5, 6, 7])).toBeNull();
    prompter.follow([1, 9, 8]);
    expect(prompter.draft).toMatchObject({ from: [5, 6, 7], to: [1, 9, 8], placed: false });
    expect(prompter.enter([1, 9, 8])).toBeNull();
    prompter.follow([30, 30, 10]); // placed: the cursor no longer moves it
    expect(prompter.enter([30, 30, 10])).toEqual({ kind: "box", low: [1, 6, 7], high: [5, 9, 8] });
  });

  it("is dropped by cancel, and by another tool", () => {
    prompter.enter([5, 6, 7]);
    prompter.cancel();
    expect(prompter.draft).toBeNull();
    prompter.enter([5, 6, 7]);
    prompter.choose("point");
    expect(prompter.draft).toBeNull();
  });

  it("is not offered by a model that takes none", () => {
    can.box = false;
    expect(prompter.choose("box")).toBe(false);
  });
});

describe("a scribble", () => {
  beforeEach(() => void prompter.choose("scribble"));

  it("is the voxels under the stroke, each once in a row, and is sent at once", () => {
    prompter.begin([1, 1, 1], "axial", true);
    prompter.move([1, 1, 1]);
    prompter.move([3, 1, 1]);
    expect(prompter.end()).toEqual({ kind: "scribble", voxels: [[1, 1, 1], [2, 1, 1], [3, 1, 1]], positive: false });
    expect(prompter.draft).toBeNull();
  });

  it("is drawn with the keyboard between two times Enter", () => {
    prompter.enter([1, 1, 1]);
    prompter.follow([1, 2, 1]);
    expect(prompter.enter([1, 2, 1])).toEqual({ kind: "scribble", voxels: [[1, 1, 1], [1, 2, 1]], positive: true });
  });
});
