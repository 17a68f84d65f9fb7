// What the browser keeps of the work: each session's scan files and every step, in IndexedDB. Nothing is sent.
import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import type { NamedFile } from "../engine/engine";
import type { KeptPrediction } from "./predictor";
import type { SessionStep } from "./session";

const NAME = "voxsam-local";

/** A session's scan, and what made its masks. */
export interface Work {
  id: string;
  name: string;
  files: NamedFile[];
  series: string; // the one chosen of several
  model: string;
  created: number; // ms since 1970
}

/** A step, with the session's revision after it. */
export interface KeptStep {
  id: string; // of the work
  revision: number;
  step: SessionStep;
  found: KeptPrediction | null; // by the work's model
  seconds: number;
}

interface Kept extends DBSchema {
  works: { key: string; value: Work };
  steps: { key: [string, number]; value: KeptStep };
}

export class Store {
  private constructor(private readonly database: IDBPDatabase<Kept>) {}

  /** The store; null where the browser keeps nothing, as in some private windows. */
  static async open(): Promise<Store | null> {
    try {
      const upgrade = (database: IDBPDatabase<Kept>) => {
        database.createObjectStore("works", { keyPath: "id" });
        database.createObjectStore("steps", { keyPath: ["id", "revision"] });
      };
      // A newer version of the page in another tab is not kept waiting.
      return new Store(await openDB<Kept>(NAME, 1, { upgrade, blocking: (_, __, event) => (event.target as IDBDatabase).close() }));
    } catch {
      return null;
    }
  }

  /** Keep a new session, without steps. Throws DOMException if there is no room. */
  async begin(work: Work): Promise<void> {
    await this.database.put("works", work);
  }

  find(id: string): Promise<Work | undefined> {
    return this.database.get("works", id);
  }

  /** The steps after a revision, in order. */
  stepsAfter(id: string, revision: number): Promise<KeptStep[]> {
    return this.database.getAll("steps", IDBKeyRange.bound([id, revision], [id, Infinity], true));
  }

  /**
   * Add steps, all or none; they are on the disk when this resolves. Throws DOMException: `ConstraintError` if another
   * tab has taken one of these revisions, another name if there is no room.
   */
  async add(steps: KeptStep[]): Promise<void> {
    const transaction = this.database.transaction("steps", "readwrite", { durability: "strict" });
    await Promise.all([...steps.map((step) => transaction.store.add(step)), transaction.done]);
  }

  /** Delete all that is kept of a session. */
  async forget(id: string): Promise<void> {
    const transaction = this.database.transaction(["works", "steps"], "readwrite");
    const steps = IDBKeyRange.bound([id, -Infinity], [id, Infinity]);
    await Promise.all([transaction.objectStore("works").delete(id), transaction.objectStore("steps").delete(steps), transaction.done]);
  }
}
