// Objects of a session in the browser: who keeps which voxels, edits with answers worked out by hand, measures, undo.
import { describe, expect, it } from "vitest";
import type { Edit, Index } from "../src/engine/engine";
import { edited } from "../src/local/editing";
import { Grid } from "../src/local/grid";
import { History, NOTHING, type Snapshot, withObject } from "../src/local/history";
import { measure } from "../src/local/measure";
import { Prediction } from "../src/local/predictor";
import { type Click, clicksOf, type SessionPrompt } from "../src/local/prompts";
import { holds, type Region, regionOf, voxelsOf } from "../src/local/region";
import { Session, type SessionStep } from "../src/local/session";

const SHAPE: Index = [12, 10, 8];
const AFFINE = [[2, 0, 0, -5], [0, 1, 0, 3], [0, 0, 4, 7], [0, 0, 0, 1]];
const SCAN = { data: Int16Array.from({ length: 960 }, (_, n) => n % 12), shape: SHAPE, affine: AFFINE, slope: 1, intercept: 0 };

function box(low: Index, high: Index): Region {
  const size = high.map((h, axis) => h - low[axis]!) as Index;
  return regionOf(new Uint8Array(size[0] * size[1] * size[2]).fill(1), size, low);
}

class Known extends Prediction {
  constructor(
    prompts: SessionPrompt[],
    clicks: Click[],
    private readonly mask: Region,
  ) {
    super(new Grid(SHAPE, AFFINE), prompts, clicks);
  }

  override region = () => this.mask;
}

// Finds one box after another.
function finds(...found: Region[]) {
  const asked: SessionPrompt[][] = [];
  const predict = async (prompts: SessionPrompt[]): Promise<Prediction> => {
    asked.push(prompts);
    const clicks = prompts.flatMap((prompt) => clicksOf(prompt, { shape: SHAPE, spacing_mm: [2, 1, 4] }));
    return new Known(prompts, clicks, found[asked.length - 1]!);
  };
  return { asked, session: new Session(SCAN, { predict, restored: () => expect.fail("nothing was kept") }) };
}

const click = (index: Index, positive = true): SessionStep => ({ kind: "prompt", prompts: [{ kind: "point", index, positive }] });
const brush = (change: Partial<Extract<Edit, { kind: "brush" }>>): Edit => ({ kind: "brush", stroke: [[5, 5, 4]], radius_mm: 2, add: true, axis: null, intensities: null, ...change });
const counts = (session: Session) => [...session.seen.objects.values()].map(({ region }) => voxelsOf(region));
async function take(session: Session, ...steps: SessionStep[]): Promise<void> {
  for (const step of steps) await session.take(step);
}

