// What a project has learned: the learning run, the offered model, all models, clicks per scan; two readers compared.
import type { Agreement, Learning, LearnedModel, Project, ProjectState } from "../engine/project";
import { button, element, fill } from "./dom";
import { say, showProblem } from "./messages";
import { millilitres, plural, sentence, when } from "./words";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, EDGE] = [300, 90, 18]; // of the curve, in its own units
const MAX_PLACES = 3; // listed for a scan, of those where two readers differ

export class LearningCard {
  private drawn = "";
  private readers = "";

  constructor(
    private readonly project: Project,
    private readonly changed: (state: ProjectState) => void,
  ) {
    const bind = (id: string, act: () => Promise<ProjectState>) => element(id).addEventListener("click", () => this.run(act));
    bind("learn", () => project.learn());
    bind("learn-stop", () => project.stop());
    bind("model-back", () => project.back());
    const every = element<HTMLInputElement>("learn-every");
    every.addEventListener("change", () => this.run(() => project.learnEvery(Math.max(0, Math.round(every.valueAsNumber) || 0))));
    element("compare").addEventListener("click", () => void this.compare());
  }

  private run(act: () => Promise<ProjectState>): void {
    act().then(this.changed, showProblem);
  }

  show(state: ProjectState): void {
    const { learning } = state;
    this.showLearning(learning, state);
    const offered = state.models.find(({ name }) => name === state.offered);
    const made = JSON.stringify([state.models, state.in_use, state.offered, state.can_go_back, state.curve, state.minutes_saved]);
    if (made === this.drawn) return;
    this.drawn = made;
    element("offer").hidden = !offered;
    if (offered) {
      const text = `${offered.gate}: use it?`;
      element("offer-text").textContent = text;
      element("offer-use").onclick = () => this.run(() => this.project.use(offered.name));
      say(text);
    }
    element("in-use").textContent = state.in_use;
    element("model-back").hidden = !state.can_go_back;
    this.showModels(state);
    element("curve").replaceChildren(...(state.curve.length ? [curve(state.curve)] : []));
    element("curve-text").textContent = summary(state);
    this.showReaders(state);
  }

  private showLearning(learning: Learning, { rows }: ProjectState): void {
    const runs = ["beginning", "running", "paused"].includes(learning.stage);
    const [learn, every] = [element<HTMLButtonElement>("learn"), element<HTMLInputElement>("learn-every")];
    const done = rows.filter(({ state }) => state === "done").length;
    learn.hidden = runs;
    learn.disabled = !!learning.impossible;
    learn.textContent = learning.stage === "cut off" ? "Go on learning" : `Learn from ${plural(done, "scan")}`;
    element("learn-stop").hidden = !runs && learning.stage !== "cut off";
    const bar = element<HTMLProgressElement>("learn-fraction");
    bar.hidden = !runs;
    if (learning.fraction > 0) bar.value = learning.fraction;
    else bar.removeAttribute("value");
    element("learn-text").textContent = inWords(learning);
    if (document.activeElement !== every) every.value = `${learning.every}`;
  }

  private showModels({ models, in_use, start }: ProjectState): void {
    const row = (name: string, text: string, usable: boolean) => {
      const item = fill("li", "");
      item.append(fill("strong", name), fill("small", text));
      if (name === in_use) item.append(fill("em", "in use"));
      else if (usable) {
        const use = button("Use", () => this.run(() => this.project.use(name)));
        use.setAttribute("aria-label", `Use ${name}`);
        item.append(use);
      }
      return item;
    };
    const told = ({ state, reason, gate, made }: LearnedModel) =>
      state === "retired" ? reason : `${gate}${state === "refused" ? ": no better, not kept" : ""}, ${when(Date.parse(made), Date.now())}`;
    const learned = [...models].reverse().map((model) => row(model.name, told(model), model.state === "offered"));
    element("models").replaceChildren(...learned, row(start, "the start: every learning begins with it", true));
  }

  private showReaders({ rows }: ProjectState): void {
    const readers = [...new Set(rows.flatMap((row) => row.readers))].sort();
    element("readers").hidden = readers.length < 2;
    if (readers.join("\n") === this.readers) return;
    this.readers = readers.join("\n");
    for (const [n, id] of ["first-reader", "second-reader"].entries()) {
      const select = element<HTMLSelectElement>(id);
      select.replaceChildren(...readers.map((name) => new Option(name, name)));
      select.selectedIndex = Math.min(n, readers.length - 1);
    }
  }

