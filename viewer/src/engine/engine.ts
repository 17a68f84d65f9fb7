// What the page asks for: an engine that reads scans and segments them, on a server or in the browser.
// Indices are voxels (i, j, k) of the scan's own array; what travels is described in docs/server.md.

import type { Project } from "./project";

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

/** A change by hand of the current object's mask. Points are indices between voxels' centres, too. */
export type Edit =
  | { kind: "brush"; stroke: Index[]; radius_mm: number; add: boolean; axis: number | null; intensities: [number, number] | null }
  | { kind: "lasso"; polygon: Index[]; axis: number; add: boolean; slices: number | null }
  | { kind: "fill"; axis: number | null }
  | { kind: "smooth"; sd_mm: number }
  | { kind: "component"; index: Index; keep: boolean }
  | { kind: "interpolate"; axis: number };

/** A code of what an object is. */
export interface ObjectType {
  value: string;
  scheme: string; // SCT: SNOMED CT
  meaning: string;
}

export interface Diameter {
  mm: number;
  ends: [Index, Index];
}

/** How good a mask probably is, as calibrated on validation lesions. */
export interface Confidence {
  dice: number; // expected
  volume_ml: [number, number]; // holds the lesion's true volume in 80 % of cases
  doubtful: boolean; // what was clicked may be no lesion
}

/** What the user says of an object. */
export interface ObjectFacts {
  name: string;
  colour: string; // #rrggbb
  visible: boolean;
  locked: boolean; // its voxels are not taken by other objects
  type: ObjectType;
}

export interface ObjectState extends ObjectFacts {
  number: number;
  prompts: KnownPrompt[];
  edited: boolean; // by hand
  volume_ml: number;
  longest_diameter_mm: number; // 0 without a mask
  longest: Diameter | null; // in an axial slice
  perpendicular: Diameter | null; // to it, in the same slice
  class_name: string | null; // which of the model's classes it looks like
  confidence: Confidence | null; // of a calibrated model, while no hand has changed the mask
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
  overlap: boolean; // whether objects may share voxels
  keep_clicked: boolean; // of a mask only the parts that were clicked
  earlier: Earlier[]; // saved sessions on the same scan
  case?: string | null; // of the server's project, that it is on
}

export interface Earlier {
  id: string;
  name: string;
  saved: string; // ISO time
}

/** The state after a step, with the labels of the box that the step changed. */
export interface StepResult extends State {
  seconds: number;
  changed: Box;
  labels: Uint8Array; // of `changed`, i fastest; empty if it is
}

/** What changes a session. */
export type Step =
  | { kind: "prompt"; prompts: Prompt[] }
  | { kind: "edit"; edits: Edit[] }
  | { kind: "mask"; source: Source } // becomes the current object's
  | { kind: "reset" | "new object" | "undo" | "redo" }
  | { kind: "select" | "delete object"; number: number }
  | { kind: "delete prompt"; number: number; index: number }
  | { kind: "describe"; number: number; facts: Partial<ObjectFacts> }
  | { kind: "rules"; rules: Partial<Pick<State, "overlap" | "keep_clicked">> };

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
  project?: string | null; // the name of the project whose scans are worked through
  local?: boolean; // whether the page with its engine in the browser lies beside, in local/
  types: ObjectType[]; // to choose from; others may be given
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

/** Where a scan comes from: the demo, the project, a folder that the engine may read, or files of the user; of several series one. */
export type Source = { demo: true } | { case: string; reader: string } | (({ folder: string; path: string } | { files: NamedFile[] } | { upload: string }) & { series?: string });

/** One of the series that lie together. */
export interface Series {
  uid: string;
  description: string;
  modality: string;
  count: number; // of images
  shape: (number | null)[] | null; // null: differs, or is not said
  spacing_mm: (number | null)[] | null;
  localizer: boolean;
}

export type VoxelType = "int16" | "float32";

/** The voxels (i, j) of one k, i fastest, little-endian. */
export interface Slice {
  k: number;
  bytes: Uint8Array;
}

/** A scan as it comes: the first `coarse` slices are spread over it, then come those between. */
export interface VoxelStream {
  type: VoxelType;
  coarse: number;
  slices: AsyncGenerator<Slice>;
}

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

/** A file to take away, and how its name ends. */
export type FileKind = "nifti" | "masks" | "seg" | "sr" | "rtstruct" | "stl" | "report" | "json";
export const FILES: Record<FileKind, string> = {
  nifti: "mask.nii.gz",
  masks: "masks.zip",
  seg: "mask.seg.dcm",
  sr: "seg_and_sr.zip",
  rtstruct: "mask.rtstruct.dcm",
  stl: "surface.stl",
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
  /** The scan's voxels, without the first `from` slices of those that come. */
  voxels(id: string, from: number, signal: AbortSignal): Promise<VoxelStream>;
  /** All labels there are; `changed` is the box that they are in. */
  labels(id: string): Promise<StepResult>;
  /** `loading` hears how far a mask that is sent has come. */
  step(id: string, step: Step, loading?: Loading): Promise<StepResult>;
  file(id: string, kind: FileKind): Promise<Blob>;
  /** What happens to a session, until it is closed or the signal aborts. Throws EngineError when it is out of reach. */
  watch(id: string, signal: AbortSignal): AsyncGenerator<Notice>;
  /** Sessions of this browser, the latest first. */
  recent(): Recent[];
  /** Leave a session out of `recent`; where the work is kept in this browser (`keepsWork`), delete it and its scan. */
  forget(id: string): void;
  readonly keepsWork: boolean;
  /** What a server with a project offers; null in the browser. */
  readonly project: Project | null;
}

/** Why something failed, in the words that the user reads. */
export interface Problem {
  message: string;
  given?: string | null;
  expected?: string | null;
  remedy?: string | null;
  series?: Series[]; // to choose one of
}

/** An engine's failure. `passing`: it is out of reach or broke, and may be back; otherwise asking again is in vain. */
export class EngineError extends Error {
  /** What was to be opened, with a series of the problem's missing. */
  source: Source | null = null;

  constructor(
    readonly problem: Problem,
    readonly passing: boolean,
  ) {
    super(problem.message);
  }
}
