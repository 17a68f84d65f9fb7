// Display windows for CT in HU, the same as the server's.
import type { Preset } from "../engine/engine";

export const PRESETS: Preset[] = [
  { name: "soft tissue", low: -160, high: 240 },
  { name: "lung", low: -1350, high: 150 },
  { name: "bone", low: -450, high: 1050 },
  { name: "liver", low: -30, high: 150 },
];
