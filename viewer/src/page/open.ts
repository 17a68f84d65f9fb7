// Ways to open a scan: the user's files and folders, the engine's folders, recent sessions, the demo scan.
import type { Engine, Entry, Info, NamedFile, Recent, Series, Source } from "../engine/engine";
import { button, element } from "./dom";
import { showProblem } from "./messages";
import { bytes, millilitres, when } from "./words";

const HIDDEN = /^\.|^(Thumbs\.db|DICOMDIR)$/i;

/** The files to send: all but hidden and empty ones. The engine knows the formats, not the page. */
export function uploadList(files: NamedFile[]): NamedFile[] {
  return files.filter(({ name, file }) => !HIDDEN.test(name) && file.size > 0);
}

/** All dropped files, with those in folders. */
export async function dropped(transfer: DataTransfer): Promise<{ title: string; files: NamedFile[] }> {
  // Entries and files must be taken at once: after the event the browser forgets what was dropped.
  const items = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = await Promise.all(
    items.map((item) => (item instanceof File ? [{ name: item.name, file: item }] : item ? walk(item) : [])),
  );
  return { title: items[0]?.name ?? "scan", files: found.flat() };
}

async function walk(entry: FileSystemEntry): Promise<NamedFile[]> {
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    return [{ name: file.name, file }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: NamedFile[] = [];
  for (;;) {
    // A reader returns at most about a hundred entries at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...(await Promise.all(some.map(walk))).flat());
  }
}

/** Opens a scan, or resumes a session, and reports problems itself. */
export interface Doors {
  open(source: Source, title?: string): Promise<void>;
  resume(session: string): Promise<void>;
}

export class Opener {
  constructor(
    private readonly engine: Engine,
    private readonly doors: Doors,
  ) {}

  /** Bind the page's drop zone, its buttons and the list of folders. */
  bind(info: Info): void {
    const stage = element("stage");
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      stage.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) stage.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      stage.classList.remove("dropping");
      if (event.dataTransfer) void dropped(event.dataTransfer).then(({ title, files }) => this.take(title, files), showProblem);
    });
    for (const id of ["files", "folder"]) {
      const input = element<HTMLInputElement>(`choose-${id}`);
      element(`open-${id}`).addEventListener("click", () => input.click());
      input.addEventListener("change", () => {
        const files = [...(input.files ?? [])];
        const title = files[0]?.webkitRelativePath.split("/")[0] || files[0]?.name || "scan";
        this.take(title, files.map((file) => ({ name: file.name, file })));
        input.value = "";
      });
    }
    const demo = element("open-demo");
    demo.hidden = !info.demo;
    demo.addEventListener("click", () => void this.doors.open({ demo: true }));
    element("elsewhere").hidden = !info.local;
    if (info.local) {
      const link = Object.assign(document.createElement("a"), { href: "./local/", textContent: "Segment in this browser only" });
      element("elsewhere").replaceChildren(link, ": nothing is sent, it takes a little longer.");
    }
    const list = element("folders");
    list.replaceChildren(...info.folders.map(({ id, name }) => button(name, () => void this.browse(id, name, ""))));
    element("folders-block").hidden = !info.folders.length;
  }

  /** List the sessions opened in this browser, with the work in each. */
  recent(): void {
    const sessions = this.engine.recent();
    element("recent-block").hidden = !sessions.length;
    element("recent").replaceChildren(...sessions.map((session) => this.session(session)));
  }

  private session({ id, name, used, objects, volume_ml }: Recent): HTMLElement {
    const work = objects ? `${objects} ${objects === 1 ? "object" : "objects"}, ${millilitres(volume_ml)}` : "nothing marked";
    const item = row(name, `${work} · ${when(used, Date.now())}`, () => void this.doors.resume(id));
    const forget = button("✕", () => {
      this.engine.forget(id);
      this.recent();
    });
    const { keepsWork } = this.engine;
    forget.setAttribute("aria-label", keepsWork ? `Delete ${name} from this browser` : `Leave ${name} out of this list`);
    forget.title = keepsWork ? "Delete the scan and the work from this browser" : "Leave out of this list";
    item.append(forget);
    return item;
  }

  /** Let the user choose one of several series that were found in `source`. */
  choose(source: Source, series: Series[], title?: string): void {
    const dialog = element<HTMLDialogElement>("choose-series");
    const open = ({ uid }: Series) => {
      dialog.close();
      void this.doors.open({ ...source, series: uid } as Source, title);
    };
    element("series").replaceChildren(...series.map((one) => row(one.description || "without a description", describeSeries(one), () => open(one))));
    dialog.showModal();
    element("series").querySelector("button")?.focus();
  }

  private take(title: string, files: NamedFile[]): void {
    const list = uploadList(files);
    if (list.length) void this.doors.open({ files: list }, title);
    else showProblem(new Error("nothing to open was dropped: drop a scan, or a folder of a DICOM series"));
  }

  /** Show the contents of one of the engine's folders. */
  async browse(folder: string, title: string, path: string): Promise<void> {
    let entries: Entry[];
    try {
      entries = await this.engine.entries(folder, path);
    } catch (error) {
      return showProblem(error);
    }
    const dialog = element<HTMLDialogElement>("browse");
    element("browse-title").textContent = path ? `${title} / ${path.replaceAll("/", " / ")}` : title;
    const list = element("browse-list");
    list.replaceChildren();
    if (path) list.append(row("↑ Up", "", () => void this.browse(folder, title, path.split("/").slice(0, -1).join("/"))));
    for (const entry of entries) list.append(this.entry(folder, title, entry));
    if (!entries.length) list.append("There are no scans in this folder.");
    if (!dialog.open) dialog.showModal();
    list.querySelector("button")?.focus();
  }

  private entry(folder: string, title: string, { name, kind, path, bytes: size }: Entry): HTMLElement {
    if (kind === "folder") return row(`${name}/`, "folder", () => void this.browse(folder, title, path));
    const detail = kind === "series" ? "DICOM series" : size ? bytes(size) : "";
    return row(name, detail, () => {
      element<HTMLDialogElement>("browse").close();
      void this.doors.open({ folder, path }, name);
    });
  }
}

/** A series in a few words: modality, number of images, shape, spacing. */
export function describeSeries({ modality, count, shape, spacing_mm, localizer }: Series): string {
  const size = shape?.map((n) => n ?? "?").join(" × ");
  const spacing = spacing_mm?.some((mm) => mm !== null) && `${spacing_mm.map((mm) => mm?.toFixed(1) ?? "?").join(" × ")} mm`;
  return [modality, `${count} ${count === 1 ? "image" : "images"}`, size, spacing, localizer && "localizer"].filter(Boolean).join(" · ");
}

function row(text: string, detail: string, act: () => void): HTMLElement {
  const made = button(text, act);
  const small = document.createElement("small");
  small.textContent = detail;
  made.append(small);
  const item = document.createElement("li");
  item.append(made);
  return item;
}
