// Which sessions a browser remembers.
import { describe, expect, it } from "vitest";
import type { State } from "../src/engine/engine";
import { RecentSessions } from "../src/engine/recent";

function storeOf(first: string | null = null) {
  let kept = first;
  return { getItem: () => kept, setItem: (_: string, value: string) => void (kept = value) };
}
const state = (id: string, ...volumes: number[]) => ({ id, name: `${id}.nii.gz`, objects: volumes.map((volume_ml) => ({ volume_ml })) }) as State;

describe("recent sessions", () => {
  it("are listed with their work, the latest first, each once", () => {
    const recent = new RecentSessions(storeOf());
    for (const session of [state("a"), state("b", 1.5), state("a", 2, 0, 3)]) recent.note(session);
    expect(recent.list().map(({ id, objects, volume_ml }) => [id, objects, volume_ml])).toEqual([["a", 2, 5], ["b", 1, 1.5]]);
    recent.forget("a");
    expect(recent.list().map(({ name }) => name)).toEqual(["b.nii.gz"]);
  });

  it("are the last twelve", () => {
    const recent = new RecentSessions(storeOf());
    for (let n = 0; n < 20; n++) recent.note(state(`${n}`));
    expect(recent.list().map(({ id }) => Number(id))).toEqual([19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8]);
  });

  it("are none where the browser keeps nothing, or something else", () => {
    for (const store of [null, storeOf("{broken"), storeOf('{"a": 1}')]) expect(new RecentSessions(store).list()).toEqual([]);
    const full = { getItem: () => null, setItem: () => { throw new Error("full"); } };
    expect(() => new RecentSessions(full).note(state("a"))).not.toThrow();
  });
});
