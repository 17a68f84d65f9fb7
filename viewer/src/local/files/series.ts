// A DICOM series as a volume: slices in the order of their positions, never of names or numbers; their grid, or why
// there is none; their pixels. Rules and tolerances as in voxsam.io.dicom.series (DICOM PS3.3 C.7.6.2.1.1).
import type { Elements } from "dcmjs";
import type { Index } from "../../engine/engine";
import type { DicomSeries, Volume, VoxelArray } from "../volume";
import { checkShape, colour, cross, dot, format, fromLps, numbersOf, truncated, type NumberKind } from "./checks";
import { elementsOf, frameCount, number, numbers, sizeOfSlice, TAGS, text, values, type Keyword, type Slice } from "./dicom";
import { refusal } from "../refusal";

const SAME_POSITION_MM = 1e-3;
const POSITION_TOLERANCE_MM = 0.11; // positions with one decimal, and as much again in the ends that the step comes from ...
const ROUNDING = 0.3; // ... but never more than this fraction of the slice spacing
const POSITION_TOLERANCE = 0.05; // of the slice spacing
const DIRECTION_TOLERANCE = 1e-3; // between the unit vectors of two slices
const ANGLE_TOLERANCE = 4e-3; // for cosines written with three decimals
const [TILT_REMARK_DEGREES, MAX_TILT_DEGREES] = [0.5, 60];
const BIG_ENDIAN = "1.2.840.10008.1.2.2";
const UNPACKED = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", BIG_ENDIAN];
const GROUPS: [Keyword, Keyword][] = [
  ["ImagePositionPatient", "PlanePositionSequence"], ["ImageOrientationPatient", "PlaneOrientationSequence"], ["PixelSpacing", "PixelMeasuresSequence"],
  ["RescaleSlope", "PixelValueTransformationSequence"], ["RescaleIntercept", "PixelValueTransformationSequence"],
];
const KEPT_GROUPS = ["0008", "0010", "0012", "0018", "0020", "0028", "0032", "0040", "5200"]; // of a header, for files written later

/** The volume of a stack's images. `progress` is called with the fraction decoded. */
export async function volumeOf(files: Slice[], name: string, remarks: string[], progress: (fraction: number) => void): Promise<Volume> {
  for (const { header, name: file } of files) {
    if (number(header, "SamplesPerPixel", 1) > 1) throw colour(file);
    const shades = text(header, "PhotometricInterpretation") || "MONOCHROME2";
    if (shades !== "MONOCHROME2") throw refusal(`${file} is stored as ${shades}`, "MONOCHROME2", "export the original series");
  }
  const parts = files.flatMap((file) => (frameCount(file.header) > 1 ? framesOf(file) : [file]));
  const sizes = [...new Set(parts.map((slice) => sizeOfSlice(slice).join(" x ")))].sort();
  if (sizes.length > 1) throw refusal(`${name} has slices of ${sizes.slice(0, 2).join(" and ")} pixels`, "one size", "remove the images of another kind");
  if (parts.length < 2) throw refusal(`${name} holds a single slice (${parts[0]!.name})`, "a 3D scan", "choose the whole series");
  const shape = checkShape(name, [...sizeOfSlice(parts[0]!), parts.length]);
  const stack = stacked(parts, name);
  const data = await decoded(stack.slices, shape, progress);
  const modality = text(stack.slices[0]!.header, "Modality");
  return { data, shape, affine: stack.affine, modality, remarks: [...remarks, ...stack.remarks], slope: 1, intercept: 0, dicom: seriesOf(stack.slices), name };
}

function framesOf(file: Slice): Slice[] {
  const { header, name } = file;
  const item = (frame: number, group: Keyword): Elements => {
    for (const [sequence, at] of [["PerFrameFunctionalGroupsSequence", frame], ["SharedFunctionalGroupsSequence", 0]] as const) {
      const inner = (values(header, sequence)[at] as Elements | undefined)?.[TAGS[group]]?.Value?.[0];
      if (inner) return inner as Elements;
    }
    return {};
  };
  const count = frameCount(header);
  return Array.from({ length: count }, (_, n) => {
    if (!values(item(n, "PlanePositionSequence"), "ImagePositionPatient").length) {
      throw refusal(`${name} is a multi-frame DICOM file of ${count} frames without their positions`, "an enhanced CT or MR image, or one file per slice", "convert it to NIfTI first");
    }
    const own: Elements = { ...header };
    for (const [keyword, group] of GROUPS) {
      const element = item(n, group)[TAGS[keyword]];
      if (element) own[TAGS[keyword]] = element;
    }
    return { ...file, name: `frame ${n + 1} of ${name}`, header: own, frame: n + 1 };
  });
}

