// The page as a whole: its parts are made here and know each other only through it.
import { FILES, type Box, type Engine, type FileKind, type Info, type Prompt, type Source, type State, type StepResult } from "../engine/engine";
import { describe, heldKeys, obey } from "../input/keys";
import { bindPointer } from "../input/pointer";
import { Prompter } from "../input/prompts";
import { Strokes } from "../input/strokes";
import type { Plane } from "../stage/geometry";
import { reorder } from "../stage/labels";
import { Overlay } from "../stage/overlay";
import { lengthMm, Ruler, type Line } from "../stage/ruler";
import { Sliders } from "../stage/sliders";
import type { Layout } from "../stage/tiles";
import { Viewer } from "../stage/viewer";
import type { Actions } from "./actions";
import { writeAddress } from "./address";
import { commandsOf } from "./commands";
import { element, save } from "./dom";
import { hideProblem, say, showBusy, showConnection, showProblem, showResult, showScan } from "./messages";
import { Opener } from "./open";
import { Panel } from "./panel";
import { describeVoxel } from "./readout";
import { markAnswered, markAsked } from "./timing";
import { View } from "./view";
import { Work, type Listener } from "./work";

const AIR_HU = -500; // below it only a CT goes
const SUFFIX = /(\.nii(\.gz)?|\.nrrd|\.mha|\.zip)$/i;

export class Page implements Actions, Listener {
  readonly canvas = element<HTMLCanvasElement>("planes");
  readonly gl = element<HTMLCanvasElement>("gl");
  readonly viewer = new Viewer(this.gl);
  readonly overlay = new Overlay(this.canvas, this.viewer);
  readonly prompter = new Prompter(
    () => ({ ...this.viewer.orientation, spacing: this.state!.spacing_mm }),
    (what) => this.info?.model.prompts[what] !== false,
  );
  readonly ruler = new Ruler();
  readonly panel = new Panel(this);
  readonly view = new View(this.viewer, () => this.panel.view(this.view), (layout) => this.relaid(layout));
  readonly work: Work;
  readonly opener: Opener;
  info: Info | null = null;
  plane: Plane = "axial";
  private readonly sliders = new Sliders(element("sliders"), this.viewer.tiles, (index, plane) => {
    this.viewer.moveTo(index);
    this.changed(plane);
  });
  private readonly strokes = new Strokes();
  private readonly sent: Prompt[] = []; // and not answered

  constructor(private readonly engine: Engine) {
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
    this.panel.tool(this.prompter, 0);
    this.view.setOpacity(this.view.opacity);
    this.opener.bind(this.info);
    if (session) await this.work.resume(session);
    else if (demo && this.info.demo) await this.work.open({ demo: true });
    if (!this.state) this.welcome(true);
  }

