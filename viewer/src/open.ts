// Ways to open a scan: dropped or chosen files and folders, folders of the server, the demo scan.
import type { Api } from "./api";
import { button, element } from "./dom";
import type { Entry, Info, Source } from "./types";
import { bytes } from "./words";

export interface Named {
  name: string;
  file: File;
}

const HIDDEN = /^\.|^(Thumbs\.db|DICOMDIR)$/i;

/** What to send of the files: neither hidden nor empty ones. The server tells formats, not the page. */
export function uploadList(files: Named[]): Named[] {
  return files.filter(({ name, file }) => !HIDDEN.test(name) && file.size > 0);
}

/** All files of what was dropped, folders included. */
export async function dropped(transfer: DataTransfer): Promise<{ title: string; files: Named[] }> {
  // Both must be taken at once: later the browser has forgotten what was dropped.
  const items = [...transfer.items].map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = await Promise.all(
    items.map((item) => (item instanceof File ? [{ name: item.name, file: item }] : item ? walk(item) : [])),
  );
  return { title: items[0]?.name ?? "scan", files: found.flat() };
}

async function walk(entry: FileSystemEntry): Promise<Named[]> {
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    return [{ name: file.name, file }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const found: Named[] = [];
  for (;;) {
    // A reader gives at most some hundred entries at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...(await Promise.all(some.map(walk))).flat());
  }
}

export class Opener {
  private running = false;

  constructor(
    private readonly api: Api,
    private readonly open: (source: Source, title?: string) => Promise<void>,
    private readonly busy: (stage: string | null, share?: number | null) => void,
    private readonly failed: (error: unknown) => void,
  ) {}

  /** Make the page's drop zone, buttons and lists of folders work. */
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
      if (event.dataTransfer) void this.take(dropped(event.dataTransfer));
    });
    for (const id of ["files", "folder"]) {
      const input = element<HTMLInputElement>(`choose-${id}`);
      element(`open-${id}`).addEventListener("click", () => input.click());
      input.addEventListener("change", () => {
        const files = [...(input.files ?? [])];
        const title = files[0]?.webkitRelativePath.split("/")[0] || files[0]?.name || "scan";
        void this.take(Promise.resolve({ title, files: files.map((file) => ({ name: file.name, file })) }));
        input.value = "";
      });
    }
    const demo = element("open-demo");
    demo.hidden = !info.demo;
    demo.addEventListener("click", () => void this.run(() => this.open({ demo: true })));
    const list = element("folders");
    list.replaceChildren(...info.folders.map(({ id, name }) => button(name, () => void this.browse(id, name, ""))));
    element("folders-block").hidden = !info.folders.length;
  }

  private async take(chosen: Promise<{ title: string; files: Named[] }>): Promise<void> {
    await this.run(async () => {
      const { title, files } = await chosen;
      const list = uploadList(files);
      if (!list.length) throw new Error("nothing to open was dropped: drop a scan, or a folder of a DICOM series");
      const many = list.length > 1 ? `${list.length} files` : title;
      const upload = await this.api.upload(list, (share) => this.busy(`Sending ${many}`, share));
      await this.open({ upload }, title);
    });
  }

  /** Show what is in a served folder. */
  async browse(folder: string, title: string, path: string): Promise<void> {
    await this.run(async () => {
      const { entries } = await this.api.files(folder, path);
      const dialog = element<HTMLDialogElement>("browse");
      element("browse-title").textContent = path ? `${title} / ${path.replaceAll("/", " / ")}` : title;
      const list = element("browse-list");
      list.replaceChildren();
      if (path) list.append(row("↑ Up", "", () => void this.browse(folder, title, path.split("/").slice(0, -1).join("/"))));
      for (const entry of entries) list.append(this.row(folder, title, entry));
      if (!entries.length) list.append("There are no scans in this folder.");
      if (!dialog.open) dialog.showModal();
      list.querySelector("button")?.focus();
    });
  }

  private row(folder: string, title: string, { name, kind, path, bytes: size }: Entry): HTMLElement {
    if (kind === "folder") return row(`${name}/`, "folder", () => void this.browse(folder, title, path));
    const detail = kind === "series" ? "DICOM series" : size ? bytes(size) : "";
    return row(name, detail, () => {
      element<HTMLDialogElement>("browse").close();
      void this.run(() => this.open({ folder, path }, name));
    });
  }

  // One after another: a second click while a scan is being opened does nothing.
  private async run(work: () => Promise<void>): Promise<void> {
    if (this.running) return;
    this.running = true;
    try {
      await work();
    } catch (error) {
      this.failed(error);
    } finally {
      this.running = false;
      this.busy(null);
    }
  }
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
