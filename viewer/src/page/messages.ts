// The page's messages: results, errors, progress and the connection; results also for screen readers.
import { EngineError, type Busy, type Problem, type State, type Step, type StepResult } from "../engine/engine";
import { element } from "./dom";
import { measures } from "./objects";
import type { Connection } from "./work";
import { millilitres, seconds, sentence } from "./words";

const [BACK, BACK_MS] = ["Connected again; your work is back", 8000];
const CONNECTIONS: Record<Connection, string> = {
  none: "",
  connected: "",
  lost: "Connection lost; trying again …",
  asleep: "Asleep after a long rest; your next step goes on",
};

/** Let screen readers read a text aloud; it replaces the previous one. */
export function say(text: string): void {
  element("live").textContent = text;
}

/** Show what went wrong until it is closed or something else goes wrong. */
export function showProblem(error: unknown): void {
  const { message, given, expected, remedy } = problemOf(error);
  element("problem-message").textContent = sentence(given || message); // the message joins all three in one line
  const details = element("problem-details");
  details.replaceChildren();
  for (const [name, text] of [["Expected", given && expected], ["What to do", remedy]] as const) {
    if (!text) continue;
    const row = document.createElement("p");
    const label = document.createElement("strong");
    label.textContent = `${name}: `;
    row.append(label, text);
    details.append(row);
  }
  element("problem").hidden = false;
}

export function hideProblem(): void {
  element("problem").hidden = true;
}

/** Show which scan is open. */
export function showScan(state: State): void {
  const size = `${state.shape.join(" × ")} voxels of ${state.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm`;
  const name = Object.assign(document.createElement("strong"), { textContent: state.name });
  element("scan").replaceChildren(name, ` · ${[state.modality, size].filter(Boolean).join(" · ")}`);
}

/** Report the current object and, if the network ran, how long it took. */
export function showResult(result: StepResult, { kind }: Step): void {
  const object = result.objects.find(({ number }) => number === result.current);
  if (!object) return;
  const time = seconds(result.seconds);
  element("took").textContent = kind === "prompt" || kind === "delete prompt" ? `Segmented in ${time}.` : "";
  const found = [millilitres(object.volume_ml), measures(object)].filter(Boolean).join(", ");
  say(`${object.name}: ${found}, in ${time}. ${object.messages.join(". ")}`);
}

/** Show what is being done, the fraction done if it is known, and a button if it can be cancelled. */
export function showBusy(busy: Busy | null, cancel?: () => void): void {
  element("busy").hidden = !busy;
  const stop = element<HTMLButtonElement>("busy-cancel");
  stop.hidden = !cancel;
  stop.onclick = cancel ? () => cancel() : null;
  if (!busy) return;
  element("busy-stage").textContent = sentence(busy.stage);
  const known = busy.fraction !== null;
  element("busy-percent").textContent = known ? `${Math.round(busy.fraction! * 100)} %` : "";
  const bar = element<HTMLProgressElement>("busy-fraction");
  if (known) bar.value = busy.fraction!;
  else bar.removeAttribute("value");
}

/** Show what fraction of a scan has arrived while the rest is loading; null: all of it. */
export function showArriving(fraction: number | null): void {
  element("arriving").hidden = fraction === null;
  element("arriving").textContent = fraction === null ? "" : `coarse; ${Math.round(fraction * 100)} % of the slices are here`;
}

export function showConnection(connection: Connection): void {
  const place = element("connection");
  const isBack = place.classList.contains("lost") && connection === "connected";
  place.classList.toggle("lost", connection === "lost");
  place.textContent = isBack ? BACK : CONNECTIONS[connection];
  if (isBack) setTimeout(() => (place.textContent = place.textContent === BACK ? "" : place.textContent), BACK_MS);
}

function problemOf(error: unknown): Problem {
  if (error instanceof EngineError) return error.problem;
  const text = error instanceof Error ? error.message : String(error);
  return { message: `The page met an error: ${text}`, remedy: "reload it; your work is kept" };
}
