// What each key does.
import { PLANES, step, type Direction } from "./geometry";
import type { Command } from "./keys";
import type { Page } from "./app";
import { TOOLS } from "./prompts";
import { describeVoxel } from "./readout";
import { say } from "./tell";
import { LAYOUTS } from "./tiles";

const FAR = 10; // voxels that Shift and an arrow key go
const SAY_AFTER_MS = 400; // without a further step

const ARROWS: [string, Direction][] = [
  ["ArrowLeft", "left"],
  ["ArrowRight", "right"],
  ["ArrowUp", "up"],
  ["ArrowDown", "down"],
  ["PageUp", "forward"],
  ["PageDown", "back"],
];

export function commandsOf(page: Page): Command[] {
  const { viewer, prompter, work } = page;
  let saying = 0;
  const opened = (act: () => void) => () => {
    if (work.state) act();
  };

  const move = ({ key, shiftKey }: KeyboardEvent) => {
    if (!work.state) return;
    const direction = ARROWS.find(([name]) => name === key)![1];
    if (viewer.layout === "render") {
      const turn = { left: [10, 0], right: [-10, 0], up: [0, -10], down: [0, 10], forward: [0, 0], back: [0, 0] }[direction];
      viewer.camera.rotate(turn[0]!, turn[1]!);
      return viewer.draw(true);
    }
    viewer.moveTo(step(viewer.orientation, viewer.cursor, page.plane, direction, shiftKey ? FAR : 1));
    prompter.follow(viewer.cursor);
    page.changed();
    clearTimeout(saying);
    saying = window.setTimeout(() => say(describeVoxel(viewer, work.state!)), SAY_AFTER_MS);
  };

  const enter = ({ shiftKey }: KeyboardEvent) => {
    if (!work.state) return;
    const prompt = prompter.enter(viewer.cursor, shiftKey);
    if (prompt) page.send(prompt);
    else if (prompter.draft) say("Move the cursor, then press Enter again; Escape cancels.");
    page.changed();
  };

  const nextOf = <T>(list: readonly T[], now: T): T => list[(list.indexOf(now) + 1) % list.length] as T;
  const zoom = (factor: number) =>
    opened(() => {
      viewer.camera.zoom(factor);
      viewer.draw();
    });
  const opacity = (change: number) => () => page.view.opacity(page.view.share + change);
  const preset = ({ key }: KeyboardEvent) => {
    const chosen = page.info?.presets[Number(key) - 1];
    if (!chosen) return;
    page.view.window(chosen.low, chosen.high);
    say(`Window: ${chosen.name}`);
  };
  const nextObject = opened(() => {
    const { objects, current } = work.state!;
    page.select(nextOf(objects.map(({ number }) => number), current));
  });
  const plane = () => {
    const { layout } = viewer;
    page.changed(nextOf(PLANES, page.plane));
    if (layout !== "all") page.view.layout(page.plane);
    say(`${page.plane} plane`);
  };

  const mark = "Mark", correct = "Correct", look = "Look", own = "Page";
  const arrows = ARROWS.map(([key]) => key);
  return [
    { keys: ["Enter"], shown: "Enter", text: "mark the voxel under the cursor", group: mark, canvas: true, run: enter },
    { keys: ["Shift+Enter"], shown: "Shift Enter", text: "mark it as not tumour", group: mark, canvas: true, run: enter },
    { keys: ["l", "c", "b", "s"], shown: "L C B S", text: "tool: look, click, box, scribble", group: mark, run: ({ key }) => page.tool(TOOLS["lcbs".indexOf(key.toLowerCase())]!) },
    { keys: ["t"], shown: "T", text: "turn between adding and removing", group: mark, run: () => page.sign(!prompter.positive) },
    { keys: ["n"], shown: "N", text: "begin a new object", group: mark, run: opened(page.newObject) },
    { keys: ["o"], shown: "O", text: "go to the next object", group: mark, run: nextObject },
    { keys: ["Escape"], shown: "Esc", text: "drop an unfinished box or stroke; close a message", group: mark, run: () => page.cancel() },
    { keys: ["Ctrl+z"], shown: "Ctrl Z", text: "undo", group: correct, run: opened(page.undo) },
    { keys: ["Ctrl+Shift+z", "Ctrl+y"], shown: "Ctrl Y", text: "redo", group: correct, run: opened(page.redo) },
    { keys: arrows.slice(0, 4), shown: "← → ↑ ↓", text: "move the cursor by a voxel, with Shift by ten", group: look, canvas: true, run: move },
    { keys: arrows.slice(4), shown: "PgUp PgDn", text: "next, previous slice, with Shift by ten", group: look, canvas: true, run: move },
    { keys: arrows.map((key) => `Shift+${key}`), shown: "", text: "", group: look, canvas: true, run: move },
    { keys: ["p"], shown: "P", text: "arrow keys move in the next plane", group: look, run: opened(plane) },
    { keys: ["v"], shown: "V", text: "next layout: all, one plane, 3D", group: look, run: opened(() => page.view.layout(nextOf(LAYOUTS, viewer.layout))) },
    { keys: ["1", "2", "3", "4"], shown: "1 2 3 4", text: "window presets", group: look, run: preset },
    { keys: ["+", "="], shown: "+", text: "enlarge about the cursor", group: look, run: zoom(1.25) },
    { keys: ["-"], shown: "−", text: "make smaller", group: look, run: zoom(0.8) },
    { keys: ["["], shown: "[ ]", text: "mask less, more opaque", group: look, run: opacity(-0.1) },
    { keys: ["]"], shown: "", text: "", group: look, run: opacity(0.1) },
    { keys: ["m"], shown: "M", text: "hide or show the mask", group: look, run: () => page.view.toggleMask() },
    { keys: ["d"], shown: "D", text: "save the mask as NIfTI", group: own, run: opened(() => page.save("nifti")) },
    { keys: ["?"], shown: "?", text: "show these keys", group: own, run: page.help },
  ];
}
