// What travels between the page and the server (docs/server.md). Indices are voxels of the scan's own array.

export type Index = [number, number, number];

/** A half-open box of voxels: `high` is the first one beyond it on each axis. */
export interface Box {
  low: Index;
  high: Index;
}

export type Prompt =
  | { kind: "point"; index: Index; positive: boolean }
  | { kind: "box"; low: Index; high: Index } // both corners included
  | { kind: "scribble"; voxels: Index[]; positive: boolean };

/** A prompt as the server tells it: of strokes and hints it tells only how many voxels they have. */
export type KnownPrompt =
  | Exclude<Prompt, { kind: "scribble" }>
  | { kind: "scribble"; count: number; positive: boolean }
  | { kind: "hint"; count: number };

export interface ObjectState {
  number: number;
  prompts: KnownPrompt[];
  volume_ml: number;
  longest_diameter_mm: number; // 0 without a mask
  messages: string[];
}

export interface Busy {
  stage: string;
  fraction: number | null;
}

export interface State {
  id: string;
  name: string;
  lease_s: number;
  shape: Index;
  spacing_mm: Index;
  affine: number[][];
  modality: string;
  dicom: boolean;
  revision: number;
  objects: ObjectState[];
  current: number;
  can_undo: boolean;
  can_redo: boolean;
  busy: Busy | null;
  notes: string[];
}

/** The state after a step, with the labels of the box that the step changed. */
export interface Answer extends State {
  seconds: number;
  changed: Box;
  labels: string; // base64 of zlib-deflated uint8, i fastest
}

export interface Preset {
  name: string;
  low: number;
  high: number;
}

export interface Info {
  version: string;
  model: { name: string; modality: string; prompts: Record<string, boolean>; licence: string | null };
  presets: Preset[];
  folders: { id: string; name: string }[];
  demo: boolean;
  limits: Record<string, number>;
}

export interface Entry {
  name: string;
  kind: "folder" | "scan" | "series";
  path: string;
  bytes: number | null;
}

export type Source = { demo: true } | { folder: string; path: string } | { upload: string };

/** Why a request failed, in the words that the user reads. */
export interface Problem {
  message: string;
  given?: string | null;
  expected?: string | null;
  remedy?: string | null;
}
