// The sessions opened in this browser: listed here and not on the server, where others would see them.
import type { Recent, State } from "./engine";

const MAX_RECENT = 12;

export class RecentSessions {
  /** `store` is the browser's localStorage, or null where it is switched off; `key` is the list's name there. */
  constructor(
    private readonly store: Pick<Storage, "getItem" | "setItem"> | null,
    private readonly key = "voxsam-recent",
  ) {}

  /** The latest first. */
  list(): Recent[] {
    try {
      const kept: unknown = JSON.parse(this.store?.getItem(this.key) ?? "[]");
      return Array.isArray(kept) ? (kept as Recent[]) : [];
    } catch {
      return []; // not ours, or damaged
    }
  }

  /** Put a session first; returns the ids of those that no longer fit in the list. */
  note({ id, name, objects }: State): string[] {
    const masks = objects.filter(({ volume_ml }) => volume_ml > 0);
    const volume_ml = masks.reduce((sum, object) => sum + object.volume_ml, 0);
    const list = [{ id, name, used: Date.now(), objects: masks.length, volume_ml }, ...this.without(id)];
    this.keep(list.slice(0, MAX_RECENT));
    return list.slice(MAX_RECENT).map((dropped) => dropped.id);
  }

  forget(id: string): void {
    this.keep(this.without(id));
  }

  private without(id: string): Recent[] {
    return this.list().filter((recent) => recent.id !== id);
  }

  private keep(list: Recent[]): void {
    try {
      this.store?.setItem(this.key, JSON.stringify(list));
    } catch {
      // Full or forbidden: the list is a convenience.
    }
  }
}
