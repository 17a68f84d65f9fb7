// A scan as it was read, in its file's own order of voxels.
import type { Index } from "../engine/engine";

export type VoxelArray = Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array | Float32Array | Float64Array;

/** What a DICOM file of masks repeats of the scan's own files: read.ts keeps it, write.ts needs it, nobody else looks. */
export type DicomSeries = Record<string, unknown>;

export interface Volume {
  data: VoxelArray; // i fastest; value = data * slope + intercept
  shape: Index;
  affine: number[][]; // 4 x 4, voxel indices to RAS+ mm
  modality: string; // "CT" (Hounsfield units), "MR", or "" if unknown
  remarks: string[]; // what was odd in its file, one line each
  slope: number;
  intercept: number;
  dicom: DicomSeries | null; // null: the scan came from another kind of file
  name: string;
}
