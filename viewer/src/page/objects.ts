// The list of objects: choose, hide, lock or delete them; name, colour, type and marks of the chosen one.
import type { KnownPrompt, ObjectFacts, ObjectState, ObjectType, State } from "../engine/engine";
import type { Actions } from "./actions";
import { button, element } from "./dom";
import { millilitres, millimetres } from "./words";

// Drawn on 16 x 16: an eye, a padlock, a cross.
const ICONS = {
  hide: "M1 8c3-5 11-5 14 0-3 5-11 5-14 0zM6 8a2 2 0 1 0 4 0 2 2 0 1 0-4 0",
  lock: "M4 7.5h8v6H4zM5.5 7.5V5a2.5 2.5 0 0 1 5 0v2.5",
  delete: "M4 4l8 8M12 4l-8 8",
};
const OTHER = "other";

/** An object's measurements in one line; empty without a mask. */
export function measures({ longest, perpendicular, longest_diameter_mm }: ObjectState): string {
  if (!longest_diameter_mm) return "";
  const both = longest && perpendicular ? `${longest.mm.toFixed(0)} × ${millimetres(perpendicular.mm)}` : millimetres(longest_diameter_mm);
  return `longest diameter ${both}`;
}

export function describeMark(prompt: KnownPrompt): string {
  const sign = "positive" in prompt ? (prompt.positive ? "+ " : "− ") : "";
  switch (prompt.kind) {
    case "point": return `${sign}click ${prompt.index.map(Math.round).join(", ")}`;
    case "box": return `box ${prompt.low.join(", ")} to ${prompt.high.join(", ")}`;
    default: return `${sign}${prompt.kind} of ${prompt.count} voxels`;
  }
}

export class Objects {
  private readonly list = element("objects");
  private types: ObjectType[] = [];
  private isOpen = false; // the chosen object's details
  private otherType = false; // the user is entering a code

  constructor(private readonly actions: Actions) {}

  offer(types: ObjectType[]): void {
    this.types = types;
  }

  show(state: State): void {
    const focused = document.activeElement instanceof HTMLElement && this.list.contains(document.activeElement) ? document.activeElement : null;
    const typed = focused instanceof HTMLInputElement && focused.type === "text" ? focused.value : null;
    this.list.replaceChildren(...state.objects.map((object) => this.item(object, object.number === state.current)));
    const again = focused && this.list.querySelector<HTMLElement>(`[data-of="${focused.dataset.of}"]`);
    if (again instanceof HTMLInputElement && typed !== null) again.value = typed;
    (again ?? (focused && this.list.querySelector<HTMLElement>('.pick[aria-pressed="true"]')))?.focus();
  }

  private item(object: ObjectState, current: boolean): HTMLElement {
    const { number, name } = object;
    const pick = keyed(button("", () => this.actions.select(number)), `pick ${number}`);
    pick.className = "pick";
    pick.setAttribute("aria-pressed", String(current));
    const colour = document.createElement("i");
    colour.style.background = object.colour;
    const marked = object.prompts.length > 0 || object.edited;
    const volume = text("strong", marked ? millilitres(object.volume_ml) : "");
    pick.append(colour, text("span", name), volume, text("small", detailOf(object)));
    const item = document.createElement("li");
    const change = (facts: Partial<ObjectFacts>) => this.actions.describe(number, facts);
    item.append(
      pick,
      icon("hide", `Hide ${name}`, number, !object.visible, () => change({ visible: !object.visible })),
      icon("lock", `Lock ${name}`, number, object.locked, () => change({ locked: !object.locked })),
      icon("delete", `Delete ${name}`, number, null, () => this.actions.deleteObject(number)),
    );
    if (current) item.append(this.details(object, change));
    return item;
  }

