// The page as a whole: its parts are made here and told of each other; what the user does, what the work tells.
import { askForKey, writeAddress } from "./address";
import { Api } from "./api";
import { commandsOf } from "./commands";
import { element } from "./dom";
import { download, type Download } from "./downloads";
import type { Plane } from "./geometry";
import { describe, obey } from "./keys";
import { reorder } from "./labels";
import { Opener } from "./open";
import { Overlay } from "./overlay";
import { Panel } from "./panel";
import { bindPointer } from "./pointer";
import { Prompter } from "./prompts";
import { describeVoxel } from "./readout";
import { Strokes } from "./strokes";
import { hideProblem, say, showBusy, showConnection, showProblem, showResult, showScan } from "./tell";
import type { Layout } from "./tiles";
import { markAnswered, markAsked } from "./timing";
import type { Answer, Box, Info, Prompt, State } from "./types";
import { View } from "./view";
import { Viewer } from "./viewer";
import { Work } from "./work";

const AIR_HU = -500; // below it only a CT goes

export class Page {
  readonly canvas = element<HTMLCanvasElement>("planes");
  readonly viewer = new Viewer(element<HTMLCanvasElement>("gl"));
  readonly overlay = new Overlay(this.canvas, this.viewer);
  readonly prompter = new Prompter(
    () => ({ ...this.viewer.orientation, spacing: this.work.state!.spacing_mm }),
    (what) => this.info?.model.prompts[what] !== false,
  );
  readonly panel = new Panel(this);
  readonly view = new View(this.viewer, this.panel, (layout) => this.relaid(layout));
  readonly api: Api;
  readonly work: Work;
  info: Info | null = null;
  plane: Plane = "axial";
  private readonly strokes = new Strokes();
  private readonly sent: Prompt[] = []; // and not answered

  constructor(key: string | null) {
    this.api = new Api("", key, askForKey);
    this.work = new Work(this.api, this);
  }

  async start(session: string | null, demo: boolean): Promise<void> {
    this.bind();
    await this.viewer.attach();
    this.view.opacity(this.view.share);
    this.info = await this.api.info();
    this.panel.model(this.info);
    this.panel.tool(this.prompter);
    const open = async (source: Parameters<Work["open"]>[0], title?: string) => {
      hideProblem();
      await this.work.open(source, title);
    };
    new Opener(this.api, open, (stage, share) => this.busy(stage ? { stage, fraction: share ?? null } : null), showProblem).bind(this.info);
    if (session) await this.work.resume(session);
    else if (demo && this.info.demo) await this.work.open({ demo: true });
    else this.welcome(true);
  }

  private bind(): void {
    this.viewer.onDraw = () => this.redraw();
    this.viewer.onRender = (tile) => this.overlay.keep(element<HTMLCanvasElement>("gl"), tile);
    bindPointer(this.canvas, this.viewer, this.prompter, (prompt) => this.send(prompt), (plane) => this.changed(plane));
    for (const name of ["focus", "blur"]) this.canvas.addEventListener(name, () => this.redraw());
    const commands = commandsOf(this);
    obey(commands, this.canvas);
    describe(commands, element("help-keys"));
    element("show-help").addEventListener("click", () => this.help());
    element("problem-close").addEventListener("click", hideProblem);
    element("another").addEventListener("click", () => this.welcome(true));
    element("back").addEventListener("click", () => this.welcome(false));
  }

  // What the user does (also the panel's actions)

  tool(tool: Prompter["tool"]): void {
    if (!this.prompter.choose(tool)) say(`The model ${this.info?.model.name} does not take this tool.`);
    this.canvas.dataset.tool = this.prompter.tool;
    this.changed();
  }

  sign(positive: boolean): void {
    this.prompter.positive = positive;
    this.changed();
  }

  accept(): void {
    const prompt = this.prompter.accept();
    if (prompt) this.send(prompt);
    this.changed();
  }

  cancel(): void {
    this.prompter.cancel();
    hideProblem();
    this.changed();
  }

  send(prompt: Prompt): void {
    if (!this.work.state) return;
    markAsked();
    this.sent.push(prompt);
    this.strokes.sent(this.work.state.current, prompt);
    void this.work.prompt(prompt).finally(() => {
      this.sent.shift();
      this.redraw();
    });
    this.redraw();
  }

  select = (number: number) => void this.work.select(number);
  newObject = () => void this.work.newObject();
  undo = () => void this.work.undo();
  redo = () => void this.work.redo();
  reset = () => void this.work.reset();

  save(what: Download): void {
    void download(this.api, this.work.state!, what);
  }

  help = () => element<HTMLDialogElement>("help").showModal();

  welcome(shown: boolean): void {
    element("welcome").hidden = !shown;
    element("back").hidden = !this.work.state;
    if (shown) element("open-files").focus();
    else this.canvas.focus();
  }

  changed(plane = this.plane): void {
    this.plane = plane;
    this.panel.tool(this.prompter);
    this.redraw();
  }

  private relaid(layout: Layout): void {
    this.overlay.forget();
    if (layout !== "all" && layout !== "render") this.plane = layout;
  }

  // What the work tells

  async scan(scan: ArrayBuffer, state: State): Promise<void> {
    await this.viewer.open(scan, (lowest) => {
      const isCT = state.modality ? state.modality === "CT" : lowest < AIR_HU; // NIfTI does not tell
      this.panel.modality(isCT);
      return (isCT && this.info!.presets[0]) || null;
    });
    this.overlay.forget();
    this.strokes.forget();
    this.prompter.cancel();
    const { low, high } = this.viewer.window;
    this.panel.window(low, high);
    this.panel.layout(this.viewer.layout);
    writeAddress(state.id);
    showScan(state);
    this.welcome(false);
  }

  state(state: State | null): void {
    element("panel").hidden = element("another").hidden = !state;
    if (state) this.panel.state(state);
    this.redraw();
  }

  clear = () => this.viewer.clearLabels();
  labels = (box: Box, values: Uint8Array) => this.viewer.paste(reorder(this.viewer.orientation, box, values));

  result(answer: Answer): void {
    showResult(answer);
    hideProblem();
    markAnswered();
  }

  busy = showBusy;
  connection = showConnection;
  failed = showProblem;

  private redraw(): void {
    const { state } = this.work;
    this.overlay.draw({
      objects: (state?.objects ?? []).map(({ number, prompts }) => ({ number, prompts: this.strokes.complete(number, prompts) })),
      current: state?.current ?? 1,
      sent: this.sent,
      draft: this.prompter.draft,
      plane: this.plane,
      focused: document.activeElement === this.canvas,
    });
    element("readout").textContent = state && this.viewer.isOpen ? describeVoxel(this.viewer, state) : "";
  }
}
