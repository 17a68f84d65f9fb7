// The page: its parts are made here and told of each other.
import { Api, ApiError } from "./api";
import { commandsOf } from "./commands";
import { PLANES, type Plane } from "./geometry";
import { describe, obey } from "./keys";
import { reorder } from "./labels";
import { askForKey, followAddress, readAddress, writeAddress } from "./address";
import { Opener } from "./open";
import { Overlay } from "./overlay";
import { element, hideProblem, millilitres, millimetres, save, say, seconds, showProblem } from "./page";
import { Panel } from "./panel";
import { bindPointer } from "./pointer";
import { Prompter } from "./prompts";
import { Strokes } from "./strokes";
import { describeVoxel } from "./readout";
import type { Layout } from "./tiles";
import type { Answer, Box, Busy, Info, Prompt, State } from "./types";
import { Viewer } from "./viewer";
import { Work, type Connection } from "./work";

const DOWNLOADS = {
  nifti: ["mask.nii.gz", "mask.nii.gz"],
  seg: ["mask.seg.dcm", "seg.dcm"],
  report: ["report.html", "report.html"],
  json: ["report.json", "report.json"],
} as const;
const FIRST_OPACITY = 0.4;
const [BACK, BACK_MS] = ["Connected again; your work is back", 8000];
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
  readonly api: Api;
  readonly work: Work;
  info: Info | null = null;
  plane: Plane = "axial";
  share = FIRST_OPACITY;
  private shown = FIRST_OPACITY;
  private readonly strokes = new Strokes();

  constructor(key: string | null) {
    this.api = new Api("", key, askForKey);
    this.work = new Work(this.api, this);
  }

  async start(session: string | null, demo: boolean): Promise<void> {
    this.bind();
    await this.viewer.attach();
    this.opacity(this.share);
    this.info = await this.api.info();
    this.panel.model(this.info);
    this.panel.tool(this.prompter);
    const open = async (source: Parameters<Work["open"]>[0], title?: string) => {
      hideProblem();
      await this.work.open(source, title);
    };
    new Opener(this.api, open, (stage, share) => this.busy(stage ? { stage, share: share ?? null } : null), showProblem).bind(this.info);
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
    performance.clearMarks("voxsam:asked");
    performance.mark("voxsam:asked");
    this.strokes.sent(this.work.state.current, prompt);
    void this.work.prompt(prompt);
  }

  select = (number: number) => void this.work.select(number);
  newObject = () => void this.work.newObject();
  undo = () => void this.work.undo();
  redo = () => void this.work.redo();
  reset = () => void this.work.reset();

  window(low: number, high: number): void {
    this.viewer.window = { low, high };
    this.panel.window(low, high);
  }

  autoWindow(): void {
    const { low, high } = this.viewer.ownWindow;
    this.window(low, high);
  }

  opacity(share: number): void {
    this.share = share;
    if (share > 0) this.shown = share;
    this.viewer.opacity = share;
    this.panel.opacity(share);
  }

  toggleMask = () => this.opacity(this.share > 0 ? 0 : this.shown);

  layout(layout: Layout): void {
    this.viewer.layout = layout;
    if (PLANES.includes(layout as Plane)) this.plane = layout as Plane;
    this.overlay.forget();
    this.panel.layout(layout);
    this.viewer.draw(true);
  }

  async save(what: keyof typeof DOWNLOADS): Promise<void> {
    const [file, ending] = DOWNLOADS[what];
    const { id, name } = this.work.state!;
    try {
      const stem = name.replace(/(\.nii)?(\.gz)?$|\.(nrrd|mha|mhd|zip|dcm)$/i, "").replaceAll(/[^\w.-]+/g, "_");
      save(await this.api.download(id, file), `${stem || "scan"}-${ending}`);
      say(`${file} saved`);
    } catch (error) {
      showProblem(error);
    }
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
    const size = `${state.shape.join(" × ")} voxels of ${state.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm`;
    const name = Object.assign(document.createElement("strong"), { textContent: state.name });
    element("scan").replaceChildren(name, ` · ${[state.modality, size].filter(Boolean).join(" · ")}`);
    this.welcome(false);
  }

  state(state: State | null): void {
    element("panel").hidden = element("another").hidden = !state;
    if (state) this.panel.state(state);
    this.redraw();
  }

  clear(): void {
    this.viewer.clearLabels();
  }

  labels(box: Box, values: Uint8Array): void {
    this.viewer.paste(reorder(this.viewer.orientation, box, values));
  }

  result(answer: Answer): void {
    const object = answer.objects.find(({ number }) => number === answer.current);
    if (!object) return;
    const time = seconds(answer.seconds);
    element("took").textContent = `Answered in ${time}.`;
    const diameter = `longest diameter ${millimetres(object.longest_diameter_mm)}`;
    say(`Object ${object.number}: ${millilitres(object.volume_ml)}, ${diameter}, in ${time}. ${object.messages.join(". ")}`);
    hideProblem();
    if (!performance.getEntriesByName("voxsam:asked").length) return;
    requestAnimationFrame(() => {
      performance.measure("voxsam:click", "voxsam:asked");
      performance.clearMarks("voxsam:asked");
    });
  }

  busy(busy: Busy | null): void {
    element("busy").hidden = !busy;
    if (!busy) return;
    element("busy-stage").textContent = busy.stage;
    const bar = element<HTMLProgressElement>("busy-share");
    if (busy.share === null) bar.removeAttribute("value");
    else bar.value = busy.share;
  }

  connection(connection: Connection): void {
    const place = element("connection");
    const isBack = place.classList.contains("lost") && connection === "connected";
    place.classList.toggle("lost", connection === "lost");
    const text = { lost: "Connection lost; trying again …", asleep: "Asleep after a long rest; your next step goes on", connected: "", none: "" };
    place.textContent = isBack ? BACK : text[connection];
    if (isBack) setTimeout(() => (place.textContent = place.textContent === BACK ? "" : place.textContent), BACK_MS);
  }

  failed(error: unknown): void {
    showProblem(error);
  }

  private redraw(): void {
    const { state } = this.work;
    this.overlay.draw({
      objects: (state?.objects ?? []).map(({ number, prompts }) => ({ number, prompts: this.strokes.complete(number, prompts) })),
      current: state?.current ?? 1,
      draft: this.prompter.draft,
      plane: this.plane,
      focused: document.activeElement === this.canvas,
    });
    element("readout").textContent = state && this.viewer.isOpen ? describeVoxel(this.viewer, state) : "";
  }
}

async function main(): Promise<void> {
  const { session, key, demo } = readAddress();
  followAddress();
  const page = new Page(key);
  Object.assign(window, { voxsam: page }); // for tests, and for the curious
  try {
    await page.start(session, demo);
  } catch (error) {
    page.busy(null);
    showProblem(error);
    if (error instanceof ApiError && session && page.info) {
      writeAddress(null);
      page.welcome(true);
    }
  }
}

void main();