  private details(object: ObjectState, change: (facts: Partial<ObjectFacts>) => void): HTMLElement {
    const details = document.createElement("details");
    details.open = this.isOpen;
    details.addEventListener("toggle", () => (this.isOpen = details.open));
    const name = keyed(Object.assign(document.createElement("input"), { type: "text", value: object.name, maxLength: 64 }), "name");
    name.addEventListener("change", () => {
      const given = name.value.trim();
      if (given) change({ name: given });
      else name.value = object.name;
    });
    const colour = keyed(Object.assign(document.createElement("input"), { type: "color", value: object.colour }), "colour");
    colour.addEventListener("change", () => change({ colour: colour.value }));
    const facts = document.createElement("div");
    facts.className = "facts";
    facts.append(labelled("Name", name), labelled("Colour", colour), ...this.typeFields(object, change));
    if (object.longest) facts.append(keyed(button("Show the diameters' slice", () => this.actions.goTo(object.longest!.ends[0])), "slice"));
    if (object.prompts.length) facts.append(this.marks(object));
    details.append(keyed(text("summary", "Name, type, marks"), "details"), facts);
    return details;
  }

  private typeFields({ type }: ObjectState, change: (facts: Partial<ObjectFacts>) => void): HTMLElement[] {
    const select = keyed(document.createElement("select"), "type");
    const known = this.types.findIndex(({ value, scheme }) => value === type.value && scheme === type.scheme);
    select.append(...this.types.map(({ meaning }, n) => new Option(meaning, String(n))));
    if (known < 0) select.append(new Option(`${type.meaning} (${type.scheme} ${type.value})`, "own"));
    select.append(new Option("another code …", OTHER));
    select.value = this.otherType ? OTHER : known >= 0 ? String(known) : "own";
    const own = document.createElement("div");
    own.className = "facts";
    own.hidden = !this.otherType;
    const fields = ([["value", "Code"], ["scheme", "Scheme"], ["meaning", "Meaning"]] as const).map(([key, label]) => {
      const input = keyed(Object.assign(document.createElement("input"), { type: "text", value: key === "scheme" ? "SCT" : "", maxLength: 64 }), `type ${key}`);
      own.append(labelled(label, input));
      return input;
    });
    const use = button("Use this code", () => {
      const [value, scheme, meaning] = fields.map((input) => input.value.trim()) as [string, string, string];
      if (!value || !scheme || !meaning) return fields.find((input) => !input.value.trim())!.focus();
      this.otherType = false;
      change({ type: { value, scheme, meaning } });
    });
    own.append(use);
    select.addEventListener("change", () => {
      this.otherType = select.value === OTHER;
      own.hidden = !this.otherType;
      if (this.otherType) fields[0]!.focus();
      else if (select.value !== "own") change({ type: this.types[Number(select.value)]! });
    });
    return [labelled("Type", select), own];
  }

  private marks({ number, prompts }: ObjectState): HTMLElement {
    const list = document.createElement("ul");
    list.className = "marks";
    list.append(
      ...prompts.map((prompt, index) => {
        const item = document.createElement("li");
        const words = describeMark(prompt);
        const go = "index" in prompt ? prompt.index : "low" in prompt ? prompt.low : null;
        const remove = keyed(button("✕", () => this.actions.deletePrompt(number, index)), `mark ${index}`);
        remove.setAttribute("aria-label", `Remove ${words}`);
        item.append(go ? keyed(button(words, () => this.actions.goTo(go)), `go ${index}`) : text("span", words), remove);
        return item;
      }),
    );
    return list;
  }
}

function detailOf(object: ObjectState): string {
  const count = object.prompts.length;
  if (!count && !object.edited) return "nothing marked yet";
  const marks = count ? `${count} ${count === 1 ? "mark" : "marks"}` : "";
  return [measures(object), marks, object.edited && "edited"].filter(Boolean).join(" · ");
}

// The key by which the focused element is found again after the list was rebuilt.
function keyed<T extends HTMLElement>(made: T, key: string): T {
  made.dataset.of = key;
  return made;
}

function text<K extends keyof HTMLElementTagNameMap>(kind: K, content: string): HTMLElementTagNameMap[K] {
  return Object.assign(document.createElement(kind), { textContent: content });
}

function labelled(words: string, input: HTMLElement): HTMLElement {
  const label = document.createElement("label");
  label.append(text("span", words), input);
  return label;
}

function icon(kind: keyof typeof ICONS, words: string, number: number, pressed: boolean | null, act: () => void): HTMLElement {
  const made = keyed(button("", act), `${kind} ${number}`);
  made.className = "icon";
  made.title = words;
  made.setAttribute("aria-label", words);
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[kind]);
  svg.append(path);
  made.append(svg);
  return made;
}
