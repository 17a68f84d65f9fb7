// Checks of a file's voxels, and of the kind of image they are, as in voxsam.io.checks and with the same messages.
import type { Index } from "../../engine/engine";
import type { Volume, VoxelArray } from "../volume";
import { refusal } from "../refusal";

const MAX_VOXELS = 300e6; // 512 x 512 x 1144: the page and the engine have a copy each, at most float32
const SPACINGS_MM = [1e-4, 200] as const;
const FARTHEST_MM = 1e6; // of a first voxel from the origin
const MAX_PADDING = 0.5; // of a scan's voxels that may be NaN
const [LABEL_LIMIT, HIGHEST_LABEL, LABEL_PLATEAU] = [16, 255, 0.6];
const CT_MINIMUM_HU = -500; // only CT has whole numbers that far below zero

export function truncated(name: string, detail: string) {
  return refusal(`${name} is truncated or damaged (${detail})`, "a complete file", "copy or export it again");
}

export function colour(name: string) {
  return refusal(`${name} has several channels (RGB or vector)`, "one number per voxel", "save one channel by itself");
}

/** The three lengths of a shape, without trailing axes of length one. Throws for more or fewer, or too many voxels. */
export function checkShape(name: string, shape: readonly number[]): Index {
  if (!shape.length || shape.some((n) => !(n >= 1))) {
    throw refusal(`${name} has shape ${by(shape)}`, "at least one voxel along each axis", "export the scan again");
  }
  const axes = [...shape];
  while (axes.length > 3 && axes.at(-1) === 1) axes.pop();
  if (axes.length < 3) throw refusal(`${name} is a ${axes.length}D image (${by(axes)})`, "a 3D scan", "give the whole stack of slices");
  if (axes.length > 3) throw refusal(`${name} is a ${axes.length}D image (${by(axes)})`, "a 3D scan", "save one of its volumes by itself");
  const voxels = axes.reduce((product, n) => product * n, 1);
  if (voxels > MAX_VOXELS) {
    throw refusal(`${name} declares ${by(axes)} voxels`, `at most ${MAX_VOXELS.toLocaleString("en")} voxels in a browser`, "use voxsam serve, or crop the scan");
  }
  return axes as Index;
}

/**
 * Check an affine, whose columns are the steps between voxels in mm. Throws if axes coincide, or for a spacing or a
 * position that no scanner makes: the header is damaged or in another unit.
 */
export function checkAffine(name: string, affine: number[][]): void {
  const columns = [0, 1, 2].map((axis) => [0, 1, 2].map((row) => affine[row]![axis]!));
  const spacing = columns.map((column) => Math.hypot(...column));
  const listed = spacing.map((mm) => format(mm, 4)).join(" x ");
  if (!affine.flat().every(Number.isFinite)) throw refusal(`${name} has an affine with numbers that are not finite`, "finite numbers", "repair its header");
  const [a, b, c] = columns.map((column, axis) => column.map((mm) => mm / spacing[axis]!)) as [number[], number[], number[]];
  if (!(Math.abs(determinant([a, b, c])) >= 1e-3)) {
    throw refusal(`${name} has a singular affine (axes that coincide)`, "three axes", "repair its header");
  }
  if (Math.min(...spacing) < SPACINGS_MM[0] || Math.max(...spacing) > SPACINGS_MM[1]) {
    throw refusal(`${name} has a spacing of ${listed} mm`, "0.0001 to 200 mm", "repair its header");
  }
  const far = Math.max(...affine.slice(0, 3).map((row) => Math.abs(row[3]!)));
  if (far > FARTHEST_MM) throw refusal(`${name} lies ${format(far, 4)} mm from the origin`, `at most ${FARTHEST_MM} mm`, "repair its header");
}

export function cross(a: readonly number[], b: readonly number[]): number[] {
  return [0, 1, 2].map((n) => a[(n + 1) % 3]! * b[(n + 2) % 3]! - a[(n + 2) % 3]! * b[(n + 1) % 3]!);
}

export function dot(a: readonly number[], b: readonly number[]): number {
  return a.reduce((sum, value, n) => sum + value * b[n]!, 0);
}

/** The determinant of a matrix, given as three columns. */
export function determinant([a, b, c]: readonly (readonly number[])[]): number {
  return dot(a!, cross(b!, c!));
}

