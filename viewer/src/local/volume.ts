// A scan as it was read, with its voxels in the file's own order.
import type { Elements } from "dcmjs";
import type { Index } from "../engine/engine";

export type VoxelArray = Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array | Float64Array;

/** What DICOM masks and reports repeat of the scan's own files: files/series.ts keeps it for them. */
export interface DicomSeries {
  common: Elements; // of the first header, without its pixels and private elements
  frames: { sopClass: string; sopInstance: string; frame: number; position: number[] }[]; // along k; frame 0: the file's only one
}

/** What a NIfTI header says about where its voxels lie: a mask repeats it unchanged. */
export interface NiftiPlace {
  version: 1 | 2;
  shape: Index;
  pixdim: number[]; // 4
  units: number;
  qform: number; // code
  sform: number; // code
  quaternion: number[]; // b, c, d
  offset: number[];
  rows: number[][]; // 3 x 4
}

export interface Volume {
  data: VoxelArray; // i fastest; value = data * slope + intercept
  shape: Index;
  affine: number[][]; // 4 x 4, voxel indices to RAS+ mm
  modality: string; // "CT" (Hounsfield units), "MR", or "" if unknown
  remarks: string[]; // what was odd in its file, one line each
  slope: number;
  intercept: number;
  dicom: DicomSeries | null; // null: the scan came from another kind of file
  nifti?: NiftiPlace; // of a NIfTI file
  name: string;
}