// Geometry

interface Stack {
  slices: Slice[];
  affine: number[][];
  remarks: string[];
}

function stacked(unsorted: Slice[], name: string): Stack {
  const orientations = unsorted.map((slice) => numbers(slice, "ImageOrientationPatient", 6));
  const spacings = unsorted.map((slice) => numbers(slice, "PixelSpacing", 2)); // between rows (j), between columns (i)
  const [alongI, alongJ] = directionsOf(orientations, name);
  const [betweenRows, betweenColumns] = spacings[0] as [number, number];
  const all = spacings.flat();
  if (Math.min(...all) <= 0 || spacings.some((pair) => pair.some((mm, n) => Math.abs(mm - spacings[0]![n]!) > 1e-4 * Math.abs(spacings[0]![n]!)))) {
    const given = `${name} has pixel spacings of ${format(Math.min(...all), 4)} to ${format(Math.max(...all), 4)} mm that are not positive or differ between slices`;
    throw refusal(given, "the same positive PixelSpacing in all slices", "export the original series");
  }
  const normal = cross(alongI, alongJ);
  const placed = unsorted.map((slice) => ({ slice, position: numbers(slice, "ImagePositionPatient", 3) }));
  placed.sort((a, b) => dot(a.position, normal) - dot(b.position, normal));
  const slices = placed.map(({ slice }) => slice);
  const positions = placed.map(({ position }) => position);
  const { step, remarks } = checkStack(slices, positions, normal, name);
  const steps = [alongI.map((cosine) => cosine * betweenColumns), alongJ.map((cosine) => cosine * betweenRows), step];
  return { slices, affine: fromLps(steps, positions[0]!), remarks };
}

/** Unit vectors along which column (i) and row (j) numbers grow, LPS; the same for all slices. */
function directionsOf(orientations: number[][], name: string): [number[], number[]] {
  if (orientations.some((turn) => turn.some((cosine, n) => Math.abs(cosine - orientations[0]![n]!) > DIRECTION_TOLERANCE))) {
    throw refusal(`the slices of ${name} have different orientations`, "parallel slices", "remove localizers and other planes");
  }
  const [i, j] = [orientations[0]!.slice(0, 3), orientations[0]!.slice(3)];
  const [ii, ij, jj] = [dot(i, i), dot(i, j), dot(j, j)];
  if (Math.max(Math.abs(Math.sqrt(ii) - 1), Math.abs(Math.sqrt(jj) - 1), Math.abs(ij)) > ANGLE_TOLERANCE) {
    throw refusal(`ImageOrientationPatient of ${name} is not two perpendicular unit vectors`, "a valid orientation", "export the original series");
  }
  // The nearest perpendicular unit vectors: the two times the inverse square root of their 2 x 2 Gram matrix.
  const root = Math.sqrt(ii * jj - ij * ij);
  const trace = Math.sqrt(ii + jj + 2 * root);
  const [a, b, c] = [(jj + root) / (root * trace), -ij / (root * trace), (ii + root) / (root * trace)];
  return [i.map((cosine, n) => a * cosine + b * j[n]!), j.map((cosine, n) => b * i[n]! + c * cosine)];
}

