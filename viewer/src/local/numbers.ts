// Numbers as Python's engine rounds and writes them.

export const INDEX_DECIMALS = 9; // of an index: without its last bits, which differ from one machine to another

/** To the nearest whole number; of two that are as near, the even one. */
export function roundedToEven(value: number): number {
  const low = Math.floor(value);
  const rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

export function rounded(value: number, decimals: number): number {
  const scale = 10 ** decimals;
  return roundedToEven(value * scale) / scale + 0; // + 0: no -0
}

/** With so many significant digits, and no more than are needed. */
export function written(value: number, digits = 6): string {
  return String(Number(value.toPrecision(digits)) + 0);
}

/** What one of sorted numbers is, or lies between two of them, at a fraction (0 to 1) of the way. */
export function quantile(sorted: ArrayLike<number>, fraction: number): number {
  const at = fraction * (sorted.length - 1);
  const below = Math.floor(at);
  const low = sorted[below] as number;
  return low + (at - below) * ((sorted[Math.min(below + 1, sorted.length - 1)] as number) - low);
}
