// Keys, files and numbers in words.
import { describe, expect, it } from "vitest";
import { nameOf } from "../src/input/keys";
import type { Index, ObjectState } from "../src/engine/engine";
import { describeMark, measures } from "../src/page/objects";
import { describeSeries, uploadList } from "../src/page/open";
import { bytes, millilitres, millimetres, seconds } from "../src/page/words";
import { describePlace } from "../src/page/readout";

const press = (key: string, held: Partial<KeyboardEvent> = {}) => nameOf({ key, ctrlKey: false, metaKey: false, shiftKey: false, ...held } as KeyboardEvent);

describe("keys", () => {
  it("have one name whatever the keyboard", () => {
    expect(press("z", { ctrlKey: true })).toBe("Ctrl+z");
    expect(press("Z", { metaKey: true, shiftKey: true })).toBe("Ctrl+Shift+z");
    expect(press("?", { shiftKey: true })).toBe("?"); // Shift only reaches the sign
    expect(press("Enter", { shiftKey: true })).toBe("Shift+Enter");
    expect(press("L")).toBe("l"); // caps lock
  });
});

describe("files to send", () => {
  const named = (name: string, size = 1) => ({ name, file: new File(["x".repeat(size)], name) });

  it("are neither hidden nor empty", () => {
    const list = uploadList([named("a.dcm"), named(".DS_Store"), named("DICOMDIR"), named("empty", 0), named("IM0001")]);
    expect(list.map(({ name }) => name)).toEqual(["a.dcm", "IM0001"]);
  });
});

describe("numbers", () => {
  it("have as many digits as they deserve", () => {
    expect([0.456, 12.34, 817.6].map(millilitres)).toEqual(["0.46 mL", "12.3 mL", "818 mL"]);
    expect([52.4].map(millimetres)).toEqual(["52 mm"]);
    expect([0.2134, 12.7].map(seconds)).toEqual(["0.21 s", "13 s"]);
    expect([0, 999, 1500, 157_286_400].map(bytes)).toEqual(["0 B", "999 B", "1.5 kB", "157.3 MB"]);
  });

  it("name the patient's sides", () => {
    expect(describePlace([-12.4, 30, -5])).toBe("L 12  A 30  I 5");
  });
});

describe("objects in words", () => {
  const ends: [Index, Index] = [[1, 2, 3], [4, 5, 3]];

  it("have their diameters with the perpendicular, or the longest alone, or none", () => {
    const object = { longest_diameter_mm: 48.6, longest: { mm: 48.6, ends }, perpendicular: { mm: 31.2, ends } } as ObjectState;
    expect(measures(object)).toBe("longest diameter 49 × 31 mm");
    expect(measures({ ...object, perpendicular: null })).toBe("longest diameter 49 mm");
    expect(measures({ ...object, longest_diameter_mm: 0, longest: null, perpendicular: null })).toBe("");
  });

  it("say what each mark is", () => {
    expect(describeMark({ kind: "point", index: [10.2, 5, 7], positive: false })).toBe("− click 10, 5, 7");
    expect(describeMark({ kind: "box", low: [1, 2, 3], high: [4, 5, 6] })).toBe("box 1, 2, 3 to 4, 5, 6");
    expect(describeMark({ kind: "scribble", count: 12, positive: true })).toBe("+ scribble of 12 voxels");
    expect(describeMark({ kind: "hint", count: 9 })).toBe("hint of 9 voxels");
  });

  it("say what each series is, as far as it is known", () => {
    const series = { uid: "1", description: "", modality: "CT", count: 1, shape: [512, 512, null], spacing_mm: [0.75, 0.75, null], localizer: true };
    expect(describeSeries(series)).toBe("CT · 1 image · 512 × 512 × ? · 0.8 × 0.8 × ? mm · localizer");
    expect(describeSeries({ ...series, count: 30, shape: null, spacing_mm: null, localizer: false })).toBe("CT · 30 images");
  });
});
