// What each key does.
import type { Command } from "../input/keys";
import { TOOLS } from "../input/prompts";
import { PLANES, step, type Direction } from "../stage/geometry";
import { LAYOUTS } from "../stage/tiles";
import type { Actions } from "./actions";
import { say } from "./messages";
import { describeVoxel } from "./readout";

const TOOL_KEYS = "lcbsaegr"; // in the order of the tools
const FAR = 10; // voxels that an arrow key moves with Shift
const SAY_AFTER_MS = 400; // without another move
const TURN = 10; // degrees that a key turns the 3D view

const ARROWS: [string, Direction][] = [
  ["ArrowLeft", "left"],
  ["ArrowRight", "right"],
  ["ArrowUp", "up"],
  ["ArrowDown", "down"],
  ["PageUp", "forward"],
  ["PageDown", "back"],
];

export function commandsOf(page: Actions): Command[] {
  const { viewer, prompter, view } = page;
  let saying = 0;
  const opened = (act: () => void) => () => {
    if (page.state) act();
  };

  const move = ({ key, shiftKey }: KeyboardEvent) => {
    if (!page.state) return;
    const direction = ARROWS.find(([name]) => name === key)![1];
    if (viewer.layout === "render") {
      const turn = { left: [TURN, 0], right: [-TURN, 0], up: [0, -TURN], down: [0, TURN], forward: [0, 0], back: [0, 0] }[direction];
      viewer.tiles.camera.rotate(turn[0]!, turn[1]!);
      return viewer.draw(true);
    }
    viewer.moveTo(step(viewer.orientation, viewer.cursor, page.plane, direction, shiftKey ? FAR : 1));
    page.cursorMoved();
    clearTimeout(saying);
    saying = window.setTimeout(opened(() => say(describeVoxel(viewer, page.state!))), SAY_AFTER_MS);
  };
  const enter = ({ shiftKey }: KeyboardEvent) => opened(() => page.enter(shiftKey))();

  const nextOf = <T>(list: readonly T[], now: T): T => list[(list.indexOf(now) + 1) % list.length] as T;
  const zoom = (factor: number) =>
    opened(() => {
      const { tiles } = viewer;
      tiles.camera.enlarge(factor, tiles.positionOf(viewer.cursor));
      viewer.draw();
    });
  const opacity = (change: number) => () => view.setOpacity(view.opacity + change);
  const preset = ({ key }: KeyboardEvent) => {
    const chosen = page.info?.presets[Number(key) - 1];
    if (!chosen) return;
    view.setWindow(chosen.low, chosen.high);
    say(`Window: ${chosen.name}`);
  };
  const nextObject = opened(() => {
    const { objects, current } = page.state!;
    page.select(nextOf(objects.map(({ number }) => number), current));
  });
  const plane = () => {
    const { layout } = viewer;
    page.changed(nextOf(PLANES, page.plane));
    if (layout !== "all") view.setLayout(page.plane);
    say(`${page.plane} plane`);
  };

  const size = (way: 1 | -1) => () => {
    page.painter.resize(way);
    page.resized();
    say(`Radius ${page.painter.radius_mm} mm`);
  };
  const mark = "Mark", correct = "Correct", look = "Look", own = "Page";
  const arrows = ARROWS.map(([key]) => key);
  return [
    { keys: ["Enter"], shown: "Enter", text: "mark the voxel under the cursor", group: mark, canvas: true, run: enter },
    { keys: ["Shift+Enter"], shown: "Shift Enter", text: "mark it as not tumour", group: mark, canvas: true, run: enter },
    { keys: [...TOOL_KEYS], shown: TOOL_KEYS.toUpperCase().split("").join(" "), text: `tool: ${TOOLS.join(", ")}`, group: mark, run: ({ key }) => page.tool(TOOLS[TOOL_KEYS.indexOf(key.toLowerCase())]!) },
    { keys: ["t"], shown: "T", text: "turn between adding and removing", group: mark, run: () => page.sign(!prompter.positive) },
    { keys: ["n"], shown: "N", text: "begin a new object", group: mark, run: opened(page.newObject) },
    { keys: ["o"], shown: "O", text: "go to the next object", group: mark, run: nextObject },
    { keys: ["Ctrl+Enter"], shown: "Ctrl Enter", text: "run what was collected", group: mark, run: opened(page.run) },
    { keys: ["Escape"], shown: "Esc", text: "drop an unfinished box, stroke or line; close a message", group: mark, run: () => page.cancel() },
    { keys: ["["], shown: "[ ]", text: "smaller, larger brush", group: correct, run: size(-1) },
    { keys: ["]"], shown: "", text: "", group: correct, run: size(1) },
    { keys: ["j"], shown: "J", text: "fill holes", group: correct, run: opened(() => page.edit({ kind: "fill", axis: null })) },
    { keys: ["i"], shown: "I", text: "fill the slices between drawn ones of this plane", group: correct, run: opened(page.interpolate) },
    { keys: ["u"], shown: "U", text: "smooth", group: correct, run: opened(page.smooth) },
    { keys: ["k"], shown: "K", text: "keep the part at the cursor", group: correct, run: opened(() => page.part(true)) },
    { keys: ["Shift+k"], shown: "Shift K", text: "remove the part at the cursor", group: correct, run: opened(() => page.part(false)) },
    { keys: ["Ctrl+z"], shown: "Ctrl Z", text: "undo", group: correct, run: opened(page.undo) },
    { keys: ["Ctrl+Shift+z", "Ctrl+y"], shown: "Ctrl Y", text: "redo", group: correct, run: opened(page.redo) },
    { keys: ["Delete"], shown: "Del", text: "remove the last measured line", group: correct, canvas: true, run: opened(page.removeLine) },
    { keys: arrows.slice(0, 4), shown: "← → ↑ ↓", text: "move the cursor by a voxel, with Shift by ten", group: look, canvas: true, run: move },
    { keys: arrows.slice(4), shown: "PgUp PgDn", text: "next, previous slice, with Shift by ten", group: look, canvas: true, run: move },
    { keys: arrows.map((key) => `Shift+${key}`), shown: "", text: "", group: look, canvas: true, run: move },
    { keys: ["p"], shown: "P", text: "arrow keys move in the next plane", group: look, run: opened(plane) },
    { keys: ["v"], shown: "V", text: "next layout: all, one plane, 3D", group: look, run: opened(() => view.setLayout(nextOf(LAYOUTS, viewer.layout))) },
    { keys: ["1", "2", "3", "4"], shown: "1 2 3 4", text: "window presets", group: look, run: preset },
    { keys: [], shown: "W", text: "hold, and drag: change the window", group: look, run: () => {} },
    { keys: ["+", "="], shown: "+", text: "enlarge about the cursor", group: look, run: zoom(1.25) },
    { keys: ["-"], shown: "−", text: "make smaller", group: look, run: zoom(0.8) },
    { keys: ["0"], shown: "0", text: "show the whole scan", group: look, run: opened(() => view.fit()) },
    { keys: [" "], shown: "Space", text: "hold, and drag: move the planes", group: look, canvas: true, run: () => {} },
    { keys: [","], shown: ", .", text: "mask less, more opaque", group: look, run: opacity(-0.1) },
    { keys: ["."], shown: "", text: "", group: look, run: opacity(0.1) },
    { keys: ["q"], shown: "Q", text: "hide or show the diameters", group: look, run: opened(() => view.setDiameters(!view.diameters)) },
    { keys: ["m"], shown: "M", text: "hide or show the mask", group: look, run: () => view.toggleMask() },
    { keys: ["f"], shown: "F", text: "mask as an outline, or filled", group: look, run: () => view.setOutline(!view.outline) },
    { keys: ["h"], shown: "H", text: "hide or show the body in 3D", group: look, run: opened(() => view.setBody(!view.body)) },
    { keys: ["d"], shown: "D", text: "save the mask as NIfTI", group: own, run: opened(() => page.save("nifti")) },
    { keys: ["x"], shown: "X", text: "save what is shown as a picture", group: own, run: opened(page.screenshot) },
    { keys: ["?"], shown: "?", text: "show these keys", group: own, run: page.help },
  ];
}
