// The panel beside the scan: tools, objects with their measures, undo, view, downloads.
import { FILES, type FileKind, type Info, type Preset, type State } from "../engine/engine";
import { TOOLS, type Prompter, type Tool } from "../input/prompts";
import { colourOf } from "../stage/colours";
import { LAYOUTS, type Layout } from "../stage/tiles";
import type { Actions } from "./actions";
import { button, element } from "./dom";
import type { View } from "./view";
import { millilitres, millimetres, sentence } from "./words";

const TOOL_TEXT: Record<Tool, [name: string, hint: string]> = {
  look: ["Look", "Click or drag to look around; nothing is marked."],
  point: ["Click", "Click in the tumour. Right click, or Shift: not tumour."],
  box: ["Box", "Drag a rectangle round the tumour, then again in another plane to set its depth."],
  scribble: ["Scribble", "Draw a stroke in the tumour. Right button, or Shift: not tumour."],
  ruler: ["Ruler", "Drag a line to measure it in mm. Lines are not saved."],
};
const LAYOUT_TEXT: Record<Layout, [name: string, full: string]> = {
  all: ["All", "three planes and 3D"],
  axial: ["Axial", "axial plane"],
  coronal: ["Cor.", "coronal plane"],
  sagittal: ["Sag.", "sagittal plane"],
  render: ["3D", "3D view"],
};
const KINDS = Object.keys(FILES) as FileKind[];

export class Panel {
  private presets: Preset[] = [];
  private isCT = true;

  constructor(private readonly actions: Actions) {
    const bind = (id: string, act: () => void) => element(id).addEventListener("click", act);
    bind("draft-accept", () => actions.accept());
    bind("draft-cancel", () => actions.cancel());
    bind("line-remove", () => actions.removeLine());
    bind("new-object", () => actions.newObject());
    bind("undo", () => actions.undo());
    bind("redo", () => actions.redo());
    bind("reset", () => actions.reset());
    bind("screenshot", () => actions.screenshot());
    for (const kind of KINDS) bind(`save-${kind}`, () => actions.save(kind));
    const [level, width] = [element<HTMLInputElement>("level"), element<HTMLInputElement>("width")];
    const range = () => {
      const [middle, span] = [level.valueAsNumber, width.valueAsNumber];
      if (span > 0 && Number.isFinite(middle)) actions.view.setWindow(middle - span / 2, middle + span / 2);
    };
    level.addEventListener("change", range);
    width.addEventListener("change", range);
    const opacity = element<HTMLInputElement>("opacity");
    opacity.addEventListener("input", () => actions.view.setOpacity(opacity.valueAsNumber / 100));
    const outline = element<HTMLInputElement>("outline");
    outline.addEventListener("change", () => actions.view.setOutline(outline.checked));
    const body = element<HTMLInputElement>("body");
    body.addEventListener("change", () => actions.view.setBody(body.checked));
    choices("tools", "tool", TOOLS.map((tool) => [tool, TOOL_TEXT[tool][0]]), (tool) => actions.tool(tool as Tool));
    choices("signs", "sign", [["add", "+ Add"], ["remove", "− Remove"]], (sign) => actions.sign(sign === "add"));
    choices("layouts", "layout", LAYOUTS.map((name) => [name, ...LAYOUT_TEXT[name]]), (name) => actions.view.setLayout(name as Layout));
  }

  /** What the model cannot do is switched off, with the reason as the tip. */
  model({ model, presets }: Info): void {
    this.presets = presets;
    element("presets").replaceChildren(
      button("Auto", () => this.actions.view.autoWindow()),
      ...presets.map(({ name, low, high }) => button(sentence(name), () => this.actions.view.setWindow(low, high))),
    );
    const off = (id: string, value: string, can: boolean | undefined, what: string) => {
      const input = element(id).querySelector<HTMLInputElement>(`[value="${value}"]`)!;
      input.disabled = can === false;
      input.parentElement!.title = can === false ? `The model ${model.name} takes no ${what}.` : "";
    };
    off("tools", "box", model.prompts.box, "boxes");
    off("tools", "scribble", model.prompts.scribble, "scribbles");
    off("signs", "remove", model.prompts.negative, "clicks that remove");
  }

