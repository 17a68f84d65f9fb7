// Reads and writes NIfTI-1 and NIfTI-2 (.nii, .nii.gz, .hdr with .img). Where the voxels lie is decided as in
// voxsam.io.nifti: by the sform if its code is above 0, else the qform, else pixdim with axes to R, A, S; what
// contradicts it becomes a remark. The header is parsed here: the affine that NIfTI libraries give has other rules.
import type { Index } from "../../engine/engine";
import type { NiftiPlace, Volume } from "../volume";
import { by, checkShape, colour, cross, determinant, format, numbersOf, scaled, truncated, type NumberKind } from "./checks";
import { refusal } from "../refusal";

const KINDS: Record<number, NumberKind> = { 2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8" };
const [COLOURS, COMPLEX] = [[128, 2304, 511], [32, 1792, 2048]];
const UNIT_MM: Record<number, number> = { 1: 1000, 3: 1e-3 }; // metre, micrometre; all others count as mm
const HEADER_BYTES = 348; // of NIfTI-1; its voxels begin four bytes after it
const HEADER_2_BYTES = 540;
const [SAME_SIZE, SAME_PLACE_MM] = [0.01, 1]; // larger differences are worth a remark
const QFORM_TOLERANCE = 0.1; // of a voxel
const LONGEST_NIFTI1_AXIS = 32767;
const SLACK = [3 * 2 ** -23, 3 * 2 ** -52]; // how much longer than 1 a quaternion may be by rounding

/** The fields that VoxSAM reads. */
interface Header {
  version: 1 | 2;
  isPair: boolean;
  littleEndian: boolean;
  dim: number[];
  datatype: number;
  start: number; // of the voxels
  slope: number;
  intercept: number;
  place: NiftiPlace;
}

/** Whether bytes begin with a NIfTI header. */
export function isNifti(bytes: Uint8Array): boolean {
  return versionOf(bytes) !== null;
}

function versionOf(bytes: Uint8Array): { version: 1 | 2; isPair: boolean } | null {
  const mark = (at: number) => String.fromCharCode(...bytes.subarray(at, at + 3));
  if (mark(344) === "n+1" || mark(344) === "ni1") return { version: 1, isPair: mark(344) === "ni1" };
  if (mark(4) === "n+2" || mark(4) === "ni2") return { version: 2, isPair: mark(4) === "ni2" };
  return null;
}

/** Read a scan from the bytes of a file or, for the header of a pair, from those of `voxels` (null: it is missing). */
export function readNifti(name: string, bytes: Uint8Array, voxels: Uint8Array | null): Volume {
  const header = readHeader(name, bytes);
  const shape = checkShape(name, shapeOf(name, header.dim));
  const kind = KINDS[header.datatype];
  if (COLOURS.includes(header.datatype)) throw colour(name);
  if (COMPLEX.includes(header.datatype)) throw refusal(`${name} has complex voxels`, "real numbers", "save its magnitude");
  if (!kind) throw refusal(`${name} has voxels of no known type`, "integers or floats", "export it again");
  if (header.isPair && !voxels) {
    throw refusal(`${name} is the header of a .hdr/.img pair, and its .img is not beside it`, "both files", "choose both, or convert the pair to .nii.gz");
  }
  const { affine, remarks } = placeOf(name, header.place);
  const scaling = scalingOf(name, header, remarks);
  const count = shape[0] * shape[1] * shape[2];
  const size = count * Number(kind[1]);
  const source = header.isPair ? voxels! : bytes;
  let { start } = header;
  if (!header.isPair && start <= HEADER_BYTES) {
    start = source.length >= HEADER_BYTES + 4 + size ? HEADER_BYTES + 4 : HEADER_BYTES;
    remarks.push(`${name} does not say where its voxels begin; read from behind its header`);
  }
  if (source.length - start < size) {
    throw truncated(name, `its header declares ${by(shape)} voxels of ${kind[1]} bytes, it has ${source.length} bytes`);
  }
  const stored = numbersOf(kind, source.subarray(start, start + size), header.littleEndian, count);
  const data = scaled(stored, ...scaling);
  return { data, shape, affine, modality: "", remarks, slope: 1, intercept: 0, dicom: null, name, nifti: { ...header.place, shape } };
}

function readHeader(name: string, bytes: Uint8Array): Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const known = versionOf(bytes);
  const isAnalyze = !known && /\.(hdr|img)(\.gz)?$/i.test(name) && bytes.length >= HEADER_BYTES;
  if (!known && !isAnalyze) throw refusal(`${name} does not hold a NIfTI image`, "NIfTI-1 or NIfTI-2", "check it, or export it again");
  const { version, isPair } = known ?? { version: 1, isPair: true };
  const length = version === 1 ? HEADER_BYTES : HEADER_2_BYTES;
  if (bytes.length < length) throw truncated(name, "its header cannot be read to its end");
  const littleEndian = view.getInt32(0, true) === length || (view.getInt32(0, false) !== length && view.getInt16(40, true) <= 7);
  const list = <T>(count: number, at: number, step: number, get: (at: number) => T) => Array.from({ length: count }, (_, n) => get(at + n * step));
  const [i16, i32] = [(at: number) => view.getInt16(at, littleEndian), (at: number) => view.getInt32(at, littleEndian)];
  const [f32, f64] = [(at: number) => view.getFloat32(at, littleEndian), (at: number) => view.getFloat64(at, littleEndian)];
  const i64 = (at: number) => Number(view.getBigInt64(at, littleEndian));
  const first = version === 1;
  const [real, step] = first ? [f32, 4] : [f64, 8];
  const reals = (count: number, at: number) => list(count, at, step, real);
  const dim = first ? list(8, 40, 2, i16) : list(8, 16, 8, i64);
  const start = first ? f32(108) : i64(168);
  const place: NiftiPlace = {
    version,
    shape: dim.slice(1, 4) as Index,
    pixdim: first ? reals(4, 76) : reals(4, 104),
    units: isAnalyze ? 2 : first ? view.getUint8(123) : i32(500),
    qform: isAnalyze ? 0 : first ? i16(252) : i32(344),
    sform: isAnalyze ? 0 : first ? i16(254) : i32(348),
    quaternion: reals(3, first ? 256 : 352),
    offset: reals(3, first ? 268 : 376),
    rows: [0, 1, 2].map((row) => reals(4, (first ? 280 : 400) + row * 4 * step)),
  };
  const least = isPair || start === 0 || start === HEADER_BYTES ? 0 : length + 4;
  if (!(start >= least && start < 2 ** 31)) throw refusal(`${name} has a broken NIfTI header (vox_offset)`, "a valid header", "export it again");
  return {
    version, isPair, littleEndian, dim, place, start: Math.trunc(start),
    datatype: first ? i16(70) : i16(12),
    slope: first ? f32(112) : f64(176),
    intercept: isAnalyze ? 0 : first ? f32(116) : f64(184),
  };
}

