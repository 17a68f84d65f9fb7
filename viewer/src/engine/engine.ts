// What the page asks for: an engine that reads scans and segments them, on a server today, in the browser tomorrow.
// Indices are voxels (i, j, k) of the scan's own array; what travels is described in docs/server.md.

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

/** A prompt as the engine reports it: of strokes and hints only how many voxels they have. */
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

/** What is being done, and how much of it is (0 to 1; null if that is not known). */
export interface Busy {
  stage: string;
  fraction: number | null;
}

/** A session: an open scan and the objects marked in it. */
export interface State {
  id: string;
  name: string;
  shape: Index;
  spacing_mm: Index;
  affine: number[][]; // 4 x 4, voxel indices to RAS+ mm
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
export interface StepResult extends State {
  seconds: number;
  changed: Box;
  labels: Uint8Array; // of `changed`, i fastest; empty if it is
}

/** What changes a session; each is one step of undo, but for the last three. */
export type Step =
  | { kind: "prompt"; prompts: Prompt[] }
  | { kind: "reset" | "new object" | "undo" | "redo" }
  | { kind: "select"; number: number };

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
}

export interface Entry {
  name: string;
  kind: "folder" | "scan" | "series";
  path: string;
  bytes: number | null;
}

export interface NamedFile {
  name: string;
  file: Blob;
}

/** Where a scan comes from: the demo, a folder that the engine may read, or files of the user. */
export type Source = { demo: true } | { folder: string; path: string } | { files: NamedFile[] };

/** How something that takes long reports its progress, and how it is cancelled. */
export interface Loading {
  signal: AbortSignal;
  progress(stage: string, fraction: number | null): void;
}

/** A session that was open on this machine before. */
export interface Recent {
  id: string;
  name: string;
  used: number; // ms since 1970
  objects: number; // with a mask
  volume_ml: number;
}

/**
 * Of a session that is watched. `idle`: nothing is being done any more, and the session is at `revision` (null if the
 * engine does not say). `closed`: it sleeps, and the next step wakes it.
 */
export type Notice = { kind: "progress"; busy: Busy } | { kind: "idle"; revision: number | null } | { kind: "closed" };

/** A file to take away. */
export type FileKind = "nifti" | "seg" | "report" | "json";
export const FILES: Record<FileKind, string> = {
  nifti: "mask.nii.gz",
  seg: "mask.seg.dcm",
  report: "report.html",
  json: "report.json",
};

export interface Engine {
  info(): Promise<Info>;
  /** What lies in a folder that the engine may read. */
  entries(folder: string, path: string): Promise<Entry[]>;
  open(source: Source, name: string | undefined, loading: Loading): Promise<State>;
  /** The session as it is, brought back if it was closed. */
  state(id: string): Promise<State>;
  /** The scan as .nii.gz. */
  scan(id: string, loading: Loading): Promise<ArrayBuffer>;
  /** All labels there are; `changed` is the box that they are in. */
  labels(id: string): Promise<StepResult>;
  step(id: string, step: Step): Promise<StepResult>;
  file(id: string, kind: FileKind): Promise<Blob>;
  /** What happens to a session, until it is closed or the signal aborts. Throws EngineError when it is out of reach. */
  watch(id: string, signal: AbortSignal): AsyncGenerator<Notice>;
  /** Sessions of this browser, the latest first. */
  recent(): Recent[];
  /** Leave a session out of `recent`. */
  forget(id: string): void;
}

/** Why something failed, in the words that the user reads. */
export interface Problem {
  message: string;
  given?: string | null;
  expected?: string | null;
  remedy?: string | null;
}

/** An engine's failure. `passing`: it is out of reach or broke, and may be back; otherwise asking again is in vain. */
export class EngineError extends Error {
  constructor(
    readonly problem: Problem,
    readonly passing: boolean,
  ) {
    super(problem.message);
  }
}
