// Numbers rounded and written as the Python engine does.

export const INDEX_DECIMALS = 9; // of an index: without its last bits, which differ between machines

/** The nearest whole number; the even one of two that are equally near. */
export function roundedToEven(value: number): number {
  const low = Math.floor(value);
  const rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

export function rounded(value: number, decimals: number): number {
  const scale = 10 ** decimals;
  return roundedToEven(value * scale) / scale + 0; // + 0: no -0
}

/** The number with at most `digits` significant digits, and no trailing zeros. */
export function written(value: number, digits = 6): string {
  return String(Number(value.toPrecision(digits)) + 0);
}

/** The quantile of sorted numbers at a fraction (0 to 1), linearly interpolated. */
export function quantile(sorted: ArrayLike<number>, fraction: number): number {
  const at = fraction * (sorted.length - 1);
  const below = Math.floor(at);
  const low = sorted[below] as number;
  return low + (at - below) * ((sorted[Math.min(below + 1, sorted.length - 1)] as number) - low);
}
