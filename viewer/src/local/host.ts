// The engine's far end, in a worker: it opens sessions, takes their steps, saves each of them, and restores sessions.
import { type Box, EngineError, type FileKind, type Info, type Loading, type NamedFile, type Notice, type Slice, type Source, type State, type Step, type StepResult, type VoxelType } from "../engine/engine";
import { isEmpty } from "../stage/geometry";
import { NOWHERE } from "./boxes";
import { Handed } from "./calls";
import { Grid } from "./grid";
import { objectsOn } from "./masks";
import { refusal } from "./refusal";
import { type Segmenter, Session, type SessionStep } from "./session";
import type { KeptStep, Store, Work } from "./store";
import type { readLabels, readScan } from "./read";
import type { Volume } from "./volume";
import type { ReportFacts, writeFile, WrittenObject } from "./write";

const CHUNK_BYTES = 16 * 2 ** 20; // of slices that are sent to the page together
const NOT_SAVED = "the work could not be kept in this browser: it would not outlive this tab";

/** What the host segments, reads, writes and keeps with. */
export interface Tools {
  info: Info;
  /** A segmenter for a scan; `progress` is called with what it is doing. */
  segmenter(scan: Volume, progress: Loading["progress"]): Promise<Segmenter>;
  demo(): Promise<NamedFile[]>; // a scan for users without one
  read: typeof readScan;
  readLabels: typeof readLabels;
  write: typeof writeFile;
  store: Store | null;
  /** Let only one tab at a time work on a session. */
  locks: Pick<LockManager, "request"> | null;
}

/** An open session: the scan, and what was made of it. */
interface Open {
  work: Work;
  scan: Volume;
  session: Session;
  revision: number;
  seconds: number; // of all steps
  notes: string[];
  isKept: boolean; // it can be restored, except for what is unsaved
  unsaved: KeptStep[];
}

/** How the voxels of a scan are sent to the page: as int16 if that holds them, otherwise as float32. */
export interface VoxelFacts {
  type: VoxelType;
  coarse: number; // slices that come first, spread over the scan
}

export class Host {
  private open: Open | null = null;
  private queue: Promise<unknown> = Promise.resolve();

  /** `tell` is called with what happens to a session, for the page and for other tabs. */
  constructor(
    private readonly tools: Tools,
    private readonly tell: (id: string, notice: Notice) => void,
  ) {}

  /** What the page may ask for. */
  readonly handlers = {
    info: async (_: Loading) => this.tools.info,
    open: (loading: Loading, id: string, source: Source, name?: string) => this.inTurn(id, () => this.begin(loading, id, source, name)),
    state: (loading: Loading, id: string) => this.inTurn(id, async () => this.stateOf(await this.current(id, loading))),
    labels: (loading: Loading, id: string) => this.inTurn(id, async () => {
      const open = await this.current(id, loading);
      return this.result(open, open.session.extent, 0);
    }),
    step: (loading: Loading, id: string, step: Step) => this.inTurn(id, () => this.step(loading, id, step)),
    voxels: async (loading: Loading, id: string) => voxelFacts((await this.current(id, loading)).scan),
    slices: async (loading: Loading, id: string, from: number) => slicesOf((await this.current(id, loading)).scan, from),
    file: (loading: Loading, id: string, kind: FileKind) => this.inTurn(id, async () => this.file(await this.current(id, loading), kind)),
    forget: (_: Loading, id: string) => this.inTurn(id, async () => {
      if (this.open?.work.id === id) this.open = null;
      await this.tools.store?.forget(id);
    }),
  };

  // One action at a time, across all tabs.
  private inTurn<T>(id: string, act: () => Promise<T>): Promise<T> {
    const { locks } = this.tools;
    const done = this.queue.then(() => (locks ? (locks.request(`voxsam-${id}`, act) as Promise<T>) : act()));
    this.queue = done.catch(() => {});
    return done;
  }