  private bind(): void {
    this.viewer.onDraw = () => this.redraw();
    this.viewer.onRender = (place) => this.overlay.keep(this.gl, place);
    bindPointer(this.canvas, {
      viewer: this.viewer,
      prompter: this.prompter,
      ruler: this.ruler,
      held: heldKeys(),
      send: (prompt) => this.send(prompt),
      measured: (line) => this.measured(line),
      window: ({ low, high }) => this.view.setWindow(low, high),
      changed: (plane) => this.changed(plane),
    });
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => this.redraw());
    const commands = commandsOf(this);
    obey(commands, this.canvas);
    describe(commands, element("help-keys"));
    element("show-help").addEventListener("click", () => this.help());
    element("problem-close").addEventListener("click", hideProblem);
    element("another").addEventListener("click", () => this.welcome(true));
    element("back").addEventListener("click", () => this.welcome(false));
  }

  // What the user does

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
    if (this.prompter.tool === "ruler") {
      const line = this.ruler.end();
      if (line) this.measured(line);
      else this.ruler.begin(orientation, this.plane, cursor, true);
    }
    const prompt = this.prompter.enter(cursor, opposite);
    if (prompt) this.send(prompt);
    else if (this.prompter.draft || this.ruler.draft) say("Move the cursor, then press Enter again; Escape cancels.");
    this.changed();
  }

  private measured(line: Line): void {
    say(`${lengthMm(this.state!.affine, line).toFixed(1)} mm`);
  }

  accept(): void {
    const prompt = this.prompter.accept();
    if (prompt) this.send(prompt);
    this.changed();
  }

  cancel(): void {
    this.prompter.cancel();
    this.ruler.draft = null;
    hideProblem();
    this.changed();
  }

  removeLine = () => {
    this.ruler.remove();
    this.changed();
  };

  send(prompt: Prompt): void {
    if (!this.state) return;
    markAsked();
    this.sent.push(prompt);
    this.strokes.sent(this.state.current, prompt);
    void this.work.prompt(prompt).finally(() => {
      this.sent.shift();
      this.redraw();
    });
    this.redraw();
  }

  select = (number: number) => void this.work.select(number);
  newObject = () => void this.work.step({ kind: "new object" });
  undo = () => void this.work.step({ kind: "undo" });
  redo = () => void this.work.step({ kind: "redo" });
  reset = () => void this.work.step({ kind: "reset" });

  open = (source: Source, name?: string) => this.attempt(() => this.work.open(source, name));
  resume = (session: string) => this.attempt(() => this.work.resume(session));

  private async attempt(act: () => Promise<void>): Promise<void> {
    hideProblem();
    try {
      await act();
    } catch (error) {
      showProblem(error);
      this.opener.recent(); // what was asked for may be gone
    }
    if (!this.state) this.welcome(true);
  }

  save(kind: FileKind): void {
    const { id } = this.state!;
    void this.engine.file(id, kind).then((file) => this.hand(file, FILES[kind]), showProblem);
  }

  screenshot = () => {
    this.viewer.drawNow();
    const { width, height } = this.canvas;
    const picture = Object.assign(document.createElement("canvas"), { width, height });
    const pen = picture.getContext("2d")!;
    for (const layer of [this.gl, this.canvas]) pen.drawImage(layer, 0, 0, width, height);
    picture.toBlob((file) => file && this.hand(file, "view.png"));
  };

  // A file for the user, named after the scan.
  private hand(file: Blob, name: string): void {
    const stem = this.state!.name.replace(SUFFIX, "").replaceAll(/[^\w-]+/g, "_") || "scan";
    save(file, `${stem}_${name}`);
    say(`${name} saved`);
  }

  help = () => element<HTMLDialogElement>("help").showModal();

  welcome(shown: boolean): void {
    element("welcome").hidden = !shown;
    element("back").hidden = !this.state;
    if (shown) {
      this.opener.recent();
      element("open-files").focus();
    } else this.canvas.focus();
    this.redraw();
  }

  changed(plane = this.plane): void {
    this.plane = plane;
    this.panel.tool(this.prompter, this.ruler.lines.length);
    this.redraw();
  }

  /** The cursor was moved by keys: what they draw follows it. */
  cursorMoved(): void {
    this.prompter.follow(this.viewer.cursor);
    this.ruler.follow(this.viewer.cursor);
    this.changed();
  }

  private relaid(layout: Layout): void {
    this.overlay.forget();
    if (layout !== "all" && layout !== "render") this.plane = layout;
  }

  // What has happened to the work

  async scan(data: ArrayBuffer, state: State): Promise<void> {
    const { affine, spacing_mm } = state;
    await this.viewer.open({ data, affine, spacing_mm }, (lowest) => {
      const isCT = state.modality ? state.modality === "CT" : lowest < AIR_HU; // NIfTI does not say
      this.panel.modality(isCT);
      return (isCT && this.info!.presets[0]) || null;
    });
    this.overlay.forget();
    this.strokes.forget();
    this.ruler.clear();
    this.prompter.cancel();
    this.panel.view(this.view);
    writeAddress(state.id);
    showScan(state);
    this.welcome(false);
  }

  showState(state: State | null): void {
    element("panel").hidden = element("another").hidden = !state;
    if (state) this.panel.state(state);
    this.redraw();
  }

  clear = () => this.viewer.clearLabels();
  labels = (box: Box, values: Uint8Array) => this.viewer.paste(reorder(this.viewer.orientation, box, values));

  result(result: StepResult): void {
    showResult(result);
    hideProblem();
    markAnswered();
  }

  busy = showBusy;
  connection = showConnection;
  failed = showProblem;

  private redraw(): void {
    const state = this.state;
    this.overlay.draw({
      objects: (state?.objects ?? []).map(({ number, prompts }) => ({ number, prompts: this.strokes.complete(number, prompts) })),
      current: state?.current ?? 1,
      sent: this.sent,
      draft: this.prompter.draft,
      lines: this.ruler.draft ? [...this.ruler.lines, this.ruler.draft] : this.ruler.lines,
      affine: state?.affine ?? [],
      plane: this.plane,
      focused: document.activeElement === this.canvas,
    });
    this.sliders.draw(this.viewer.isOpen && state !== null && element("welcome").hidden === true);
    element("readout").textContent = state && this.viewer.isOpen ? describeVoxel(this.viewer, state) : "";
  }
}