  private async compare(): Promise<void> {
    const [first, second] = ["first-reader", "second-reader"].map((id) => element<HTMLSelectElement>(id).value) as [string, string];
    try {
      const found = await this.project.compare(first, second);
      element("agreement").replaceChildren(...found.map((one) => agreement(one, [first, second])));
      const mean = found.reduce((sum, { dice }) => sum + dice, 0) / found.length;
      say(`Mean Dice of ${plural(found.length, "scan")}: ${mean.toFixed(3)}`);
    } catch (error) {
      showProblem(error);
    }
  }
}

/** The state of a learning run, or before one how long it will take. */
export function inWords({ stage, fraction, minutes, said, failed, impossible, every, new: fresh }: Learning): string {
  const about = `${Math.max(1, Math.round(minutes))} min`;
  if (stage === "beginning") return `Learning begins; it takes at most ${about}.`;
  if (stage === "running") return `Learning: about ${Math.max(1, Math.round(minutes * (1 - fraction)))} of ${about} left. ${sentence(said)}`.trim();
  if (stage === "paused") return "Learning waits while somebody clicks, and goes on ten seconds later.";
  if (stage === "cut off") return "A learning was cut off; what it has done is kept.";
  if (failed) return `Learning ended: ${said}`;
  const time = `Learning takes at most ${about} at the lowest priority, and waits while somebody clicks.`;
  if (impossible) return `${sentence(impossible)}. ${time}`;
  return every ? `${time} It begins by itself after ${plural(Math.max(0, every - fresh), "more scan")}.` : time;
}

function summary({ curve: points, minutes_saved }: ProjectState): string {
  if (!points.length) return "Clicks per scan are shown here once a scan is done.";
  const mean = (some: ProjectState["curve"]) => some.reduce((sum, [, clicks]) => sum + clicks, 0) / some.length;
  const [first, last] = [points.slice(0, 5), points.slice(-5)];
  const clicks = `Clicks per scan: ${mean(first).toFixed(1)} on the first ${first.length}, ${mean(last).toFixed(1)} on the last ${last.length}.`;
  return minutes_saved === null ? clicks : `${clicks} Minutes saved: ${Math.round(minutes_saved)}.`;
}

/** Clicks per scan as a line, in the order in which the scans were finished. */
function curve(points: ProjectState["curve"]): SVGElement {
  const most = Math.max(1, ...points.map(([, clicks]) => clicks));
  const x = (n: number) => EDGE + ((WIDTH - EDGE - 8) * n) / Math.max(1, points.length - 1);
  const y = (clicks: number) => HEIGHT - EDGE - ((HEIGHT - EDGE - 8) * clicks) / most;
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Clicks of ${points.length} scans, from the first on: ${points.map(([, clicks]) => clicks).join(", ")}` });
  for (const level of [0, most]) {
    svg.append(drawn("line", { x1: EDGE, x2: WIDTH - 8, y1: y(level), y2: y(level), class: "level" }));
    const number = drawn("text", { x: EDGE - 5, y: y(level) + 4, "text-anchor": "end" });
    number.textContent = `${level}`;
    svg.append(number);
  }
  svg.append(drawn("polyline", { points: points.map(([, clicks], n) => `${x(n)},${y(clicks)}`).join(" ") }));
  for (const [n, [name, clicks]] of points.entries()) {
    const dot = drawn("circle", { cx: x(n), cy: y(clicks), r: 3 });
    const title = drawn("title", {});
    title.textContent = `${name}: ${plural(clicks, "click")}`;
    dot.append(title);
    svg.append(dot);
  }
  const axis = drawn("text", { x: WIDTH - 8, y: HEIGHT - 3, "text-anchor": "end" });
  axis.textContent = "scans, in the order of their end";
  svg.append(axis);
  return svg;
}

function drawn(kind: string, facts: Record<string, string | number>): SVGElement {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(facts)) made.setAttribute(name, `${value}`);
  return made;
}

function agreement({ case: name, dice, volumes_ml, differences }: Agreement, readers: [string, string]): HTMLElement {
  const item = fill("li", "");
  const volumes = readers.map((reader, n) => `${reader} ${millilitres(volumes_ml[n]!)}`).join(", ");
  item.append(fill("strong", `${name}: Dice ${dice.toFixed(3)}`), fill("small", volumes));
  for (const { reader, volume_ml, index } of differences.slice(0, MAX_PLACES)) {
    item.append(fill("small", `${millilitres(volume_ml)} of ${reader} alone, about voxel ${index.join(", ")}`));
  }
  if (differences.length > MAX_PLACES) item.append(fill("small", `and ${differences.length - MAX_PLACES} more places`));
  return item;
}
