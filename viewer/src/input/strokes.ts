// The strokes drawn on this page: the engine reports only how many voxels they have.
import type { KnownPrompt, Prompt } from "../engine/engine";

type Stroke = Prompt & { kind: "scribble" };

export class Strokes {
  private drawn = new Map<number, Stroke[]>();

  /** Remember a prompt that was sent for an object, if it is a stroke. */
  sent(object: number, prompt: Prompt): void {
    if (prompt.kind !== "scribble") return;
    const before = this.drawn.get(object) ?? [];
    this.drawn.set(object, [...before, prompt]);
  }

  /** The prompts of an object that can be drawn; of its strokes, those whose voxels are known here. */
  complete(object: number, prompts: KnownPrompt[]): Prompt[] {
    const known = [...(this.drawn.get(object) ?? [])];
    return prompts.flatMap((prompt): Prompt[] => {
      if (prompt.kind === "hint") return [];
      if (prompt.kind !== "scribble") return [prompt];
      const place = known.findIndex(({ voxels, positive }) => {
        return positive === prompt.positive && new Set(voxels.map(String)).size === prompt.count;
      });
      return place < 0 ? [] : known.splice(place, 1);
    });
  }

  forget(): void {
    this.drawn.clear();
  }
}
