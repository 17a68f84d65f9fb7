// A project's work list: its scans, the state of each, and what can be done with it.
import type { CaseState, Project, ProjectState, Row } from "../engine/project";
import { button, element, fill } from "./dom";
import { LearningCard } from "./learning";
import { showProblem } from "./messages";
import { millilitres, plural, when } from "./words";

type Shown = "all" | CaseState;
const FILTERS: Shown[] = ["all", "to do", "in work", "done", "skipped"];

/** What the list asks of the page. */
export interface Asked {
  open(name: string): void;
  next(): void;
  show(state: ProjectState): void;
  back(): void;
}

export class WorkList {
  private readonly learning: LearningCard;
  private readonly pictures = new Map<string, string>(); // addresses, by scan and its state
  private readonly coming = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) void this.draw(target as HTMLImageElement);
  });
  private filter: Shown = "all";
  private drawn = ""; // the data that the list was made from

  constructor(
    private readonly project: Project,
    private readonly asked: Asked,
  ) {
    this.learning = new LearningCard(project, (state) => asked.show(state));
    element("project-next").addEventListener("click", () => asked.next());
    element("project-back").addEventListener("click", () => asked.back());
    for (const name of FILTERS) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "cases", value: name, checked: name === "all" });
      input.addEventListener("change", () => {
        this.filter = name;
        this.drawn = "";
        if (this.state) this.show(this.state, this.open);
      });
      label.append(input, document.createElement("span"));
      element("case-filters").append(label);
    }
  }

  private state: ProjectState | null = null;
  private open: string | null = null;

  /** `open` is the scan that is open now. */
  show(state: ProjectState, open: string | null): void {
    [this.state, this.open] = [state, open];
    element("project-title").textContent = state.name;
    element("case-order").textContent = `Next: ${state.order}`;
    [...element("case-filters").querySelectorAll("span")].forEach((text, n) => {
      const name = FILTERS[n]!;
      text.textContent = `${name === "all" ? "All" : name.charAt(0).toUpperCase() + name.slice(1)} ${name === "all" ? state.rows.length : (state.counts[name] ?? 0)}`;
    });
    const left = (state.counts["to do"] ?? 0) + (state.counts["in work"] ?? 0);
    element<HTMLButtonElement>("project-next").disabled = !left;
    this.learning.show(state);
    const rows = state.rows.filter((row) => this.filter === "all" || row.state === this.filter);
    const made = JSON.stringify([rows, open, state.models.map(({ name }) => name)]);
    if (made === this.drawn) return; // so that the focus stays where it is
    this.drawn = made;
    this.coming.disconnect();
    element("cases").replaceChildren(...rows.map((row) => this.row(row)));
    if (!rows.length) element("cases").append(fill("li", "No scan is here."));
  }

  private row(row: Row): HTMLElement {
    const picture = Object.assign(document.createElement("img"), { alt: "", width: 64, height: 64 });
    picture.dataset.case = row.name;
    picture.dataset.key = `${row.name} ${row.state} ${row.since}`;
    const known = this.pictures.get(picture.dataset.key);
    if (known) picture.src = known;
    else this.coming.observe(picture);
    const pick = button("", () => this.asked.open(row.name));
    pick.className = "pick";
    pick.append(picture, fill("strong", row.name), fill("small", described(row, Date.now())));
    if (row.name === this.open) pick.setAttribute("aria-current", "true");
    const item = document.createElement("li");
    item.dataset.state = row.state;
    item.append(pick);
    if (row.state === "in work" || row.state === "skipped") {
      item.append(named(button("Release", () => this.release(row)), `Release ${row.name}: put it back to do`));
    }
    item.append(named(button("Forget", () => this.forget(row)), `Forget ${row.name} …`));
    return item;
  }

  private async draw(picture: HTMLImageElement): Promise<void> {
    this.coming.unobserve(picture);
    const { case: name, key } = picture.dataset as { case: string; key: string };
    try {
      const address = URL.createObjectURL(await this.project.thumbnail(name));
      this.pictures.set(key, address);
      picture.src = address;
    } catch {
      // The scan can be worked on without its picture.
    }
  }

  private release({ name, reader, state }: Row): void {
    const lines = state === "in work" ? [`${reader} works on it now. What ${reader} has marked is not lost.`] : [];
    void this.confirmed(`Put ${name} back to do?`, lines, "Release", () => this.project.release(name));
  }

  private forget({ name, readers }: Row): void {
    const models = this.state!.models.filter(({ cases, state }) => state !== "retired" && cases.includes(name)).map((model) => model.name);
    const lines = [
      readers.length ? `Deleted for good: the masks and clicks of ${readers.join(", ")}, its picture, and the sessions on it.` : "Deleted for good: its picture, and the sessions on it.",
      models.length ? `Deleted as well, because they were trained on it: ${models.join(", ")}.` : "No model was trained on it.",
      "The scan's own file is not touched.",
    ];
    void this.confirmed(`Forget ${name}?`, lines, "Forget it", () => this.project.forget(name));
  }

  private async confirmed(title: string, lines: string[], yes: string, act: () => Promise<unknown>): Promise<void> {
    if (!(await confirm(title, lines, yes))) return;
    try {
      await act();
      this.asked.show(await this.project.state());
    } catch (error) {
      showProblem(error);
    }
  }
}

/** A scan's state in words. */
export function described({ state, reader, since, readers, clicks, volume_ml }: Row, now: number): string {
  const parts: string[] = [state];
  if (reader && state !== "to do") parts.push(readers.length > 1 ? readers.join(", ") : reader);
  if (since && state === "in work") parts.push(`since ${when(Date.parse(since), now)}`);
  if (clicks !== null) parts.push(plural(clicks, "click"));
  if (volume_ml !== null) parts.push(millilitres(volume_ml));
  return parts.join(" · ");
}

/** Ask for confirmation of what cannot be undone. */
function confirm(title: string, lines: string[], yes: string): Promise<boolean> {
  const dialog = element<HTMLDialogElement>("confirm");
  element("confirm-title").textContent = title;
  element("confirm-text").replaceChildren(...lines.map((line) => fill("p", line)));
  element("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => (dialog.onclose = () => resolve(dialog.returnValue === "yes")));
}

function named(made: HTMLButtonElement, label: string): HTMLButtonElement {
  made.setAttribute("aria-label", label);
  return made;
}
