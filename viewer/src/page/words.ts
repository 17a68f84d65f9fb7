// Numbers, times and sentences in words.
import type { Confidence } from "../engine/engine";

/** The text with a capital letter, unless it begins with a file name. */
export function sentence(text: string): string {
  if (/^\S*[./\\]\S/.test(text)) return text;
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function millilitres(volume: number): string {
  return `${volume >= 100 ? volume.toFixed(0) : volume >= 10 ? volume.toFixed(1) : volume.toFixed(2)} mL`;
}

/** What a calibrated model expects its mask to be. */
export function expected({ dice, volume_ml: [low, high] }: Confidence): string {
  return `Expected Dice ${dice.toFixed(2)}, volume ${millilitres(low)} to ${millilitres(high)} (80 %)`;
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

/** The date and time of `time`, or "today" and the time, as seen at `now`; both in ms since 1970. */
export function when(time: number, now: number): string {
  const date = new Date(time);
  const clock = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const today = new Date(now).toDateString() === date.toDateString();
  return today ? `today ${clock}` : `${date.toLocaleDateString()} ${clock}`;
}

export function plural(count: number, thing: string): string {
  return `${count} ${thing}${count === 1 ? "" : "s"}`;
}