/** A 4 x 4 affine to RAS+ mm from the three steps between voxels and the first voxel's centre, LPS mm (DICOM, ITK). */
export function fromLps(steps: readonly (readonly number[])[], origin: readonly number[]): number[][] {
  const sign = [-1, -1, 1];
  const rows = sign.map((s, row) => [...steps.map((step) => s * step[row]!), s * origin[row]!]);
  return [...rows, [0, 0, 0, 1]];
}

/** Stored numbers as values: integers if slope and intercept lead to 16-bit integers, otherwise float32 as in NumPy. */
export function scaled(stored: VoxelArray, slope: number, intercept: number): VoxelArray {
  const isWhole = !(stored instanceof Float32Array || stored instanceof Float64Array);
  if (isWhole && slope === 1 && intercept === 0) return stored;
  if (isWhole && Number.isInteger(slope) && Number.isInteger(intercept)) {
    const [low, high] = rangeOf(stored).map((value) => value * slope + intercept).sort((a, b) => a - b) as [number, number];
    if (low >= -32768 && high <= 32767) return Int16Array.from(stored as Int16Array, (value) => value * slope + intercept);
  }
  const values = stored instanceof Float32Array ? stored : Float32Array.from(stored as Float64Array);
  const [m, b] = [Math.fround(slope), Math.fround(intercept)];
  if (m !== 1) for (let n = 0; n < values.length; n++) values[n]! *= m;
  if (b !== 0) for (let n = 0; n < values.length; n++) values[n]! += b;
  return values;
}

function rangeOf(data: VoxelArray): [low: number, high: number] {
  let [low, high] = [Infinity, -Infinity];
  for (let n = 0; n < data.length; n++) {
    const value = data[n]!;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** The volume as a scan: non-finite voxels filled, modality and remarks set. Throws if it is not a scan. */
export function asScan(volume: Volume): Volume {
  const { name } = volume;
  checkAffine(name, volume.affine);
  const { data, remark } = withoutNan(name, volume.data);
  if (Math.min(...volume.shape) < 2) throw refusal(`${name} is a 2D image (${by(volume.shape)})`, "a 3D scan", "give the whole stack of slices");
  const [low, high] = rangeOf(data);
  if (low === high) throw refusal(`all voxels of ${name} are ${format(low)}`, "an image with contrast", "check that it is the right file");
  const whole = isWhole(data);
  if (low >= 0 && whole && (high < LABEL_LIMIT || isPlateaus(data, volume.shape, high))) {
    throw refusal(
      `${name} has no voxels but the whole numbers ${format(low)} to ${format(high)}: this looks like a label map`,
      "a scan (CT or MR intensities)",
      "give the scan that the labels belong to",
    );
  }
  const doubt = volume.modality === "CT" ? notHounsfield(data, volume.shape) : "";
  const remarks = [...volume.remarks, ...(remark ? [remark] : []), ...(doubt ? [`${name} calls itself a CT, but ${doubt}`] : [])];
  return { ...volume, data, remarks: remarks.map(oneLine), modality: volume.modality || (low <= CT_MINIMUM_HU && whole ? "CT" : "") };
}

function withoutNan(name: string, data: VoxelArray): { data: VoxelArray; remark: string } {
  if (!(data instanceof Float32Array || data instanceof Float64Array)) return { data, remark: "" };
  let [count, low, high] = [0, Infinity, -Infinity];
  for (let n = 0; n < data.length; n++) {
    const value = data[n]!;
    if (!Number.isFinite(value)) count++;
    else [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  if (!count) return { data, remark: "" };
  if (count > MAX_PADDING * data.length) {
    throw refusal(`${name} has ${count} NaN or infinite voxels of ${data.length}`, "finite numbers in most of the scan", "replace them (by air, say)");
  }
  const filled = data.map((value) => (Number.isFinite(value) ? value : value === Infinity ? high : low));
  const remark = `${name} has ${count} NaN or infinite voxels; read as its lowest value, ${format(low)} (infinite: ${format(high)})`;
  return { data: filled, remark };
}

/** Why the values of a CT cannot be Hounsfield units, as half a sentence, or "". Looks at a sample of voxels. */
function notHounsfield(data: VoxelArray, shape: Index): string {
  const [ni, nj, nk] = shape;
  const [di, dj, dk] = shape.map((n) => Math.max(1, Math.floor(n / 27))) as Index;
  const some: number[] = [];
  for (let k = 0; k < nk; k += dk) for (let j = 0; j < nj; j += dj) for (let i = 0; i < ni; i += di) some.push(data[(k * nj + j) * ni + i]!);
  const [low, high] = rangeOf(Float64Array.from(some));
  if (low <= CT_MINIMUM_HU && high - low > 300) return "";
  if (high - low <= 2) return `its values lie between ${format(low, 3)} and ${format(high, 3)}: they were scaled and are no Hounsfield units`;
  if (low >= 0 && high <= 255 && some.every(Number.isInteger)) {
    return `its values are whole numbers from ${format(low)} to ${format(high)}: 8 bits of a window and no Hounsfield units`;
  }
  const soft = some.filter((value) => value > 900 && value < 1200).sort((a, b) => a - b);
  if (low >= -50 && soft.length > 0.05 * some.length && (soft[Math.floor(soft.length / 2)]! + soft[Math.ceil(soft.length / 2) - 1]!) / 2 > 950) {
    return `its lowest value is ${format(low)}: an offset is missing; with 1024 subtracted it would be Hounsfield units`;
  }
  return low > -50 ? `its lowest value is ${format(low)}, where air has -1000 and fat -100: these are no Hounsfield units` : "";
}

/** Whether neighbours along i that are not both 0 are mostly equal, in every eighth slice. */
function isPlateaus(data: VoxelArray, [ni, nj, nk]: Index, high: number): boolean {
  if (high > HIGHEST_LABEL) return false;
  let [either, equal] = [0, 0];
  for (let k = 0; k < nk; k += 8) {
    for (let row = k * nj * ni; row < (k + 1) * nj * ni; row += ni) {
      for (let n = row; n < row + ni - 1; n++) {
        const [a, b] = [data[n]!, data[n + 1]!];
        if (a === 0 && b === 0) continue;
        either++;
        if (a === b) equal++;
      }
    }
  }
  return equal > LABEL_PLATEAU * Math.max(1, either);
}

function isWhole(data: VoxelArray): boolean {
  return !(data instanceof Float32Array || data instanceof Float64Array) || data.every((value: number) => Number.isInteger(value));
}

/** A number with at most `digits` digits, as Python's format "g" writes it. */
export function format(value: number, digits = 6): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const exponent = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(digits)))));
  if (exponent >= -4 && exponent < digits) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace(/e([+-])(\d)$/, "e$10$2");
}