/** The lengths of the axes; after the third, a length of 0 counts as 1. */
function shapeOf(name: string, [count, ...lengths]: number[]): number[] {
  if (!(count! >= 1 && count! <= 7)) throw refusal(`${name} has a broken NIfTI header (dim[0] is ${count})`, "a valid header", "export it again");
  return lengths.slice(0, count).map((length, axis) => (axis > 2 ? Math.max(1, length) : length));
}

function scalingOf(name: string, { slope, intercept }: Header, remarks: string[]): [slope: number, intercept: number] {
  if (!Number.isFinite(slope)) remarks.push(`${name} has a slope (scl_slope) of ${slope}; read without scaling`);
  if (slope === 0 || !Number.isFinite(slope)) return [1, 0];
  if (!Number.isFinite(intercept)) throw refusal(`${name} has a broken NIfTI header (scl_inter)`, "a valid header", "export it again");
  return [slope, intercept];
}

const unitOf = (place: NiftiPlace) => UNIT_MM[place.units & 7] ?? 1;

/** The affine (4 x 4, index to RAS+ mm) by the form that wins, and remarks on what contradicts it. */
function placeOf(name: string, place: NiftiPlace): { affine: number[][]; remarks: string[] } {
  const [, ...pixdim] = place.pixdim;
  const positive = pixdim.every((mm) => Number.isFinite(mm) && mm > 0);
  const factor = unitOf(place);
  const remarks: string[] = [];
  if (!positive && place.sform <= 0) {
    throw refusal(`${name} has a spacing (pixdim) of ${by(pixdim.map((mm) => format(mm, 4)) as never)}`, "positive spacing", "repair its header");
  }
  const affine = affineOf(place);
  if (!affine) throw refusal(`${name} has an impossible qform (its quaternion is longer than 1)`, "a rotation", "repair its header");
  if (factor !== 1) remarks.push(`${name} gives lengths in ${factor === 1000 ? "metres" : "micrometres"}; converted to mm`);
  const sizes = [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((row) => affine[row]![axis]!)));
  const listed = (values: number[]) => values.map((mm) => format(mm, 4)).join(" x ");
  const declared = pixdim.map((mm) => mm * factor);
  if (place.sform > 0 && !sizes.every((mm, axis) => Math.abs(mm - declared[axis]!) <= SAME_SIZE * Math.abs(declared[axis]!))) {
    const ratio = declared.reduce((product, mm, axis) => (product * mm) / sizes[axis]!, 1);
    const change = positive && Math.min(...sizes) > 0 ? `; by pixdim, as ITK and FSL read it, volumes are ${format(ratio, 3)} times as large` : "";
    remarks.push(`${name} contradicts itself: its sform says voxels of ${listed(sizes)} mm, its pixdim ${listed(declared)}; read by the sform${change}`);
  }
  if (place.sform > 0 && place.sform === place.qform && positive) remarks.push(...otherPlace(name, place, affine));
  if (Math.max(place.sform, place.qform) <= 0) {
    remarks.push(`${name} does not say how the patient lies (neither sform nor qform); read with its axes to R, A, S: left and right may be exchanged`);
  }
  return { affine, remarks };
}

