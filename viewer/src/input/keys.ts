// The keys: one table, which the page obeys and the help shows.

/** What a key does. `canvas`: only while the planes have the focus, for keys that buttons use too. */
export interface Command {
  keys: string[]; // as in KeyboardEvent.key, after "Ctrl+" and "Shift+" where they matter
  shown: string;
  text: string;
  group: "Look" | "Mark" | "Correct" | "Page";
  canvas?: boolean;
  run: (event: KeyboardEvent) => void;
}

/** The name of a key press, as the table writes it. Command counts as Ctrl. */
export function nameOf({ key, ctrlKey, metaKey, shiftKey }: KeyboardEvent): string {
  const name = key.length === 1 ? key.toLowerCase() : key;
  const isLetter = name.length > 1 || (name >= "a" && name <= "z");
  return `${ctrlKey || metaKey ? "Ctrl+" : ""}${shiftKey && isLetter ? "Shift+" : ""}${name}`;
}

const TYPING = "input:not([type=range]):not([type=radio]):not([type=checkbox]), select, textarea, dialog[open]";

/** Obey the table, except for keys typed into a field or a dialog. */
export function obey(commands: Command[], canvas: HTMLElement): void {
  const table = new Map(commands.flatMap((command) => command.keys.map((key) => [key, command] as const)));
  document.addEventListener("keydown", (event) => {
    const target = event.target instanceof Element ? event.target : document.body;
    const command = table.get(nameOf(event));
    if (!command || event.altKey || target.closest(TYPING)) return;
    if (command.canvas && target !== canvas) return;
    event.preventDefault();
    command.run(event);
  });
}

/** Fill the help with a table of keys for each group. */
export function describe(commands: Command[], place: HTMLElement): void {
  for (const group of ["Mark", "Correct", "Look", "Page"] as const) {
    const section = document.createElement("section");
    const heading = document.createElement("h3");
    heading.textContent = group;
    const list = document.createElement("dl");
    for (const { shown, text } of commands.filter((command) => command.group === group && command.shown)) {
      const keys = document.createElement("dt");
      for (const key of shown.split(" ")) {
        const cap = document.createElement("kbd");
        cap.textContent = key;
        keys.append(cap, " ");
      }
      const meaning = document.createElement("dd");
      meaning.textContent = text;
      list.append(keys, meaning);
    }
    section.append(heading, list);
    place.append(section);
  }
}

/** The keys held down while the page has the focus. */
export function heldKeys(): ReadonlySet<string> {
  const held = new Set<string>();
  document.addEventListener("keydown", (event) => {
    if (!(event.target instanceof Element && event.target.closest(TYPING))) held.add(event.key.toLowerCase());
  });
  document.addEventListener("keyup", (event) => held.delete(event.key.toLowerCase()));
  window.addEventListener("blur", () => held.clear());
  return held;
}