describe("objects", () => {
  it("keep their voxels while they are locked, give them up unlocked, and share them with overlap", async () => {
    const mask = box([2, 2, 2], [6, 6, 4]); // 32 voxels of 8 mm3
    const { session } = finds(mask, mask, mask, mask);
    await take(session, click([3, 3, 3]), { kind: "new object" }, click([3, 3, 3]));
    expect(counts(session)).toEqual([32, 0]);
    expect(session.state().objects[1]!.messages).toEqual([
      "0.26 mL belong to other objects, which keep them; unlock them, or allow overlap",
      "not in the mask, though clicked as tumour: 3,3,3; look at the result with care",
    ]);
    await take(session, { kind: "describe", number: 1, facts: { locked: false } }, click([4, 4, 3]));
    expect(counts(session)).toEqual([0, 32]);
    await take(session, { kind: "undo" }, { kind: "rules", rules: { overlap: true } }, click([4, 4, 3]));
    expect(counts(session)).toEqual([32, 32]);
    expect(session.labels()).toEqual(new Uint8Array(32).fill(2)); // the highest is seen
  });

  it("say which class they look like, also as what is kept", async () => {
    const found = new Prediction(new Grid(SHAPE, AFFINE), [], [], [], [], null, [], null, "bright");
    const session = new Session(SCAN, { predict: async () => found, restored: () => expect.fail("nothing was kept") });
    await take(session, click([3, 3, 3]), { kind: "new object" });
    expect(session.state().objects.map(({ class_name }) => class_name)).toEqual(["bright", null]);
    await take(session, { kind: "undo" });
    expect(session.found(click([3, 3, 3]))).toMatchObject({ className: "bright" });
  });

  it("that are painted go along as a hint, and what was painted stays", async () => {
    const { asked, session } = finds(box([0, 0, 0], [2, 2, 1]), box([0, 0, 0], [1, 1, 1]));
    await take(session, { kind: "edit", edits: [brush({ radius_mm: 0.5 })] }, click([1, 1, 0]));
    expect(asked[0]!.map(({ kind }) => kind)).toEqual(["hint", "point"]);
    expect(counts(session)).toEqual([5]);
    await take(session, click([5, 5, 4], false)); // on what was painted: it is given back
    expect(counts(session)).toEqual([1]);
  });

  it("lose a prompt, and begin again without the mask it made", async () => {
    const { asked, session } = finds(box([0, 0, 0], [2, 2, 1]), box([0, 0, 0], [3, 3, 1]), box([0, 0, 0], [1, 2, 1]));
    await take(session, click([1, 1, 0]), click([2, 2, 0]), { kind: "delete prompt", number: 1, index: 0 });
    expect(asked[2]).toEqual([{ kind: "point", index: [2, 2, 0], positive: true }]);
    expect(counts(session)).toEqual([2]);
    await take(session, { kind: "delete prompt", number: 1, index: 0 });
    expect(counts(session)).toEqual([0]);
    await expect(session.take({ kind: "delete prompt", number: 1, index: 0 })).rejects.toThrow("prompt 0 of object 1; expected one of its 0, from 0 on");
  });

  it("are named, and the name is no step; a name that DICOM cannot hold is refused", async () => {
    const { session } = finds();
    await take(session, { kind: "describe", number: 1, facts: { name: "left kidney", visible: false } });
    expect(session.state()).toMatchObject({ can_undo: false, objects: [{ name: "left kidney", visible: false, locked: true, colour: "#ff5a5f" }] });
    for (const name of ["a\\b", "  ", "x".repeat(65)]) {
      await expect(session.take({ kind: "describe", number: 1, facts: { name } })).rejects.toThrow("expected 1 to 64 characters without a backslash");
    }
  });

  it("are at most 255", async () => {
    const { session } = finds();
    const masks = Array.from({ length: 255 }, (_, n) => ({ name: "", region: box([n % 12, Math.floor(n / 12) % 10, Math.floor(n / 120)], [n % 12 + 1, Math.floor(n / 12) % 10 + 1, Math.floor(n / 120) + 1]) }));
    await session.take({ kind: "masks", masks, remarks: [] });
    await expect(session.take({ kind: "new object" })).rejects.toThrow("object 256; expected at most 255 objects");
    await take(session, { kind: "delete object", number: 255 });
    expect(session.state().current).toBe(1);
  });
});

