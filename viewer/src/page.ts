// Small things that every part of the page needs: elements by name, messages, numbers in words.
import { ApiError } from "./api";
import type { Problem } from "./types";

export function element<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

export function button(text: string, act: () => void): HTMLButtonElement {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

/** Say something that is also read aloud; it replaces what was said before. */
export function say(text: string): void {
  element("live").textContent = text;
}

/** Show what went wrong until it is closed or something else goes wrong. */
export function showProblem(error: unknown): void {
  const { message, given, expected, remedy } = problemOf(error);
  element("problem-message").textContent = sentence(given || message); // the message is all three in one line
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

function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) return error.problem;
  const text = error instanceof Error ? error.message : String(error);
  return { message: `The page met an error: ${text}`, remedy: "reload it; your work is kept on the server" };
}

/** With a capital, unless it begins with the name of a file. */
export function sentence(text: string): string {
  if (/^\S*[./\\]\S/.test(text)) return text;
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function millilitres(volume: number): string {
  return `${volume >= 100 ? volume.toFixed(0) : volume >= 10 ? volume.toFixed(1) : volume.toFixed(2)} mL`;
}

export function millimetres(length: number): string {
  return `${length.toFixed(0)} mm`;
}

export function seconds(duration: number): string {
  return duration < 10 ? `${duration.toFixed(2)} s` : `${duration.toFixed(0)} s`;
}

export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), units.length - 1);
  return `${(count / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

/** Hand a file to the user. */
export function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
