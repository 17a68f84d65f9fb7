// Drags, wheels and fingers: what they do, device by device.
import { describe, expect, it } from "vitest";
import { movementOf, pinch } from "../src/input/gestures";
import { Wheel, zoomOf } from "../src/input/wheel";
import { dragWindow } from "../src/stage/windowing";

const press = (over: Partial<Parameters<typeof movementOf>[0]> = {}) => ({ button: 0, shift: false, ctrl: false, held: new Set<string>(), ...over });

describe("a press", () => {
  it("of the left button does what the tool does", () => {
    const tools = ["look", "point", "box", "scribble", "ruler"] as const;
    expect(tools.map((tool) => movementOf(press(), tool, "axial"))).toEqual(["look", "mark", "draw", "draw", "measure"]);
  });

  it("of the right button changes the window, but a stroke removes", () => {
    expect(movementOf(press({ button: 2 }), "point", "axial")).toBe("window");
    expect(movementOf(press({ button: 2 }), "box", "coronal")).toBe("window");
    expect(movementOf(press({ button: 2 }), "scribble", "axial")).toBe("draw");
  });

  it("with a key held does what the key says, whatever the tool", () => {
    for (const tool of ["point", "scribble", "ruler"] as const) {
      expect(movementOf(press({ held: new Set(["w"]) }), tool, "axial")).toBe("window");
      expect(movementOf(press({ held: new Set([" "]) }), tool, "axial")).toBe("pan");
      expect(movementOf(press({ ctrl: true }), tool, "axial")).toBe("look");
    }
    expect(movementOf(press({ button: 1 }), "box", "axial")).toBe("pan");
  });

  it("on the 3D view turns it", () => {
    expect(movementOf(press({ button: 2, held: new Set(["w"]) }), "scribble", "render")).toBe("turn");
  });
});

describe("the window", () => {
  const soft = { low: -160, high: 240 };

  it("is twice as wide 200 pixels to the right, about its level", () => {
    expect(dragWindow(soft, 200, 0)).toEqual({ low: -360, high: 440 });
    expect(dragWindow(soft, -200, 0)).toEqual({ low: -60, high: 140 });
  });

  it("is lower, which is brighter, after a drag upwards: by its width in 400 pixels", () => {
    expect(dragWindow(soft, 0, 100)).toEqual({ low: -260, high: 140 });
  });

  it("never vanishes", () => {
    const { low, high } = dragWindow(soft, -2000, 0);
    expect(high).toBeGreaterThan(low);
  });
});

describe("the wheel", () => {
  const turn = (deltaY: number, deltaMode = 0) => ({ deltaY, deltaMode });

  it("of a mouse goes a slice a notch, in pixels or in lines, however fast", () => {
    for (const notch of [turn(120), turn(100), turn(3, 1)]) {
      const wheel = new Wheel();
      expect([0, 50, 100, 150].map((now) => wheel.slices(notch, now))).toEqual([-1, -1, -1, -1]);
    }
    expect(new Wheel().slices(turn(-240), 0)).toBe(2); // two notches in one event
  });

  it("of a trackpad adds small movements up: ten slices for a sweep of a thousand pixels", () => {
    const wheel = new Wheel();
    const slices = Array.from({ length: 100 }, (_, n) => wheel.slices(turn(10), n * 16));
    expect(slices.reduce((a, b) => a + b, 0)).toBe(-10);
    expect(Math.max(...slices.map(Math.abs))).toBe(1);
  });

  it("moves at once after a rest, and turns round at once", () => {
    const wheel = new Wheel();
    expect(wheel.slices(turn(4), 0)).toBe(-1);
    expect(wheel.slices(turn(60), 16)).toBe(0);
    expect(wheel.slices(turn(-60), 32)).toBe(0); // what had added up the other way is dropped
    expect(wheel.slices(turn(-60), 48)).toBe(1);
    expect(wheel.slices(turn(4), 1000)).toBe(-1);
  });

  it("enlarges little by little, by a pinch and by a notch with Ctrl alike", () => {
    expect(zoomOf(turn(-4))).toBeCloseTo(1.03);
    expect(zoomOf(turn(-120))).toBeCloseTo(1.25);
    expect(zoomOf(turn(120)) * zoomOf(turn(-120))).toBeCloseTo(1);
  });
});

describe("two fingers", () => {
  it("enlarge by how far they part, about their middle, which they carry along", () => {
    const { factor, from, to } = pinch([{ x: 0, y: 0 }, { x: 10, y: 0 }], [{ x: 10, y: 20 }, { x: 30, y: 20 }]);
    expect(factor).toBe(2);
    expect(from).toEqual({ x: 5, y: 0 });
    expect(to).toEqual({ x: 20, y: 20 });
  });
});
