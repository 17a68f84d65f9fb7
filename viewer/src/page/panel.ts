// The panel beside the scan: tools, objects with their measurements, undo, view, downloads.
import { FILES, type FileKind, type Info, type Preset, type State } from "../engine/engine";
import { paints, type Painter } from "../input/painter";
import { TOOLS, type Prompter, type Tool } from "../input/prompts";
import { LAYOUTS, type Layout } from "../stage/tiles";
import type { Actions } from "./actions";
import { button, element } from "./dom";
import { Objects } from "./objects";
import type { View } from "./view";
import { expected, sentence, when } from "./words";

const TOOL_TEXT: Record<Tool, [name: string, hint: string]> = {
  look: ["Look", "Click or drag to look around; nothing is marked."],
  point: ["Click", "Click in the tumour. Right click, or Shift: not tumour."],
  box: ["Box", "Drag a rectangle round the tumour, then again in another plane to set its depth."],
  scribble: ["Scribble", "Draw a stroke in the tumour. Right button, or Shift: not tumour."],
  brush: ["Brush", "Paint what belongs to the object. Right button, or Shift: erase."],
  eraser: ["Eraser", "Erase what does not belong. Right button, or Shift: paint."],
  lasso: ["Lasso", "Draw round a region to add or remove it."],
  ruler: ["Ruler", "Drag a line to measure it in mm. Lines are not saved."],
};
const LAYOUT_TEXT: Record<Layout, [name: string, full: string]> = {
  all: ["All", "three planes and 3D"],
  axial: ["Axial", "axial plane"],
  coronal: ["Cor.", "coronal plane"],
  sagittal: ["Sag.", "sagittal plane"],
  render: ["3D", "3D view"],
};
const MAX_EARLIER = 3; // saved sessions that are offered
const KINDS = Object.keys(FILES) as FileKind[];

export class Panel {
  private presets: Preset[] = [];
  private isCT = true;

  private readonly objects: Objects;

  constructor(private readonly actions: Actions) {
    this.objects = new Objects(actions);
    const bind = (id: string, act: () => void) => element(id).addEventListener("click", act);
    bind("draft-accept", () => actions.accept());
    bind("draft-cancel", () => actions.cancel());
    bind("line-remove", () => actions.removeLine());
    bind("new-object", () => actions.newObject());
    bind("undo", () => actions.undo());
    bind("redo", () => actions.redo());
    bind("reset", () => actions.reset());
    bind("screenshot", () => actions.screenshot());
    bind("run", () => actions.run());
    bind("drop", () => actions.drop());
    bind("fill", () => actions.edit({ kind: "fill", axis: null }));
    bind("interpolate", () => actions.interpolate());
    bind("smooth", () => actions.smooth());
    bind("keep-part", () => actions.part(true));
    bind("remove-part", () => actions.part(false));
    const mask = element<HTMLInputElement>("choose-mask");
    bind("load-mask", () => mask.click());
    mask.addEventListener("change", () => {
      if (mask.files?.[0]) actions.loadMask(mask.files[0]);
      mask.value = "";
    });
    tick("collect", (wanted) => actions.collect(wanted));
    tick("overlap", (overlap) => actions.rules({ overlap }));
    tick("keep-clicked", (keep_clicked) => actions.rules({ keep_clicked }));
    tick("diameters", (shown) => actions.view.setDiameters(shown));
    this.bindBrush();
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
    tick("outline", (outline) => actions.view.setOutline(outline));
    tick("body", (shown) => actions.view.setBody(shown));
    choices("tools", "tool", TOOLS.map((tool) => [tool, TOOL_TEXT[tool][0]]), (tool) => actions.tool(tool as Tool));
    choices("signs", "sign", [["add", "+ Add"], ["remove", "− Remove"]], (sign) => actions.sign(sign === "add"));
    choices("layouts", "layout", LAYOUTS.map((name) => [name, ...LAYOUT_TEXT[name]]), (name) => actions.view.setLayout(name as Layout));
  }

