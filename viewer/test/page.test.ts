// Keys, files and numbers in words.
import { describe, expect, it } from "vitest";
import { nameOf } from "../src/input/keys";
import { uploadList } from "../src/page/open";
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