  private async begin(loading: Loading, id: string, source: Source, name?: string): Promise<State> {
    const { files, series = "" } = "demo" in source ? { files: await this.tools.demo() } : "files" in source ? source : {};
    if (!files) throw refusal("a scan of a server", "files on this computer", "drop them on the page");
    const scan = await this.read(files, series, loading);
    const work: Work = { id, name: name || scan.name, files, series, model: this.model, created: Date.now() };
    const session = await this.sessionOn(scan, id, loading);
    loading.signal.throwIfAborted();
    this.open = { work, scan, session, revision: 0, seconds: 0, notes: [...scan.remarks], isKept: false, unsaved: [] };
    await this.save(this.open);
    return this.stateOf(this.open);
  }

  private get model(): string {
    return this.tools.info.model.name;
  }

  private async read(files: Work["files"], series: string, { progress, signal }: Loading): Promise<Volume> {
    progress("Reading the scan", null);
    if (this.open?.isKept && !this.open.unsaved.length) this.open = null; // its memory is needed; it is restored on demand
    const scan = await this.tools.read(files, series, (fraction) => progress("Reading the scan", fraction));
    signal.throwIfAborted();
    return scan;
  }

  private async sessionOn(scan: Volume, id: string, { progress }: Loading): Promise<Session> {
    progress("Loading the model", null);
    const busy = (stage: string, fraction: number | null) => this.tell(id, { kind: "progress", busy: { stage, fraction } });
    const segmenter = await this.tools.segmenter(scan, busy);
    return new Session(scan, segmenter, { keepClicked: this.tools.info.model.prompts["negative"] === true });
  }

  /** The session, restored if another one was open, with the steps that other tabs have taken. */
  private async current(id: string, loading: Loading): Promise<Open> {
    const open = this.open?.work.id === id ? this.open : await this.bringBack(id, loading);
    if (!open.unsaved.length) await this.replay(open, (await this.tools.store?.stepsAfter(id, open.revision)) ?? []);
    return open;
  }

  private async bringBack(id: string, loading: Loading): Promise<Open> {
    const work = await this.tools.store?.find(id);
    if (!work) throw refusal("a session that is not kept in this browser", "one of those listed", "open the scan again");
    const scan = await this.read(work.files, work.series, loading);
    const notes = [...scan.remarks];
    if (work.model !== this.model) notes.push(`made with the model ${work.model}, computed again with ${this.model}`);
    const session = await this.sessionOn(scan, id, loading);
    const open: Open = { work, scan, session, revision: 0, seconds: 0, notes, isKept: true, unsaved: [] };
    const steps = (await this.tools.store?.stepsAfter(id, 0)) ?? [];
    for (const [n, step] of steps.entries()) {
      loading.signal.throwIfAborted();
      loading.progress("Bringing your work back", n / steps.length);
      await this.replay(open, [step]);
    }
    return (this.open = open);
  }

  private async replay(open: Open, steps: KeptStep[]): Promise<void> {
    for (const { step, found, revision, seconds } of steps) {
      await open.session.take(step, open.work.model === this.model ? found : null);
      open.revision = revision;
      open.seconds += seconds;
    }
  }

  private async step(loading: Loading, id: string, asked: Step): Promise<StepResult> {
    const open = await this.current(id, loading);
    const step = asked.kind === "mask" ? await this.masks(asked.source, open.scan) : asked;
    loading.signal.throwIfAborted();
    const start = performance.now();
    const isDone = await open.session.take(step);
    const seconds = (performance.now() - start) / 1000;
    if (isDone) {
      open.revision++;
      open.seconds += seconds;
      open.unsaved.push({ id, revision: open.revision, step, found: open.session.found(step), seconds });
      await this.save(open);
    }
    this.tell(id, { kind: "idle", revision: open.revision });
    return this.result(open, open.session.changed, seconds);
  }