  private bindBrush(): void {
    const { painter } = this.actions;
    const number = (id: string, act: (value: number) => void) => {
      const input = element<HTMLInputElement>(id);
      input.addEventListener("input", () => {
        if (Number.isFinite(input.valueAsNumber)) act(input.valueAsNumber);
        this.actions.resized();
      });
      return input;
    };
    number("radius", (mm) => painter.setRadius(mm));
    number("slices", (count) => (painter.slices = Math.max(1, Math.round(count))));
    const range = () => {
      const wanted = element<HTMLInputElement>("limited").checked;
      const [low, high] = [lowest.valueAsNumber, highest.valueAsNumber];
      painter.intensities = wanted && low <= high ? [low, high] : null;
    };
    const [lowest, highest] = [number("lowest", range), number("highest", range)];
    tick("limited", (wanted) => {
      const { low, high } = this.actions.viewer.window;
      if (wanted && !lowest.value && !highest.value) [lowest.valueAsNumber, highest.valueAsNumber] = [Math.round(low), Math.round(high)];
      lowest.disabled = highest.disabled = !wanted;
      range();
    });
    tick("ball", (ball) => {
      painter.ball = ball;
      this.actions.resized();
    });
  }

  /** Switch off what the model cannot do, with the reason as a tooltip. */
  model({ model, presets, types }: Info): void {
    this.objects.offer(types ?? []);
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

  /** Show the current tool. `lines`: how many were measured; `collected`: how many marks wait to be run. */
  tool(prompter: Prompter, painter: Painter, lines: number, collected: number): void {
    check("tools", prompter.tool);
    check("signs", prompter.positive ? "add" : "remove");
    const { tool } = prompter;
    const [brush, lasso] = [tool === "brush" || tool === "eraser", tool === "lasso"];
    element("signs").hidden = brush || tool === "ruler" || tool === "look";
    element("brush").hidden = !paints(tool);
    for (const row of ["radius", "ball", "range"]) element(`${row}-row`).hidden = !brush;
    element("slices-row").hidden = !lasso;
    element<HTMLInputElement>("radius").value = `${painter.radius_mm}`;
    element("radius-value").textContent = `${painter.radius_mm} mm`;
    element<HTMLInputElement>("slices").value = `${painter.slices}`;
    element("collected").hidden = !collected;
    element("run").setAttribute("aria-label", `Run ${collected} collected`);
    element("tool-hint").textContent = TOOL_TEXT[prompter.tool][1];
    const draft = prompter.draft;
    element("draft").hidden = !(draft?.kind === "box" && draft.placed);
    element("lines").hidden = !lines;
  }

  view({ window: { low, high }, opacity, outline, body, diameters, layout }: View): void {
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
    element<HTMLInputElement>("diameters").checked = diameters;
    check("layouts", layout);
  }

  /** The presets are in HU: for other scans than CT the window is derived from the intensities. */
  modality(isCT: boolean): void {
    this.isCT = isCT;
  }

  state(state: State): void {
    element<HTMLButtonElement>("undo").disabled = !state.can_undo;
    element<HTMLButtonElement>("redo").disabled = !state.can_redo;
    const marked = state.objects.some(({ prompts, edited }) => prompts.length || edited);
    element<HTMLButtonElement>("reset").disabled = !marked && state.objects.length < 2;
    for (const kind of KINDS) element<HTMLButtonElement>(`save-${kind}`).disabled = !marked;
    for (const kind of ["seg", "sr", "rtstruct"]) {
      const save = element<HTMLButtonElement>(`save-${kind}`);
      save.disabled ||= !state.dicom;
      save.title = state.dicom ? "" : "The scan is not DICOM.";
    }
    element<HTMLInputElement>("overlap").checked = state.overlap;
    element<HTMLInputElement>("keep-clicked").checked = state.keep_clicked;
    this.objects.show(state);
    const current = state.objects.find(({ number }) => number === state.current);
    const sure = current?.confidence ? [expected(current.confidence)] : [];
    const kind = current?.class_name ? [`Looks like: ${current.class_name}`] : [];
    const remarks = [...kind, ...sure, ...state.notes, ...(current?.messages ?? [])].map((text) => Object.assign(document.createElement("p"), { textContent: sentence(text) }));
    element("messages").hidden = !remarks.length;
    element("messages").replaceChildren(...remarks);
    const earlier = marked ? [] : state.earlier;
    element("earlier").hidden = !earlier.length;
    element("earlier").replaceChildren(
      ...earlier.slice(0, MAX_EARLIER).map(({ id, name, saved }) => {
        return button(`Go on with ${name}, saved ${when(Date.parse(saved), Date.now())}`, () => this.actions.resume(id));
      }),
    );
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

function tick(id: string, act: (checked: boolean) => void): void {
  const input = element<HTMLInputElement>(id);
  input.addEventListener("change", () => act(input.checked));
}

function check(place: string, value: string): void {
  element(place).querySelector<HTMLInputElement>(`[value="${value}"]`)!.checked = true;
}
