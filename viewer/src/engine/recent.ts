// Which sessions were open in this browser: kept here, not on the server, where others would see them.
import type { Recent, State } from "./engine";

const STORE = "voxsam-recent";
const MAX_RECENT = 12;

export class RecentSessions {
  /** `store` is the browser's localStorage, or none where it is switched off. */
  constructor(private readonly store: Pick<Storage, "getItem" | "setItem"> | null) {}

  /** The latest first. */
  list(): Recent[] {
    try {
      const kept: unknown = JSON.parse(this.store?.getItem(STORE) ?? "[]");
      return Array.isArray(kept) ? (kept as Recent[]) : [];
    } catch {
      return []; // not ours, or damaged
    }
  }

  note({ id, name, objects }: State): void {
    const masks = objects.filter(({ volume_ml }) => volume_ml > 0);
    const volume_ml = masks.reduce((sum, object) => sum + object.volume_ml, 0);
    this.keep([{ id, name, used: Date.now(), objects: masks.length, volume_ml }, ...this.without(id)]);
  }

  forget(id: string): void {
    this.keep(this.without(id));
  }

  private without(id: string): Recent[] {
    return this.list().filter((recent) => recent.id !== id);
  }

  private keep(list: Recent[]): void {
    try {
      this.store?.setItem(STORE, JSON.stringify(list.slice(0, MAX_RECENT)));
    } catch {
      // Full or forbidden: the list is a convenience.
    }
  }
}
