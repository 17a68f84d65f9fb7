// The page as a whole: it makes its parts, which know each other only through it.
import {
  EngineError,
  FILES,
  type Box,
  type Edit,
  type Engine,
  type FileKind,
  type Index,
  type Info,
  type ObjectFacts,
  type Prompt,
  type Source,
  type State,
  type Step,
  type StepResult,
} from "../engine/engine";
import { describe, heldKeys, obey } from "../input/keys";
import { Painter, paints } from "../input/painter";
import { bindPointer, type Hover } from "../input/pointer";
import { Prompter } from "../input/prompts";
import { Strokes } from "../input/strokes";
import { normalAxis, type Plane } from "../stage/geometry";
import { Overlay } from "../stage/overlay";
import { lengthMm, Ruler, type Line } from "../stage/ruler";
import { Sliders } from "../stage/sliders";
import type { Layout } from "../stage/tiles";
import { Viewer } from "../stage/viewer";
import type { Voxels } from "../stage/voxels";
import type { Actions } from "./actions";
import { writeAddress } from "./address";
import { commandsOf } from "./commands";
import { element, save } from "./dom";
import { hideProblem, say, showArriving, showBusy, showConnection, showProblem, showResult, showScan } from "./messages";
import { Opener } from "./open";
import { Panel } from "./panel";
import { ProjectWork } from "./project";
import { describeVoxel } from "./readout";
import { markAnswered, markAsked } from "./timing";
import { View } from "./view";
import { Work, type Listener } from "./work";

const AIR_HU = -500; // only CT goes below it
const EDITS: (Prompt | Edit)["kind"][] = ["brush", "lasso", "fill", "smooth", "component", "interpolate"];
const SUFFIX = /(\.nii(\.gz)?|\.nrrd|\.mha|\.zip)$/i;

export class Page implements Actions, Listener {
  readonly canvas = element<HTMLCanvasElement>("planes");
  readonly gl = element<HTMLCanvasElement>("gl");
  readonly viewer = new Viewer(this.canvas, this.gl);
  readonly overlay = new Overlay(this.canvas, this.viewer);
  readonly prompter = new Prompter(
    () => ({ ...this.viewer.orientation, spacing: this.state!.spacing_mm }),
    (what) => this.info?.model.prompts[what] !== false,
  );
  readonly painter = new Painter();
  readonly ruler = new Ruler();
  readonly panel = new Panel(this);
  readonly view = new View(this.viewer, () => this.panel.view(this.view), (layout) => this.relaid(layout));
  readonly work: Work;
  readonly opener: Opener;
  info: Info | null = null;
  project: ProjectWork | null = null; // if the server has one
  plane: Plane = "axial";
  private readonly sliders = new Sliders(element("sliders"), this.viewer.tiles, (index, plane) => {
    this.viewer.moveTo(index);
    this.changed(plane);
  });
  private readonly strokes = new Strokes();
  private readonly sent: (Prompt | Edit)[] = []; // and not answered yet
  private readonly collected: (Prompt | Edit)[] = []; // and not sent yet
  private collecting = false;
  private over: Hover | null = null;

  constructor(
    private readonly engine: Engine,
    private readonly store: Pick<Storage, "getItem" | "setItem"> | null,
  ) {
    this.work = new Work(engine, this);
    this.opener = new Opener(engine, this);
  }

  get state(): State | null {
    return this.work.state;
  }

  async start(session: string | null, demo: boolean): Promise<void> {
    this.bind();
    await this.viewer.attach();
    this.info = await this.engine.info();
    this.panel.model(this.info);
    if (this.engine.project && this.info.project) this.project = new ProjectWork(this.engine.project, this, this.store);
    this.bindKeys();
    this.changed();
    this.view.setOpacity(this.view.opacity);
    this.opener.bind(this.info);
    await this.project?.start();
    if (session) await this.work.resume(session);
    else if (demo && this.info.demo) await this.work.open({ demo: true });
    if (!this.state) this.welcome(true);
  }