/** The step between slices, LPS mm, and remarks. Throws unless the positions follow it. */
function checkStack(slices: Slice[], positions: number[][], normal: number[], name: string): { step: number[]; remarks: string[] } {
  const heights = positions.map((position) => dot(position, normal));
  const gaps = heights.slice(1).map((height, k) => height - heights[k]!);
  const doubles = gaps.filter((gap) => gap < SAME_POSITION_MM).length;
  if (doubles) {
    const k = gaps.indexOf(Math.min(...gaps));
    throw refusal(
      `${name} has duplicate slices: ${slices[k]!.name} and ${slices[k + 1]!.name} lie at the same position, ${heights[k]!.toFixed(2)} mm along the normal (${doubles} such pairs)`,
      "one slice at each position",
      "keep one time point, echo or reconstruction",
    );
  }
  const last = positions.length - 1;
  const step = positions[last]!.map((mm, n) => (mm - positions[0]![n]!) / last);
  const offLine = positions.map((position, k) => position.map((mm, n) => mm - positions[0]![n]! - k * step[n]!));
  const height = dot(step, normal);
  const tolerance = Math.max(POSITION_TOLERANCE * height, Math.min(POSITION_TOLERANCE_MM, ROUNDING * height));
  if (Math.max(...offLine.map((off) => Math.abs(dot(off, normal)))) > tolerance) throw uneven(gaps, heights, name);
  const sideways = Math.hypot(...step.map((mm, n) => mm - height * normal[n]!));
  const tilt = (Math.atan2(sideways, height) * 180) / Math.PI;
  const shift = Math.max(...offLine.flat().map(Math.abs));
  if (tilt > MAX_TILT_DEGREES || shift > tolerance) {
    throw refusal(
      `the slices of ${name} are not stacked in a line: one is shifted by ${format(shift, 3)} mm in its plane (the others lean by ${tilt.toFixed(1)} degrees)`,
      "slices that follow one direction",
      "remove the images of another acquisition",
    );
  }
  if (tilt <= TILT_REMARK_DEGREES) return { step, remarks: [] };
  const remark = `the slices of ${name} lean by ${tilt.toFixed(1)} degrees (gantry tilt): each is shifted by ${format(sideways, 3)} mm`;
  return { step, remarks: [`${remark}; read as the sheared grid that this is, distances across slices are less exact`] };
}

/** The error for slices that are not evenly spaced: some missing, or no common distance. */
function uneven(gaps: number[], heights: number[], name: string) {
  const [least, most] = [Math.min(...gaps), Math.max(...gaps)];
  const near = gaps.filter((gap) => gap < 1.5 * least).sort((a, b) => a - b);
  const usual = (near[Math.floor((near.length - 1) / 2)]! + near[Math.floor(near.length / 2)]!) / 2;
  const missing = gaps.map((gap) => Math.round(gap / usual) - 1);
  const k = gaps.indexOf(most);
  const between = `between ${heights[k]!.toFixed(2)} and ${heights[k + 1]!.toFixed(2)} mm along the normal`;
  const total = missing.reduce((sum, n) => sum + n, 0);
  if (total > 0 && Math.max(...gaps.map((gap, n) => Math.abs(gap / usual - missing[n]! - 1))) < 0.1 * (Math.max(...missing) + 1)) {
    return refusal(`${name} has ${total} missing slice(s), the largest gap ${between}`, `a slice every ${format(usual, 4)} mm`, "copy or export the whole series again");
  }
  const given = `${name} has uneven slice spacing (${format(least, 4)} to ${format(most, 4)} mm, the largest gap ${between})`;
  return refusal(given, "one slice spacing", "resample it to even slices first and give the NIfTI");
}

/** What a DICOM mask repeats of the series. */
function seriesOf(slices: Slice[]): DicomSeries {
  const { header } = slices[0]!;
  const common = Object.fromEntries(Object.entries(header).filter(([tag]) => KEPT_GROUPS.includes(tag.slice(0, 4))));
  const frames = slices.map((slice) => ({
    sopClass: text(slice.header, "SOPClassUID"),
    sopInstance: text(slice.header, "SOPInstanceUID"),
    frame: slice.frame,
    position: numbers(slice, "ImagePositionPatient", 3),
  }));
  return { common, frames };
}

// Pixels

/** Values, i fastest: as stored if nothing is rescaled, otherwise 16-bit integers if all fit, else float32. */
async function decoded(slices: Slice[], shape: Index, progress: (fraction: number) => void): Promise<VoxelArray> {
  const kinds = new Set(slices.map(({ header }) => [kindOf(header), ...scalingOf(header)].join()));
  const asStored = kinds.size === 1 && scalingOf(slices[0]!.header).join() === "1,0";
  const size = shape[0] * shape[1];
  let out: VoxelArray | null = null;
  let [file, dict]: [Blob | null, Elements] = [null, {}]; // a multi-frame file is read once for all of its frames
  for (const [k, slice] of slices.entries()) {
    if (file !== slice.file) [file, dict] = [slice.file, (await elementsOf(slice.name, slice.file)).dict];
    const pixels = await storedNumbers(slice, dict, size);
    out ??= asStored ? (new (pixels.constructor as Int16ArrayConstructor)(size * slices.length) as VoxelArray) : new Int16Array(size * slices.length);
    if (asStored) out.set(pixels, k * size);
    else out = withScaled(out, pixels, k * size, ...scalingOf(slice.header));
    progress((k + 1) / slices.length);
  }
  return out!;
}

