// The colours of the objects.

/** Label colours, told apart by colour-blind eyes too (Okabe and Ito); repeated for further objects. */
export const COLOURS = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#0072b2"] as const;

export function colourOf(number: number): string {
  return COLOURS[(number - 1) % COLOURS.length] as string;
}

/** As NiiVue takes them: colours of the labels 0 (nothing) to 255. */
export function labelColours() {
  const channels = [0, 1, 2].map((c) =>
    Array.from({ length: 256 }, (_, n) => (n ? parseInt(colourOf(n).slice(1 + 2 * c, 3 + 2 * c), 16) : 0)),
  ) as [number[], number[], number[]];
  const [R, G, B] = channels;
  return { R, G, B, A: R.map((_, n) => (n ? 255 : 0)), I: R.map((_, n) => n), labels: R.map((_, n) => `${n}`) };
}