describe("edits", () => {
  it("with a brush reach as far in mm along each axis", () => {
    const ball = edited(NOTHING.region, [brush({ radius_mm: 4 })], SCAN);
    expect(ball.box).toEqual({ low: [3, 1, 3], high: [8, 10, 6] });
    expect([[7, 5, 4], [5, 9, 4], [5, 5, 5], [6, 8, 4], [7, 6, 4]].map((voxel) => holds(ball, voxel as Index))).toEqual([true, true, true, true, false]);
    expect(edited(NOTHING.region, [brush({ axis: 2, radius_mm: 4 })], SCAN).box).toEqual({ low: [3, 1, 4], high: [8, 10, 5] });
    expect(edited(NOTHING.region, [brush({ radius_mm: 4, intensities: [6, 7] })], SCAN).box.low[0]).toBe(6);
    expect(voxelsOf(edited(ball, [brush({ radius_mm: 4, add: false })], SCAN))).toBe(0);
  });

  it("fill holes in 3D or in slices, keep a component, and go between drawn slices", () => {
    const tube = edited(box([1, 1, 1], [6, 6, 6]), [brush({ stroke: [[3, 3, 1], [3, 3, 5]], radius_mm: 0.5, add: false })], SCAN);
    expect(voxelsOf(tube)).toBe(120);
    expect(voxelsOf(edited(tube, [{ kind: "fill", axis: null }], SCAN))).toBe(120); // it is open at both ends
    expect(voxelsOf(edited(tube, [{ kind: "fill", axis: 2 }], SCAN))).toBe(125);
    const two = edited(tube, [brush({ stroke: [[9, 9, 7]], radius_mm: 0.5 })], SCAN);
    expect(voxelsOf(edited(two, [{ kind: "component", index: [9, 9, 7], keep: true }], SCAN))).toBe(1);
    expect(voxelsOf(edited(two, [{ kind: "component", index: [9, 9, 7], keep: false }], SCAN))).toBe(120);
    expect(() => edited(two, [{ kind: "component", index: [0, 0, 0], keep: true }], SCAN)).toThrow("voxel 0, 0, 0, which is not in the mask");
    const lasso = (slice: number): Edit => ({ kind: "lasso", polygon: [[1, 1, slice], [1, 6, slice], [6, 6, slice], [6, 1, slice]], axis: 2, add: true, slices: null });
    const between = edited(NOTHING.region, [lasso(1), lasso(5), { kind: "interpolate", axis: 2 }], SCAN);
    expect([between.box.low[2], between.box.high[2], voxelsOf(between)]).toEqual([1, 6, 5 * 25]);
  });

  it("that smooth keep the volume", () => {
    const corner = edited(box([2, 2, 2], [7, 7, 5]), [brush({ stroke: [[9, 4, 3]], radius_mm: 0.5 })], SCAN);
    const smoothed = edited(corner, [{ kind: "smooth", sd_mm: 2 }], SCAN);
    expect(voxelsOf(smoothed)).toBe(76);
    expect(holds(smoothed, [9, 4, 3])).toBe(false);
  });

  it("that cannot be drawn are refused in words", () => {
    expect(() => edited(NOTHING.region, [brush({ radius_mm: 0 })], SCAN)).toThrow("a brush with a radius of 0 mm; expected more than 0 mm");
    expect(() => edited(NOTHING.region, [brush({ stroke: [[1, 1, 1], [1, 1, 3]], axis: 2 })], SCAN)).toThrow("a stroke through slices 1 to 3 of axis 2");
    expect(voxelsOf(edited(NOTHING.region, [brush({ stroke: [[3, -40, 1], [3, -60, 1]] })], SCAN))).toBe(0); // beside the scan
    const wide = { ...SCAN, shape: [900, 900, 900] as Index };
    expect(() => edited(NOTHING.region, [brush({ stroke: [[0, 0, 0], [899, 899, 899]] })], wide)).toThrow("a stroke all over the scan");
  });
});

describe("measures", () => {
  it("are volume and axial diameters, from outer face to outer face", () => {
    const { volume_ml, longest, perpendicular } = measure(box([2, 3, 4], [5, 8, 6]), SCAN); // 6 x 5 mm in a slice
    expect(volume_ml).toBeCloseTo(0.24, 12);
    expect(longest!.mm).toBeCloseTo(Math.hypot(6, 4), 9); // between the middles of outer faces
    expect(longest!.ends[0]![2]).toBe(4); // of slices that are as wide the first
    expect(perpendicular!.mm).toBeLessThan(longest!.mm);
    expect(measure(NOTHING.region, SCAN)).toEqual({ volume_ml: 0, longest: null, perpendicular: null });
  });
});

describe("undo", () => {
  it("goes back as far as memory allows, one step at least", () => {
    const begin: Snapshot = { objects: new Map([[1, NOTHING]]), current: 1, overlap: false, keepClicked: true };
    const history = new History(begin, 200);
    for (let n = 1; n < 8; n++) history.enter(withObject(history.seen, { ...NOTHING, added: box([0, 0, 0], [n, 10, 8]) }));
    let steps = 0;
    for (; history.canUndo; steps++) history.undo();
    expect(steps).toBe(1);
    for (; history.canRedo; steps--) history.redo();
    expect([steps, voxelsOf(history.seen.objects.get(1)!.region)]).toEqual([0, 560]);
  });
});
