// The interface of an engine, which reads scans and segments them on a server or in the browser.
// Indices are voxels (i, j, k) of the scan's own array; docs/server.md describes the messages.

import type { Project } from "./project";

export type Index = [number, number, number];

/** A half-open box of voxels: `high` is the first index beyond it on each axis. */
export interface Box {
  low: Index;
  high: Index;
}

export type Prompt =
  | { kind: "point"; index: Index; positive: boolean }
  | { kind: "box"; low: Index; high: Index } // both corners included
  | { kind: "scribble"; voxels: Index[]; positive: boolean };

/** A prompt as the engine reports it; of strokes and hints only the number of voxels. */
export type KnownPrompt =
  | Exclude<Prompt, { kind: "scribble" }>
  | { kind: "scribble"; count: number; positive: boolean }
  | { kind: "hint"; count: number };

/** An edit of the current object's mask by hand. Points are voxel indices and may be fractional. */
export type Edit =
  | { kind: "brush"; stroke: Index[]; radius_mm: number; add: boolean; axis: number | null; intensities: [number, number] | null }
  | { kind: "lasso"; polygon: Index[]; axis: number; add: boolean; slices: number | null }
  | { kind: "fill"; axis: number | null }
  | { kind: "smooth"; sd_mm: number }
  | { kind: "component"; index: Index; keep: boolean }
  | { kind: "interpolate"; axis: number };

/** A coded concept: what an object is. */
export interface ObjectType {
  value: string;
  scheme: string; // SCT: SNOMED CT
  meaning: string;
}

export interface Diameter {
  mm: number;
  ends: [Index, Index];
}

/** How good a mask probably is, calibrated on validation lesions. */
export interface Confidence {
  dice: number; // expected
  volume_ml: [number, number]; // contains the lesion's true volume in 80 % of cases
  doubtful: boolean; // what was clicked may not be a lesion
}

/** What the user sets for an object. */
export interface ObjectFacts {
  name: string;
  colour: string; // #rrggbb
  visible: boolean;
  locked: boolean; // no other object takes its voxels
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
  confidence: Confidence | null; // from a calibrated model, while the mask is as predicted
  messages: string[];
}

/** What is being done, and the fraction done (0 to 1; null if unknown). */
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
  keep_clicked: boolean; // whether masks keep only their clicked components
  earlier: Earlier[]; // saved sessions on the same scan
  case?: string | null; // the scan of the server's project that it is on
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
  labels: Uint8Array; // of `changed`, i fastest; empty if that is
}

/** A step that changes a session. */
export type Step =
  | { kind: "prompt"; prompts: Prompt[] }
  | { kind: "edit"; edits: Edit[] }
  | { kind: "mask"; source: Source } // replaces the current object's
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
  project?: string | null; // the name of the server's project
  local?: boolean; // whether local/ has the page whose engine is the browser
  types: ObjectType[]; // to choose from; other codes may be given
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

/** Where a scan comes from: the demo, the project, the engine's folders or the user's files; `series` chooses one. */
export type Source = { demo: true } | { case: string; reader: string } | (({ folder: string; path: string } | { files: NamedFile[] } | { upload: string }) & { series?: string });

/** One of several series in the same place. */
export interface Series {
  uid: string;
  description: string;
  modality: string;
  count: number; // of images
  shape: (number | null)[] | null; // null: it varies, or is not given
  spacing_mm: (number | null)[] | null;
  localizer: boolean;
}

export type VoxelType = "int16" | "float32";

/** The voxels (i, j) of slice k, i fastest, little-endian. */
export interface Slice {
  k: number;
  bytes: Uint8Array;
}

/** A scan as it arrives: the first `coarse` slices are spread over it, then those in between follow. */
export interface VoxelStream {
  type: VoxelType;
  coarse: number;
  slices: AsyncGenerator<Slice>;
}

/** How a long operation reports its progress and is cancelled. */
export interface Loading {
  signal: AbortSignal;
  progress(stage: string, fraction: number | null): void;
}

/** A session that was opened in this browser before. */
export interface Recent {
  id: string;
  name: string;
  used: number; // ms since 1970
  objects: number; // with a mask
  volume_ml: number;
}

/**
 * News of a watched session. `idle`: nothing is running any more, and the session is at `revision` (null if the engine
 * does not say). `closed`: it sleeps until the next step wakes it.
 */
export type Notice = { kind: "progress"; busy: Busy } | { kind: "idle"; revision: number | null } | { kind: "closed" };

/** The kinds of file to download, and how their names end. */
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
  /** The contents of a folder that the engine may read. */
  entries(folder: string, path: string): Promise<Entry[]>;
  open(source: Source, name: string | undefined, loading: Loading): Promise<State>;
  /** The current state of a session, which is reopened if it was closed. */
  state(id: string): Promise<State>;
  /** The scan's voxels, without the first `from` slices of the stream. */
  voxels(id: string, from: number, signal: AbortSignal): Promise<VoxelStream>;
  /** All labels; `changed` is the box that holds them. */
  labels(id: string): Promise<StepResult>;
  /** Take a step; `loading` gets the progress of sending a mask. */
  step(id: string, step: Step, loading?: Loading): Promise<StepResult>;
  file(id: string, kind: FileKind): Promise<Blob>;
  /** News of a session until it is closed or the signal aborts. Throws EngineError if the engine is out of reach. */
  watch(id: string, signal: AbortSignal): AsyncGenerator<Notice>;
  /** This browser's sessions, the latest first. */
  recent(): Recent[];
  /** Remove a session from `recent`; where the work is kept in this browser (`keepsWork`), delete it and its scan. */
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
  series?: Series[]; // to choose from
}

/** An engine's failure. `passing`: it is out of reach or broken and may come back; otherwise retrying is pointless. */
export class EngineError extends Error {
  /** The source that was to be opened, for a choice of one of the problem's series. */
  source: Source | null = null;

  constructor(
    readonly problem: Problem,
    readonly passing: boolean,
  ) {
    super(problem.message);
  }
}