export function by(shape: readonly number[]): string {
  return shape.join(" x ");
}

/** The text in one line, without control characters: headers may hold anything. */
export function oneLine(text: string): string {
  return text.split(/\s+/).join(" ").replace(/\p{C}/gu, "\ufffd");
}

/** The bytes of a file, unpacked if they are gzipped. Throws EngineError for a stream that is damaged or cut off. */
export async function unpacked(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  return bytes[0] === 0x1f && bytes[1] === 0x8b ? inflated(name, bytes, "gzip") : bytes;
}

export async function inflated(name: string, bytes: Uint8Array<ArrayBuffer>, kind: CompressionFormat): Promise<Uint8Array<ArrayBuffer>> {
  try {
    return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream(kind))).arrayBuffer());
  } catch (error) {
    if (error instanceof RangeError) throw refusal(`${name} needs more memory than this tab has`, "a smaller scan", "use voxsam serve, or crop it");
    throw truncated(name, "its voxels end too early or do not match their checksum");
  }
}

export type NumberKind = "i1" | "u1" | "i2" | "u2" | "i4" | "u4" | "i8" | "u8" | "f4" | "f8";

/** Numbers of a kind, copied from bytes in either order; 64-bit integers as float64. */
export function numbersOf(kind: NumberKind, bytes: Uint8Array, littleEndian: boolean, count: number): VoxelArray {
  const size = Number(kind[1]);
  const copy = bytes.slice(0, count * size);
  if (!littleEndian && size > 1) {
    for (let n = 0; n < copy.length; n += size) copy.subarray(n, n + size).reverse();
  }
  const { buffer } = copy;
  switch (kind) {
    case "i1": return new Int8Array(buffer);
    case "u1": return copy;
    case "i2": return new Int16Array(buffer);
    case "u2": return new Uint16Array(buffer);
    case "i4": return new Int32Array(buffer);
    case "u4": return new Uint32Array(buffer);
    case "i8": return Float64Array.from(new BigInt64Array(buffer), Number);
    case "u8": return Float64Array.from(new BigUint64Array(buffer), Number);
    case "f4": return new Float32Array(buffer);
    case "f8": return new Float64Array(buffer);
  }
}