function affineOf(place: NiftiPlace): number[][] | null {
  if (place.sform > 0) return inMm(place.rows, place);
  if (place.qform > 0) return quaternionAffine(place);
  return inMm([0, 1, 2].map((row) => [0, 1, 2, 3].map((axis) => (axis === row ? place.pixdim[row + 1]! : 0))), place);
}

const inMm = (rows: number[][], place: NiftiPlace) => [...rows.map((row) => row.map((value) => value * unitOf(place))), [0, 0, 0, 1]];

/** The affine by the qform; null if its quaternion is not a rotation. */
function quaternionAffine(place: NiftiPlace): number[][] | null {
  const [b, c, d] = place.quaternion as [number, number, number];
  const rest = 1 - b * b - c * c - d * d;
  if (!(rest > -SLACK[place.version - 1]!)) return null;
  const a = Math.sqrt(Math.max(0, rest));
  const turn = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const sign = [1, 1, place.pixdim[0] === -1 ? -1 : 1]; // any other value counts as 1
  return inMm(turn.map((row, n) => [...row.map((value, axis) => value * sign[axis]! * place.pixdim[axis + 1]!), place.offset[n]!]), place);
}

/** A remark if the qform puts the corners of the image elsewhere. */
function otherPlace(name: string, place: NiftiPlace, affine: number[][]): string[] {
  const other = quaternionAffine(place);
  if (!other) return [`${name} has an impossible qform; read by its sform`];
  const last = place.shape.map((n) => Math.max(1, n) - 1);
  const apart = cornersApart(affine, other, last);
  const extent = Math.max(...[0, 1, 2].map((row) => Math.abs(last.reduce((sum, n, axis) => sum + affine[row]![axis]! * n, 0))));
  if (!(apart > Math.max(SAME_PLACE_MM, SAME_SIZE * extent))) return [];
  return [`${name} contradicts itself: sform and qform lie up to ${format(apart, 3)} mm apart; read by the sform`];
}

/** The farthest that a corner of the image moves along an axis of the world, mm. */
function cornersApart(a: number[][], b: number[][], last: number[]): number {
  let farthest = 0;
  for (let corner = 0; corner < 8; corner++) {
    const index = [...last.map((n, axis) => ((corner >> axis) & 1 ? n : 0)), 1];
    for (let row = 0; row < 3; row++) {
      farthest = Math.max(farthest, Math.abs(index.reduce((sum, n, axis) => sum + (a[row]![axis]! - b[row]![axis]!) * n, 0)));
    }
  }
  return farthest;
}

// Writing

/**
 * A file of uint8 labels (i fastest) on a scan's grid, not compressed. A NIfTI scan's version, forms, codes and units
 * are repeated, so that the mask matches the scan whatever rules a program follows; for other scans the sform is the
 * affine, and so is the qform if the axes are practically perpendicular.
 */
export function niftiOf(labels: Uint8Array, scan: Pick<Volume, "shape" | "affine" | "nifti">): Uint8Array<ArrayBuffer> {
  const place = scan.nifti ?? placeFor(scan.shape, scan.affine);
  const first = place.version === 1;
  const length = first ? HEADER_BYTES : HEADER_2_BYTES;
  const file = new Uint8Array(length + 4 + labels.length);
  const view = new DataView(file.buffer);
  const step = first ? 4 : 8;
  const real = (at: number, ...values: number[]) =>
    values.forEach((value, n) => (first ? view.setFloat32(at + 4 * n, value, true) : view.setFloat64(at + 8 * n, value, true)));
  const whole = (at: number, value: number) => (first ? view.setInt16(at, value, true) : view.setInt32(at, value, true));
  view.setInt32(0, length, true);
  const dim = [3, ...place.shape, 1, 1, 1, 1];
  dim.forEach((n, axis) => (first ? view.setInt16(40 + 2 * axis, n, true) : view.setBigInt64(16 + 8 * axis, BigInt(n), true)));
  for (const [at, value] of [[first ? 70 : 12, 2], [first ? 72 : 14, 8]] as const) view.setInt16(at, value, true); // uint8
  real(first ? 76 : 104, ...place.pixdim, 1, 1, 1, 1);
  if (first) view.setFloat32(108, length + 4, true);
  else view.setBigInt64(168, BigInt(length + 4), true);
  real(first ? 112 : 176, 1, 0);
  if (first) view.setUint8(123, place.units);
  else view.setInt32(500, place.units, true);
  whole(first ? 252 : 344, place.qform);
  whole(first ? 254 : 348, place.sform);
  real(first ? 256 : 352, ...place.quaternion);
  real(first ? 268 : 376, ...place.offset);
  place.rows.forEach((row, n) => real((first ? 280 : 400) + 4 * step * n, ...row));
  const mark = first ? "n+1\0" : "n+2\0\r\n\x1a\n";
  for (let n = 0; n < mark.length; n++) file[(first ? 344 : 4) + n] = mark.charCodeAt(n);
  file.set(labels, length + 4);
  return file;
}