/** Put rescaled pixels into `out` at `start`; it becomes float32 with the first value that is not a 16-bit integer. */
function withScaled(out: VoxelArray, pixels: VoxelArray, start: number, slope: number, intercept: number): VoxelArray {
  for (let n = 0; n < pixels.length; n++) {
    const value = pixels[n]! * slope + intercept;
    out[start + n] = value;
    if (out instanceof Int16Array && out[start + n] !== value) {
      out = Float32Array.from(out);
      out[start + n] = value;
    }
  }
  return out;
}

function scalingOf(header: Elements): [slope: number, intercept: number] {
  return [number(header, "RescaleSlope", 1), number(header, "RescaleIntercept", 0)];
}

function kindOf(header: Elements): NumberKind {
  const bits = number(header, "BitsAllocated", 16);
  return `${number(header, "PixelRepresentation", 0) ? "i" : "u"}${bits / 8}` as NumberKind;
}

/** The pixels of an image, row by row, not rescaled. */
async function storedNumbers(slice: Slice, dict: Elements, count: number): Promise<VoxelArray> {
  const { header, name, syntax } = slice;
  const bits = number(header, "BitsAllocated", 16);
  if (![8, 16, 32].includes(bits)) throw undecodable(slice, `${bits} bits for a pixel`);
  const stored = values(dict, "PixelData") as ArrayBuffer[];
  if (!stored.length) throw truncated(name, "it has no pixels where they are to be");
  const bytes = (count * bits) / 8;
  const frame = Math.max(0, slice.frame - 1);
  const isPacked = !UNPACKED.includes(syntax);
  let pixels: Uint8Array;
  if (isPacked) {
    const { unpackedFrame } = await import("./codecs");
    pixels = await unpackedFrame(slice, packedFrame(stored, frame, slice));
  } else pixels = new Uint8Array(stored[0]!).subarray(frame * bytes, (frame + 1) * bytes);
  if (pixels.length < bytes) throw truncated(name, `${bytes} bytes of pixels are declared, ${pixels.length} are there`);
  return isPacked ? numbersOf(kindOf(header), pixels, true, count) : usedBits(slice, numbersOf(kindOf(header), pixels, syntax !== BIG_ENDIAN, count), bits);
}

/** One frame's compressed bytes; without an offset table, each of several frames must be one fragment. */
function packedFrame(fragments: ArrayBuffer[], frame: number, slice: Slice): Uint8Array {
  const count = frameCount(slice.header);
  if (count > 1 && fragments.length !== count) throw truncated(slice.name, `its ${count} frames cannot be told apart`);
  const own = count > 1 ? [fragments[frame]!] : fragments;
  if (own.length === 1) return new Uint8Array(own[0]!);
  const whole = new Uint8Array(own.reduce((sum, part) => sum + part.byteLength, 0));
  let at = 0;
  for (const part of own) {
    whole.set(new Uint8Array(part), at);
    at += part.byteLength;
  }
  return whole;
}

/** The pixels, reduced in place to the bits stored; those above and below do not count (PS3.5 8.1.1). */
function usedBits({ header, name }: Slice, pixels: VoxelArray, bits: number): VoxelArray {
  const used = number(header, "BitsStored", bits);
  const high = number(header, "HighBit", used - 1);
  if (!(used > 0 && used <= high + 1 && high < bits)) throw truncated(name, `${used} bits of ${bits}, the highest of them bit ${high}`);
  if (used === bits) return pixels;
  const isSigned = number(header, "PixelRepresentation", 0) === 1;
  const [up, down] = [31 - high, 32 - used];
  for (let n = 0; n < pixels.length; n++) pixels[n] = isSigned ? (pixels[n]! << up) >> down : (pixels[n]! << up) >>> down;
  return pixels;
}

export function undecodable({ name, syntax }: Slice, what = "") {
  const given = `the pixels of ${name} cannot be decoded (${what || `transfer syntax ${syntax}`})`;
  return refusal(given, "undamaged pixels in a common transfer syntax", "export the series again, uncompressed");
}