  private bind(): void {
    this.viewer.onDraw = () => this.redraw();
    bindPointer(this.canvas, {
      viewer: this.viewer,
      prompter: this.prompter,
      painter: this.painter,
      ruler: this.ruler,
      held: heldKeys(),
      give: (mark) => this.give(mark),
      hover: (over) => {
        this.over = over;
        if (paints(this.prompter.tool)) this.redraw();
      },
      measured: (line) => this.measured(line),
      window: ({ low, high }) => this.view.setWindow(low, high),
      changed: (plane) => this.changed(plane),
    });
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => this.redraw());
    element("show-help").addEventListener("click", () => this.help());
    element("problem-close").addEventListener("click", hideProblem);
    element("another").addEventListener("click", () => this.welcome(true));
    element("back").addEventListener("click", () => this.welcome(false));
  }

  private bindKeys(): void {
    const commands = [...commandsOf(this), ...(this.project?.commands ?? [])];
    obey(commands, this.canvas);
    describe(commands, element("help-keys"));
  }

  /** What is shown while no scan is open: the project's work list, or the ways to open a scan. */
  private get frontElement(): HTMLElement {
    return element(this.project ? "project" : "welcome");
  }

  front = (shown: boolean) => this.welcome(shown);

  /** Run what was collected, and wait for every answer. */
  settle(): Promise<void> {
    this.run();
    return this.work.settled();
  }

  close(): void {
    const { id } = this.state!;
    this.work.leave();
    this.engine.forget(id);
    writeAddress(null);
    element("scan").replaceChildren();
  }

  // Actions of the user

  tool(tool: Prompter["tool"]): void {
    if (!this.prompter.choose(tool)) say(`The model ${this.info?.model.name} does not take this tool.`);
    this.canvas.dataset.tool = this.prompter.tool;
    this.changed();
  }

  sign(positive: boolean): void {
    this.prompter.positive = positive;
    this.changed();
  }

  enter(opposite: boolean): void {
    const { cursor, orientation } = this.viewer;
    const { tool, positive } = this.prompter;
    if (paints(tool)) {
      const edit = this.painter.draft && this.painter.end();
      if (edit) this.give(edit);
      else this.painter.begin(tool, orientation, this.plane, cursor, (tool === "lasso" ? positive : tool === "brush") !== opposite, true);
    }
    if (tool === "ruler") {
      const line = this.ruler.end();
      if (line) this.measured(line);
      else this.ruler.begin(orientation, this.plane, cursor, true);
    }
    const prompt = this.prompter.enter(cursor, opposite);
    if (prompt) this.give(prompt);
    else if (this.prompter.draft || this.painter.draft || this.ruler.draft) say("Move the cursor, then press Enter again; Escape cancels.");
    this.changed();
  }

  private measured(line: Line): void {
    say(`${lengthMm(this.state!.affine, line).toFixed(1)} mm`);
  }

  accept(): void {
    const prompt = this.prompter.accept();
    if (prompt) this.give(prompt);
    this.changed();
  }

  cancel(): void {
    this.prompter.cancel();
    this.ruler.draft = this.painter.draft = null;
    hideProblem();
    this.changed();
  }

  removeLine = () => {
    this.ruler.remove();
    this.changed();
  };

  resized = () => this.changed();

  /** Run a mark or a stroke, or add it to those that wait to be run. */
  give(mark: Prompt | Edit): void {
    if (!this.state) return;
    if (!this.collecting) return this.send([mark]);
    this.collected.push(mark);
    this.changed();
  }

  collect(wanted: boolean): void {
    this.collecting = wanted;
    if (!wanted) this.run();
  }

  run = () => {
    if (this.collected.length) this.send(this.collected.splice(0));
    this.changed();
  };

  drop(): void {
    this.collected.length = 0;
    this.changed();
  }

  // In order; consecutive edits are one step, and so are consecutive prompts.
  private send(marks: (Prompt | Edit)[]): void {
    markAsked();
    this.sent.push(...marks);
    while (marks.length) {
      const isEdit = EDITS.includes(marks[0]!.kind);
      const end = marks.findIndex(({ kind }) => EDITS.includes(kind) !== isEdit);
      const some = marks.splice(0, end < 0 ? marks.length : end);
      if (!isEdit) for (const prompt of some as Prompt[]) this.strokes.sent(this.state!.current, prompt);
      const done = isEdit ? this.work.step({ kind: "edit", edits: some as Edit[] }) : this.work.prompt(...(some as Prompt[]));
      void done.finally(() => {
        this.sent.splice(0, some.length);
        this.redraw();
      });
    }
    this.redraw();
  }

  edit = (edit: Edit) => this.give(edit);
  smooth = () => this.edit({ kind: "smooth", sd_mm: element<HTMLInputElement>("smooth-mm").valueAsNumber || 2 });
  interpolate = () => this.edit({ kind: "interpolate", axis: normalAxis(this.viewer.orientation, this.plane) });
  part = (keep: boolean) => this.edit({ kind: "component", index: this.viewer.cursor, keep });
  loadMask = (file: File) => this.attempt(() => this.work.loadMask({ files: [{ name: file.name, file }] }));

  rules = (rules: Partial<Pick<State, "overlap" | "keep_clicked">>) => void this.work.step({ kind: "rules", rules });
  describe = (number: number, facts: Partial<ObjectFacts>) => void this.work.step({ kind: "describe", number, facts });
  deleteObject = (number: number) => void this.work.step({ kind: "delete object", number });
  deletePrompt = (number: number, index: number) => void this.work.step({ kind: "delete prompt", number, index });

  goTo(index: Index): void {
    this.viewer.moveTo(index);
    this.changed();
  }

  select = (number: number) => void this.work.select(number);
  newObject = () => void this.work.step({ kind: "new object" });
  redo = () => void this.work.step({ kind: "redo" });
  reset = () => void this.work.step({ kind: "reset" });

  /** Drop the mark collected last; if there is none, undo a step. */
  undo = () => {
    if (this.collected.pop()) this.changed();
    else void this.work.step({ kind: "undo" });
  };

  open = (source: Source, name?: string) => this.attempt(() => this.work.open(source, name));
  resume = (session: string) => this.attempt(() => this.work.resume(session));

  private async attempt(act: () => Promise<void>): Promise<void> {
    hideProblem();
    try {
      await act();
    } catch (error) {
      if (error instanceof EngineError && error.source && error.problem.series) this.opener.choose(error.source, error.problem.series);
      else showProblem(error);
      this.opener.recent(); // what was asked for may be gone
    }
    if (!this.state) this.welcome(true);
  }

  save(kind: FileKind): void {
    const { id } = this.state!;
    void this.engine.file(id, kind).then((file) => this.hand(file, FILES[kind]), showProblem);
  }

  screenshot = () => {
    const place = this.viewer.drawNow();
    const { width, height } = this.canvas;
    const scale = width / this.canvas.clientWidth;
    const picture = Object.assign(document.createElement("canvas"), { width, height });
    const pen = picture.getContext("2d")!;
    if (place) pen.drawImage(this.gl, place.x * scale, place.y * scale, place.width * scale, place.height * scale);
    pen.drawImage(this.canvas, 0, 0, width, height);
    picture.toBlob((file) => file && this.hand(file, "view.png"));
  };

  // Give the user a file named after the scan.
  private hand(file: Blob, name: string): void {
    const stem = this.state!.name.replace(SUFFIX, "").replaceAll(/[^\w-]+/g, "_") || "scan";
    save(file, `${stem}_${name}`);
    say(`${name} saved`);
  }

  help = () => element<HTMLDialogElement>("help").showModal();

  welcome(shown: boolean): void {
    this.frontElement.hidden = !shown;
    element("back").hidden = !this.state;
    if (shown && this.project) {
      this.project.refresh();
      element("project-next").focus();
    } else if (shown) {
      this.opener.recent();
      element("open-files").focus();
    } else this.canvas.focus();
    this.redraw();
  }

  changed(plane = this.plane): void {
    this.plane = plane;
    this.panel.tool(this.prompter, this.painter, this.ruler.lines.length, this.collected.length);
    this.redraw();
  }

  /** The keyboard moved the cursor: what it draws follows. */
  cursorMoved(): void {
    this.prompter.follow(this.viewer.cursor);
    this.painter.follow(this.viewer.cursor);
    this.ruler.follow(this.viewer.cursor);
    this.changed();
  }

  private relaid(layout: Layout): void {
    if (layout !== "all" && layout !== "render") this.plane = layout;
  }

  // Events of the work

  async scan(voxels: Voxels, state: State): Promise<void> {
    const { affine, spacing_mm } = state;
    await this.viewer.open({ voxels, affine, spacing_mm }, (lowest) => {
      const isCT = state.modality ? state.modality === "CT" : lowest < AIR_HU; // NIfTI does not say
      this.panel.modality(isCT);
      return (isCT && this.info!.presets[0]) || null;
    });
    showArriving(voxels.isComplete ? null : voxels.count / voxels.shape[2]);
    this.collected.length = 0;
    this.strokes.forget();
    this.ruler.clear();
    this.prompter.cancel();
    this.panel.view(this.view);
    writeAddress(state.id);
    showScan(state);
    this.welcome(false);
  }

  showState(state: State | null): void {
    element("panel").hidden = !state;
    element("another").hidden = !state || !!this.project;
    this.project?.opened(state);
    if (state) {
      this.panel.state(state);
      this.viewer.objects = new Map(state.objects.map((object) => [object.number, object]));
    }
    this.redraw();
  }

  arrived(voxels: Voxels): void {
    this.viewer.arrived();
    showArriving(voxels.isComplete ? null : voxels.count / voxels.shape[2]);
  }

  clear = () => this.viewer.clearLabels();
  labels = (box: Box, values: Uint8Array) => this.viewer.paste(box, values);

  result(result: StepResult, step: Step): void {
    showResult(result, step);
    hideProblem();
    markAnswered();
  }

  busy = showBusy;
  connection = showConnection;
  failed = showProblem;

  private redraw(): void {
    const state = this.state;
    const { tool } = this.prompter;
    const axial = normalAxis(this.viewer.orientation, "axial");
    const shown = state?.objects ?? [];
    this.overlay.draw({
      objects: shown.map((object) => ({ ...object, prompts: this.strokes.complete(object.number, object.prompts) })),
      current: state?.current ?? 1,
      sent: [...this.sent, ...this.collected],
      drawn: this.painter.draft,
      tip: this.over && (tool === "brush" || tool === "eraser") ? { ...this.over, radius_mm: this.painter.radius_mm } : null,
      diameters: shown.flatMap(({ colour, visible, longest, perpendicular }) => {
        const lines = visible && this.view.diameters ? [longest, perpendicular] : [];
        return lines.flatMap((line) => (line ? [{ colour, line: { from: line.ends[0], to: line.ends[1], axis: axial } }] : []));
      }),
      draft: this.prompter.draft,
      lines: this.ruler.draft ? [...this.ruler.lines, this.ruler.draft] : this.ruler.lines,
      affine: state?.affine ?? [],
      plane: this.plane,
      focused: document.activeElement === this.canvas,
    });
    this.sliders.draw(this.viewer.isOpen && state !== null && this.frontElement.hidden === true);
    element("readout").textContent = state && this.viewer.isOpen ? describeVoxel(this.viewer, state) : "";
  }
}