  private async masks(source: Source, scan: Volume): Promise<SessionStep> {
    if (!("files" in source)) throw refusal("a mask of a server", "a file on this computer", "choose one");
    const mask = await this.tools.readLabels(source.files);
    return { kind: "masks", masks: objectsOn(mask, scan).map((region) => ({ name: "", region })), remarks: mask.remarks };
  }

  // A full store must not lose a step: that is noted, and saving is tried again with the next step.
  private async save(open: Open): Promise<void> {
    const { store } = this.tools;
    open.notes = open.notes.filter((note) => note !== NOT_SAVED);
    try {
      if (!store || (open.isKept && !(await store.find(open.work.id)))) throw new Error("nothing is kept here, or it was forgotten");
      if (!open.isKept) await store.begin(open.work);
      open.isKept = true;
      await store.add(open.unsaved);
      open.unsaved = [];
    } catch (error) {
      if (error instanceof DOMException && error.name === "ConstraintError") {
        this.open = null; // to be restored as the other tab has it
        const message = "another tab took a step in this session at the same time";
        throw new EngineError({ message, remedy: "do it again" }, false);
      }
      open.notes.push(NOT_SAVED);
    }
  }

  private stateOf({ work, scan, session, revision, notes }: Open): State {
    return {
      id: work.id,
      name: work.name,
      shape: scan.shape,
      spacing_mm: new Grid(scan.shape, scan.affine).spacing,
      affine: scan.affine,
      modality: scan.modality,
      dicom: scan.dicom !== null,
      revision,
      busy: null,
      notes,
      earlier: [],
      ...session.state(),
    };
  }

  private result(open: Open, changed: Box, seconds: number): StepResult {
    const box = isEmpty(changed) ? NOWHERE : changed;
    return { ...this.stateOf(open), seconds, changed: box, labels: open.session.labels(box) };
  }

  private file({ scan, session, seconds }: Open, kind: FileKind): Promise<Blob> {
    const objects = session.state().objects.map((object): WrittenObject => {
      const { number, name, colour, visible, locked, type, prompts, messages, edited, confidence, class_name } = object;
      const { region } = session.seen.objects.get(number)!;
      return { number, facts: { name, colour, visible, locked, type }, region, clicks: prompts, remarks: messages, edited, confidence, class_name, ...session.measurement(region) };
    });
    const facts: ReportFacts = { model: this.model, version: this.tools.info.version, seconds };
    return this.tools.write(kind, scan, objects, facts);
  }
}

function isInt16({ data, slope, intercept }: Volume): boolean {
  if (!Number.isInteger(slope) || !Number.isInteger(intercept)) return false;
  let [low, high] = [Infinity, -Infinity];
  for (const raw of data) {
    if (!Number.isInteger(raw)) return false;
    low = Math.min(low, raw);
    high = Math.max(high, raw);
  }
  const ends = [low * slope + intercept, high * slope + intercept];
  return Math.min(...ends) >= -32768 && Math.max(...ends) <= 32767;
}

// The page gets all slices first: it scrolls through its own copy while a click is computed.
function voxelFacts(scan: Volume): VoxelFacts {
  return { type: isInt16(scan) ? "int16" : "float32", coarse: scan.shape[2] };
}

// Some slices, in order, from slice `from` on.
function slicesOf(scan: Volume, from: number): Handed<Slice[]> {
  const { data, shape, slope, intercept } = scan;
  const area = shape[0] * shape[1];
  const Values = voxelFacts(scan).type === "int16" ? Int16Array : Float32Array;
  const count = Math.max(1, Math.floor(CHUNK_BYTES / (area * Values.BYTES_PER_ELEMENT)));
  const ks = Array.from({ length: Math.max(0, Math.min(count, shape[2] - from)) }, (_, n) => from + n);
  const slices = ks.map((k): Slice => {
    const values = new Values(area);
    for (let at = 0; at < area; at++) values[at] = data[k * area + at]! * slope + intercept;
    return { k, bytes: new Uint8Array(values.buffer) };
  });
  return new Handed(slices, slices.map(({ bytes }) => bytes.buffer as ArrayBuffer));
}
