// Working through a project by buttons and keys: finish, skip, open the next or previous scan; polls its state.
import type { Source, State } from "../engine/engine";
import type { Project, ProjectState } from "../engine/project";
import type { Command } from "../input/keys";
import { element } from "./dom";
import { say, showProblem } from "./messages";
import { ActiveTime } from "./timing";
import { millilitres, plural } from "./words";
import { WorkList } from "./worklist";

const POLL_MS = { list: 3000, scan: 15_000 }; // how often the project's state is fetched
const READER = "voxsam-reader"; // who works in this browser

/** What it needs of the page. */
export interface Desk {
  readonly state: State | null;
  open(source: Source, name: string): Promise<void>;
  /** Run what was collected, and wait for every answer. */
  settle(): Promise<void>;
  /** Close the scan and its session for good. */
  close(): void;
  front(shown: boolean): void;
}

export class ProjectWork {
  readonly list: WorkList;
  private readonly time = new ActiveTime();
  private acting = false;
  private last: string | null = null; // the scan requested last, even if it could not be opened
  private shown: ProjectState | null = null;

  constructor(
    private readonly project: Project,
    private readonly desk: Desk,
    private readonly store: Pick<Storage, "getItem" | "setItem"> | null,
  ) {
    this.list = new WorkList(project, {
      open: (name) => this.act((reader) => this.open(name, reader)),
      next: () => this.next(),
      show: (state) => this.show(state),
      back: () => this.desk.front(false),
    });
    const input = element<HTMLInputElement>("reader");
    input.value = store?.getItem(READER) ?? "";
    input.addEventListener("change", () => store?.setItem(READER, input.value.trim()));
    const bind = (id: string, act: () => void) => element(id).addEventListener("click", act);
    bind("case-done", () => this.done());
    bind("case-skip", () => this.skip());
    bind("case-back", () => this.back());
    bind("case-list", () => this.desk.front(true));
    element("case-list").hidden = false;
  }

  readonly commands: Command[] = [
    { keys: ["Shift+d"], shown: "Shift D", text: "done: keep it, and open the next scan", group: "Page", run: () => this.done() },
    { keys: ["Shift+s"], shown: "Shift S", text: "skip the scan, and open the next one", group: "Page", run: () => this.skip() },
    { keys: ["Shift+b"], shown: "Shift B", text: "back to the scan before", group: "Page", run: () => this.back() },
    { keys: ["Shift+w"], shown: "Shift W", text: "show the work list", group: "Page", run: () => this.desk.front(true) },
  ];

  /** Show the project's state, now and at regular intervals. */
  async start(): Promise<void> {
    this.show(await this.project.state());
    const again = () => setTimeout(look, element("project").hidden ? POLL_MS.scan : POLL_MS.list);
    const look = async () => {
      try {
        if (!document.hidden) this.show(await this.project.state());
      } catch {
        // Out of reach: the scan's own connection says so.
      }
      again();
    };
    again();
  }

  /** A scan was opened, or closed. */
  opened(state: State | null): void {
    element("case-bar").hidden = !state?.case;
    element("project-back").hidden = !state;
    if (state?.case) this.time.begin(state.id);
  }

  /** Bring the list up to date when it is shown. */
  refresh = () => void this.project.state().then((state) => this.show(state), showProblem);

  private show(state: ProjectState): void {
    this.shown = state;
    this.list.show(state, this.desk.state?.case ?? null);
    const model = state.models.find(({ name }) => name === state.offered);
    element("case-list").textContent = model ? "Work list: a new model" : "Work list";
  }

  next = () => this.act((reader) => this.openNext(reader, this.last));

  // The scan that the user sees.
  private get seen(): State | null {
    return element("project").hidden ? this.desk.state : null;
  }

  private done = () =>
    this.act(async (reader) => {
      const state = this.seen;
      if (!state?.case) return;
      await this.desk.settle();
      const kept = await this.project.done(state.id, this.time.seconds);
      const said = `${kept.case} is done: ${millilitres(kept.volume_ml)}, ${plural(kept.clicks, "click")}.`;
      this.desk.close();
      await this.openNext(reader, kept.case);
      say(said);
    });

  private skip = () =>
    this.act(async (reader) => {
      const name = this.seen?.case;
      if (!name) return;
      await this.project.skip(name, reader);
      this.desk.close();
      await this.openNext(reader, name);
    });

  private back = () =>
    this.act(async (reader) => {
      const name = await this.project.previous(reader, this.desk.state?.case ?? null);
      if (name === null) say("There is no scan before this one.");
      else await this.open(name, reader);
    });

  private async openNext(reader: string, after: string | null): Promise<void> {
    const name = await this.project.next(reader, after);
    if (name !== null) return this.open(name, reader);
    this.desk.front(true);
    say(this.shown?.rows.length ? "Nothing is left to do." : "The project has no scans.");
  }

  private open(name: string, reader: string): Promise<void> {
    this.last = name;
    return this.desk.open({ case: name, reader }, name);
  }

  // One action at a time, and only for a reader with a name.
  private async act(work: (reader: string) => Promise<void>): Promise<void> {
    const input = element<HTMLInputElement>("reader");
    const reader = input.value.trim();
    if (!reader) {
      this.desk.front(true);
      input.focus();
      return say("Who are you? Your name tells your masks from those of others.");
    }
    this.store?.setItem(READER, reader);
    if (this.acting) return;
    this.acting = true;
    try {
      await work(reader);
    } catch (error) {
      showProblem(error);
    } finally {
      this.acting = false;
      this.refresh();
    }
  }
}