/** The fields for a grid that no NIfTI header described. */
function placeFor(shape: Index, affine: number[][]): NiftiPlace {
  const columns = [0, 1, 2].map((axis) => [0, 1, 2].map((row) => affine[row]![axis]!));
  const spacing = columns.map((column) => Math.hypot(...column));
  const turn = nearestRotation(columns.map((column, axis) => column.map((mm) => mm / spacing[axis]!)));
  const left = determinant(turn) < 0;
  const version = Math.max(...shape) > LONGEST_NIFTI1_AXIS ? 2 : 1;
  const middle = shape.map((n) => (n - 1) / 2);
  const centre = [0, 1, 2].map((row) => middle.reduce((sum, n, axis) => sum + affine[row]![axis]! * n, affine[row]![3]!));
  const offset = centre.map((mm, row) => middle.reduce((sum, n, axis) => sum - turn[axis]![row]! * spacing[axis]! * n, mm));
  const rotation = turn.map((column, axis) => (axis === 2 && left ? column.map((mm) => -mm) : column));
  const place: NiftiPlace = {
    version, shape, units: 2, qform: 1, sform: 1,
    pixdim: [left ? -1 : 1, ...spacing],
    quaternion: quaternionOf(rotation),
    offset,
    rows: affine.slice(0, 3).map((row) => [...row]),
  };
  const moved = cornersApart(affine, quaternionAffine(place)!, shape.map((n) => n - 1)) / Math.min(...spacing);
  return moved <= QFORM_TOLERANCE ? place : { ...place, qform: 0 };
}

/** The orthogonal matrix nearest to one (3 columns), by Newton's iteration of the polar decomposition (Higham 1986). */
function nearestRotation(columns: number[][]): number[][] {
  let now = columns;
  for (let n = 0; n < 40; n++) {
    const volume = determinant(now);
    // the columns of the inverse's transpose are cross products of these
    const inverse = [0, 1, 2].map((axis) => cross(now[(axis + 1) % 3]!, now[(axis + 2) % 3]!).map((value) => value / volume));
    const next = now.map((column, axis) => column.map((value, row) => (value + inverse[axis]![row]!) / 2));
    const change = Math.max(...next.flatMap((column, axis) => column.map((value, row) => Math.abs(value - now[axis]![row]!))));
    now = next;
    if (change < 1e-15) break;
  }
  return now;
}

/** b, c, d of the unit quaternion (a not negative) of a rotation (3 columns), computed from its largest component. */
function quaternionOf([x, y, z]: number[][]): number[] {
  const r = (row: number, column: number) => [x, y, z][column]![row]!;
  const squares = [1 + r(0, 0) + r(1, 1) + r(2, 2), 1 + r(0, 0) - r(1, 1) - r(2, 2), 1 - r(0, 0) + r(1, 1) - r(2, 2), 1 - r(0, 0) - r(1, 1) + r(2, 2)];
  const largest = squares.indexOf(Math.max(...squares));
  const root = 2 * Math.sqrt(squares[largest]!);
  const products = [
    [r(2, 1) - r(1, 2), r(0, 2) - r(2, 0), r(1, 0) - r(0, 1)], // a with b, c, d
    [r(1, 0) + r(0, 1), r(0, 2) + r(2, 0), r(2, 1) + r(1, 2)], // bc, bd, cd
  ] as [number[], number[]];
  const [ab, ac, ad] = products[0].map((value) => value / root) as [number, number, number];
  const [bc, bd, cd] = products[1].map((value) => value / root) as [number, number, number];
  const own = root / 4;
  const quaternion = [[own, ab, ac, ad], [ab, own, bc, bd], [ac, bc, own, cd], [ad, bd, cd, own]][largest]!;
  return quaternion.slice(1).map((value) => (quaternion[0]! < 0 ? -value : value));
}
