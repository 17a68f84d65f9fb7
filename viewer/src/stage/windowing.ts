// The window: the intensities shown from black to white, and how a drag changes them.
export interface Window {
  low: number;
  high: number;
}

const DOUBLING = 200; // pixels of a drag that make the window twice as wide
const SHIFT = 400; // pixels of a drag that move its level by its width

/** The window after a drag: to the right it is wider (less contrast), up it is lower (brighter). */
export function dragWindow({ low, high }: Window, right: number, up: number): Window {
  const width = (high - low) * 2 ** (right / DOUBLING);
  const level = (low + high) / 2 - ((high - low) * up) / SHIFT;
  return { low: level - width / 2, high: level + width / 2 };
}