  /** The tool in use; `lines`: how many were measured. */
  tool(prompter: Prompter, lines: number): void {
    check("tools", prompter.tool);
    check("signs", prompter.positive ? "add" : "remove");
    element("signs").hidden = prompter.tool === "ruler";
    element("tool-hint").textContent = TOOL_TEXT[prompter.tool][1];
    const draft = prompter.draft;
    element("draft").hidden = !(draft?.kind === "box" && draft.placed);
    element("lines").hidden = !lines;
  }

  view({ window: { low, high }, opacity, outline, body, layout }: View): void {
    element<HTMLInputElement>("level").value = `${Math.round((low + high) / 2)}`;
    element<HTMLInputElement>("width").value = `${Math.round(high - low)}`;
    const [auto, ...buttons] = element("presets").querySelectorAll("button");
    if (auto) auto.hidden = this.isCT;
    buttons.forEach((child, n) => {
      const preset = this.presets[n]!;
      child.hidden = !this.isCT;
      child.setAttribute("aria-pressed", String(preset.low === low && preset.high === high));
    });
    element<HTMLInputElement>("opacity").value = `${Math.round(opacity * 100)}`;
    element("opacity-value").textContent = `${Math.round(opacity * 100)} %`;
    element<HTMLInputElement>("outline").checked = outline;
    element<HTMLInputElement>("body").checked = body;
    check("layouts", layout);
  }

  /** The presets are Hounsfield units: another scan's window is found from its intensities. */
  modality(isCT: boolean): void {
    this.isCT = isCT;
  }

  state(state: State): void {
    element<HTMLButtonElement>("undo").disabled = !state.can_undo;
    element<HTMLButtonElement>("redo").disabled = !state.can_redo;
    const marked = state.objects.some(({ prompts }) => prompts.length);
    element<HTMLButtonElement>("reset").disabled = !marked && state.objects.length < 2;
    for (const kind of KINDS) element<HTMLButtonElement>(`save-${kind}`).disabled = !marked;
    const seg = element<HTMLButtonElement>("save-seg");
    seg.disabled ||= !state.dicom;
    seg.title = state.dicom ? "" : "The scan is not DICOM.";
    const list = element("objects");
    const focused = list.contains(document.activeElement);
    list.replaceChildren(...state.objects.map((object) => this.object(object, object.number === state.current)));
    if (focused) list.querySelector<HTMLElement>('[aria-pressed="true"]')?.focus();
    const messages = state.objects.find(({ number }) => number === state.current)?.messages ?? [];
    const remarks = [...state.notes, ...messages].map((text) => Object.assign(document.createElement("p"), { textContent: sentence(text) }));
    element("messages").hidden = !remarks.length;
    element("messages").replaceChildren(...remarks);
  }

  private object(object: State["objects"][number], current: boolean): HTMLElement {
    const made = button("", () => this.actions.select(object.number));
    made.setAttribute("aria-pressed", String(current));
    const colour = document.createElement("i");
    colour.style.background = colourOf(object.number);
    const name = Object.assign(document.createElement("span"), { textContent: `Object ${object.number}` });
    const count = object.prompts.length;
    const measured = count ? millilitres(object.volume_ml) : "";
    const volume = Object.assign(document.createElement("strong"), { textContent: measured });
    const detail = document.createElement("small");
    detail.textContent = count
      ? `longest diameter ${millimetres(object.longest_diameter_mm)} · ${count} ${count === 1 ? "mark" : "marks"}`
      : "nothing marked yet";
    made.append(colour, name, volume, detail);
    const item = document.createElement("li");
    item.append(made);
    return item;
  }
}

type Option = [value: string, text: string, full?: string];

function choices(place: string, name: string, options: Option[], choose: (value: string) => void): void {
  for (const [value, text, full] of options) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name, value });
    input.addEventListener("change", () => choose(value));
    if (full) input.setAttribute("aria-label", full);
    const span = Object.assign(document.createElement("span"), { textContent: text });
    label.append(input, span);
    element(place).append(label);
  }
}

function check(place: string, value: string): void {
  element(place).querySelector<HTMLInputElement>(`[value="${value}"]`)!.checked = true;
}
