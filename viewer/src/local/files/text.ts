// Reads NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd): text headers with the voxels after or beside them. As in
// voxsam.io.itk, the rules are ITK's: a space that is not named is LPS; axes of colours or vectors are refused.
import type { NamedFile } from "../../engine/engine";
import type { Volume, VoxelArray } from "../volume";
import { checkAffine, checkShape, colour, fromLps, inflated, numbersOf, truncated, type NumberKind } from "./checks";
import { refusal } from "../refusal";

const MAX_HEADER_BYTES = 2 ** 20;
const MAX_AXES = 16;
const MAX_FILES = 20_000;
const UNITS_MM: Record<string, number> = { mm: 1, um: 1e-3, "µm": 1e-3, micron: 1e-3, microns: 1e-3, cm: 10, m: 1000, meter: 1000 };
const METAIMAGE_TYPES: Record<string, NumberKind> = {
  met_char: "i1", met_uchar: "u1", met_short: "i2", met_ushort: "u2", met_int: "i4", met_uint: "u4", met_long: "i4", met_ulong: "u4",
  met_long_long: "i8", met_ulong_long: "u8", met_float: "f4", met_double: "f8",
};
const NRRD_TYPES: [NumberKind, string[]][] = [
  ["i1", ["signed char", "int8", "int8_t"]],
  ["u1", ["uchar", "unsigned char", "uint8", "uint8_t"]],
  ["i2", ["short", "short int", "signed short", "signed short int", "int16", "int16_t"]],
  ["u2", ["ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"]],
  ["i4", ["int", "signed int", "int32", "int32_t"]],
  ["u4", ["uint", "unsigned int", "uint32", "uint32_t"]],
  ["i8", ["longlong", "long long", "long long int", "signed long long", "int64", "int64_t"]],
  ["u8", ["ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"]],
  ["f4", ["float"]],
  ["f8", ["double"]],
];
const ENCODINGS: Record<string, Encoding> = { raw: "raw", gzip: "gzip", gz: "gzip", hex: "hex", txt: "text", text: "text", ascii: "text" };
const SPACES: Record<string, number[]> = {
  "left-posterior-superior": [1, 1, 1], lps: [1, 1, 1], "right-anterior-superior": [-1, -1, 1], ras: [-1, -1, 1],
  "left-anterior-superior": [1, -1, 1], las: [1, -1, 1],
};
const RANGE_KINDS = ["list", "vector", "point", "normal", "covariant-vector", "scalar", "complex", "quaternion", "???", "none"];

type Encoding = "raw" | "gzip" | "text" | "hex";

/** How the voxels are stored: in these files one after another, from byte `start` (-1: at the end of the file). */
interface Stored {
  files: Uint8Array<ArrayBuffer>[];
  start: number;
  shape: number[];
  kind: NumberKind;
  littleEndian: boolean;
  encoding: Encoding;
}

/** The `key: value` lines of a header that is `size` bytes long, keys in lower case. */
class Header {
  constructor(
    readonly name: string,
    readonly bytes: Uint8Array<ArrayBuffer>,
    readonly fields: Map<string, string>,
    readonly size: number,
    private readonly below: string[], // lines after it
    private readonly beside: NamedFile[],
  ) {}

  get = (key: string) => this.fields.get(key);

  broken(key: string, expected: string) {
    const value = (this.get(key) ?? "").slice(0, 60);
    return refusal(`${this.name} has the header field '${key}' with '${value}'`, expected, "repair its header or export it again");
  }

  whole(key: string, missing = ""): number[] {
    const words = wordsOf(this.get(key) ?? missing);
    if (!words.every((word) => /^[+-]?\d{1,15}$/.test(word))) throw this.broken(key, "whole numbers");
    return words.map(Number);
  }

  /** The first of several fields that mean the same; `missing` if there is none. */
  first(keys: string[], missing: number[]): number[] {
    const key = keys.find((one) => this.fields.has(one));
    if (!key) return missing;
    const values = numbersIn(this.get(key)!);
    if (values.length !== missing.length || values.some(Number.isNaN)) throw this.broken(key, `${missing.length} numbers`);
    return values;
  }

  /** The data files: one, a LIST of them in the lines below, or a pattern with first, last and step. */
  async dataFiles(where: string): Promise<Uint8Array<ArrayBuffer>[]> {
    const pattern = /^([^%]*)%(0?)(\d?)d([^%]*?)\s+(\d{1,6})\s+(\d{1,6})(?:\s+(\d{1,4}))?(?:\s+\d)?$/.exec(where);
    let names = [where];
    if (/^list(\s+\d)?$/i.test(where)) names = this.below.slice(0, MAX_FILES).map((line) => line.trim()).filter(Boolean);
    else if (pattern) {
      const [, before, zero, width, after, low, high, step] = pattern;
      names = [];
      for (let n = Number(low); n <= Number(high) && names.length < MAX_FILES; n += Math.max(1, Number(step ?? 1))) {
        names.push(`${before}${String(n).padStart(Number(width || 0), zero ? "0" : " ")}${after}`);
      }
    }
    if (!names.length) throw truncated(this.name, "it names no file of its voxels");
    return Promise.all(names.map((word) => this.besideIt(word)));
  }

  private async besideIt(word: string): Promise<Uint8Array<ArrayBuffer>> {
    const bare = word.replace(/^\.[\\/]/, "");
    if (!bare || /[\\/]/.test(bare)) {
      throw refusal(`${this.name} says that its voxels lie in '${word.slice(0, 200)}'`, "a file in the same folder", "put it beside the header and name it without a folder");
    }
    const found = this.beside.find(({ name }) => name.split("/").at(-1) === bare);
    if (!found) throw refusal(`the voxels of ${this.name} in '${bare}', which is not there`, "that file beside its header", "choose both files");
    return new Uint8Array(await found.file.arrayBuffer());
  }
}

/** The fields of header lines; the first of several with the same key counts, lines without a separator do not. */
function fieldsOf(lines: string[], separator: RegExp): Map<string, string> {
  const fields = new Map<string, string>();
  for (const line of lines) {
    const at = line.search(separator);
    const key = line.slice(0, Math.max(0, at)).trim().toLowerCase();
    if (at >= 0 && !fields.has(key)) fields.set(key, line.slice(at + 1).trim());
  }
  return fields;
}

const wordsOf = (text: string) => text.split(/\s+/).filter(Boolean);
const numbersIn = (text: string) => text.split(/[\s,()]+/).filter(Boolean).map(Number);
const latin1 = (bytes: Uint8Array) => new TextDecoder("latin1").decode(bytes);
const linesOf = (text: string) => text.split(/\r\n|\r|\n/);

/** Read the scan that a header describes; `beside`: files that it may name. */
export async function readText(name: string, bytes: Uint8Array<ArrayBuffer>, beside: NamedFile[]): Promise<Volume> {
  return /\.mh[ad]$/i.test(name) ? readMetaImage(name, bytes, beside) : readNrrd(name, bytes, beside);
}

async function volumeOf(header: Header, stored: Stored, affine: number[][], remarks: string[]): Promise<Volume> {
  const { name } = header;
  const shape = checkShape(name, stored.shape);
  checkAffine(name, affine);
  const data = await voxelsOf(name, stored);
  return { data: data instanceof Float64Array ? Float32Array.from(data) : data, shape, affine, modality: "", remarks, slope: 1, intercept: 0, dicom: null, name };
}

async function voxelsOf(name: string, { files, start, shape, kind, littleEndian, encoding }: Stored): Promise<VoxelArray> {
  const count = shape.reduce((product, n) => product * n, 1);
  if (count % files.length) throw refusal(`${name} spreads ${count} voxels over ${files.length} files`, "as many voxels in each", "save it in one piece");
  const each = (count / files.length) * Number(kind[1]);
  const parts: Uint8Array[] = [];
  for (const file of files) {
    const from = start < 0 ? file.length - each : start;
    if (encoding === "text") parts.push(writtenNumbers(name, latin1(file.subarray(from)), kind, littleEndian, count / files.length));
    else if (encoding === "hex") parts.push(hexBytes(name, latin1(file.subarray(from))));
    else if (encoding === "raw") parts.push(file.subarray(Math.max(0, from)));
    else parts.push(await inflated(name, file.slice(from), file[from] === 0x1f ? "gzip" : "deflate"));
    const there = parts.at(-1)!.length;
    if (there < each) throw truncated(name, `${each} bytes of voxels are declared, ${there} are there`);
  }
  if (parts.length === 1) return numbersOf(kind, parts[0]!, littleEndian, count);
  const whole = new Uint8Array(each * parts.length);
  parts.forEach((part, n) => whole.set(part.subarray(0, each), n * each));
  return numbersOf(kind, whole, littleEndian, count);
}

function hexBytes(name: string, text: string): Uint8Array {
  const digits = text.replace(/\s+/g, "");
  if (/[^0-9a-f]/i.test(digits) || digits.length % 2) throw truncated(name, "its voxels end too early or do not match their checksum");
  return Uint8Array.from({ length: digits.length / 2 }, (_, n) => parseInt(digits.slice(2 * n, 2 * n + 2), 16));
}

/** Numbers written as text, as the bytes of their kind. */
function writtenNumbers(name: string, text: string, kind: NumberKind, littleEndian: boolean, count: number): Uint8Array {
  const words = wordsOf(text.replaceAll(",", " ")).slice(0, count);
  const numbers = words.map(Number);
  if (numbers.some(Number.isNaN)) throw truncated(name, "its voxels end too early or do not match their checksum");
  const size = Number(kind[1]);
  const view = new DataView(new ArrayBuffer(numbers.length * size));
  const setters: Record<NumberKind, (at: number, value: number) => void> = {
    i1: (at, value) => view.setInt8(at, value), u1: (at, value) => view.setUint8(at, value),
    i2: (at, value) => view.setInt16(at, value, littleEndian), u2: (at, value) => view.setUint16(at, value, littleEndian),
    i4: (at, value) => view.setInt32(at, value, littleEndian), u4: (at, value) => view.setUint32(at, value, littleEndian),
    i8: (at, value) => view.setBigInt64(at, BigInt(value), littleEndian), u8: (at, value) => view.setBigUint64(at, BigInt(value), littleEndian),
    f4: (at, value) => view.setFloat32(at, value, littleEndian), f8: (at, value) => view.setFloat64(at, value, littleEndian),
  };
  numbers.forEach((value, n) => setters[kind](n * size, value));
  return new Uint8Array(view.buffer);
}

// MetaImage

async function readMetaImage(name: string, bytes: Uint8Array<ArrayBuffer>, beside: NamedFile[]): Promise<Volume> {
  const text = latin1(bytes.subarray(0, MAX_HEADER_BYTES)); // one byte per character
  const last = /^[ \t]*ElementDataFile[ \t]*[=:][^\n]*(\n|$)/im.exec(text);
  const end = last ? last.index + last[0].length : 0;
  const fields = fieldsOf(linesOf(text.slice(0, end)), /[=:]/);
  if (!["ndims", "dimsize", "elementtype", "elementdatafile"].every((key) => fields.has(key))) {
    throw refusal(`${name} does not hold a MetaImage`, "an MHA file", "check the file, or export it again");
  }
  const header = new Header(name, bytes, fields, end, linesOf(text.slice(end)), beside);
  const [axes, shape] = [header.whole("ndims")[0] ?? 0, header.whole("dimsize")];
  if (!(axes >= 1 && axes <= MAX_AXES)) throw header.broken("ndims", "the number of axes, 3");
  if (shape.length !== axes) throw header.broken("dimsize", `${axes} sizes, as NDims says`);
  const element = header.get("elementtype")!.toLowerCase();
  if ((header.get("elementnumberofchannels") ?? "1") !== "1" || element.endsWith("_array")) throw colour(name);
  const kind = METAIMAGE_TYPES[element];
  if (!kind) throw header.broken("elementtype", "a type of number, such as MET_SHORT");
  checkShape(name, shape);
  const { affine, remarks } = metaImagePlace(header, axes);
  return volumeOf(header, await metaImageVoxels(header, shape, kind), affine, remarks);
}

function metaImagePlace(header: Header, axes: number): { affine: number[][]; remarks: string[] } {
  const full = (value: number) => Array<number>(axes).fill(value);
  const spacing = header.first(["elementspacing", "elementsize"], full(1));
  const origin = header.first(["offset", "position", "origin"], full(0));
  const turned = ["transformmatrix", "rotation", "orientation"];
  const matrix = header.first(turned, Array.from({ length: axes * axes }, (_, n) => (n % (axes + 1) ? 0 : 1)));
  const remarks: string[] = [];
  const unit = header.get("distanceunits") ?? "mm";
  const factor = ["mm", "?", ""].includes(unit.toLowerCase()) ? 1 : converted(header.name, unit, remarks);
  if (!turned.some((key) => header.fields.has(key))) {
    remarks.push(`${header.name} does not say how the patient lies; read with its axes to L, P, S, as ITK does`);
  }
  const steps = [0, 1, 2].map((axis) => [0, 1, 2].map((row) => matrix[axis * axes + row]! * spacing[axis]! * factor));
  return { affine: fromLps(steps, origin.map((mm) => mm * factor)), remarks };
}

/** Millimetres in a unit; adds a remark. */
function converted(name: string, unit: string, remarks: string[]): number {
  const word = unit.trim().replace(/^"|"$/g, "").slice(0, 20);
  const factor = UNITS_MM[word.toLowerCase()];
  remarks.push(factor === undefined ? `${name} gives lengths in '${word}', which is not known; read as mm` : `${name} gives lengths in ${word}; converted to mm (one ${word} is ${factor} mm)`);
  return factor ?? 1;
}

async function metaImageVoxels(header: Header, shape: number[], kind: NumberKind): Promise<Stored> {
  const is = (key: string) => ["true", "1", "t", "yes", "y"].includes((header.get(key) ?? "").toLowerCase());
  const skipped = header.whole("headersize")[0] ?? 0;
  if (skipped < -1) throw header.broken("headersize", "a count of bytes, or -1");
  const written = header.fields.has("binarydata") && !is("binarydata");
  const encoding: Encoding = written ? "text" : is("compresseddata") ? "gzip" : "raw";
  const where = header.get("elementdatafile")!;
  const isHere = where.toLowerCase() === "local";
  const files = isHere ? [header.bytes] : await header.dataFiles(where);
  const littleEndian = !(is("binarydatabyteordermsb") || is("elementbyteordermsb"));
  return { files, start: skipped || (isHere ? header.size : 0), shape, kind, littleEndian, encoding };
}

// NRRD

async function readNrrd(name: string, bytes: Uint8Array<ArrayBuffer>, beside: NamedFile[]): Promise<Volume> {
  const text = latin1(bytes.subarray(0, MAX_HEADER_BYTES));
  const blank = /\r?\n\r?\n/.exec(text);
  const lines = linesOf(blank ? text.slice(0, blank.index) : text).slice(1).filter((line) => !line.startsWith("#") && !line.includes(":="));
  const fields = fieldsOf(lines, /:/);
  const at = lines.findIndex((line) => /^data ?file\s*:/i.test(line));
  const where = fields.get("data file") ?? fields.get("datafile");
  if (!text.startsWith("NRRD") || !(blank || where)) throw refusal(`${name} does not hold an NRRD image`, "an NRRD file", "check it, or export it again");
  const header = new Header(name, bytes, fields, blank ? blank.index + blank[0].length : bytes.length, at < 0 ? [] : lines.slice(at + 1), beside);
  const [dimension, sizes] = [header.whole("dimension"), header.whole("sizes")];
  if (dimension.length !== 1 || !(dimension[0]! >= 1 && dimension[0]! <= MAX_AXES)) throw header.broken("dimension", "the number of axes, 3");
  if (sizes.length !== dimension[0]) throw header.broken("sizes", `${dimension[0]} sizes, as its dimension says`);
  const directions = directionsOf(header, sizes.length);
  const spatial = spatialAxes(header, sizes, directions);
  checkShape(name, spatial.map((axis) => sizes[axis]!));
  const { affine, remarks } = nrrdPlace(header, spatial.slice(0, 3), directions);
  const stored = await nrrdVoxels(header, where, sizes, remarks);
  return volumeOf(header, { ...stored, shape: spatial.map((axis) => sizes[axis]!) }, affine, remarks);
}

/** The step along each axis, null for a non-spatial one; null if the header gives no directions at all. */
function directionsOf(header: Header, axes: number): (number[] | null)[] | null {
  const given = header.get("space directions");
  if (given === undefined) return null;
  const found = (given.match(/\([^()]*\)|[^\s()]+/g) ?? []).map((word) => (word.toLowerCase() === "none" ? null : numbersOfVector(word)));
  const isOdd = (vector: number[] | null) => vector !== null && vector.length !== 3 && vector.length !== axes;
  if (found.length !== axes || found.some(isOdd)) throw header.broken("space directions", "a vector (x,y,z) or none for each axis");
  return found;
}

function numbersOfVector(word: string): number[] | null {
  const numbers = word.replace(/[()]/g, "").split(",").map((one) => (one.trim() ? Number(one) : NaN));
  return numbers.every(Number.isNaN) ? null : numbers;
}

/** The axes of space (and time). Throws if any other axis has more than one entry. */
function spatialAxes(header: Header, sizes: number[], directions: (number[] | null)[] | null): number[] {
  const listed = wordsOf((header.get("kinds") ?? "").toLowerCase());
  const kinds = listed.length === sizes.length ? listed : sizes.map(() => "");
  return kinds.flatMap((kind, axis) => {
    if (kind === "complex") throw refusal(`${header.name} has complex voxels`, "real numbers", "save its magnitude");
    const placed = directions === null || directions[axis] !== null;
    const isRange = RANGE_KINDS.includes(kind) || ["color", "vector", "matrix"].some((word) => kind.includes(word));
    if ((placed && !isRange) || kind === "time") return [axis];
    if (sizes[axis] !== 1) throw colour(header.name);
    return [];
  });
}

function nrrdPlace(header: Header, axes: number[], directions: (number[] | null)[] | null): { affine: number[][]; remarks: string[] } {
  const remarks: string[] = [];
  const space = (header.get("space") ?? "").toLowerCase().replace(/-time$/, "");
  const sign = SPACES[space.length === 4 ? space.replace(/t$/, "") : space] ?? [1, 1, 1];
  if (!(space in SPACES)) {
    remarks.push(`${header.name} ${space ? `names the space '${space}', which does not say` : "does not say"} how the patient lies; read as L, P, S, as ITK does`);
  }
  let steps: number[][];
  let origin = [0, 0, 0];
  if (directions) {
    steps = axes.map((axis) => (directions[axis] ?? [NaN, NaN, NaN]).slice(0, 3));
    origin = spaceOrigin(header, remarks);
  } else {
    const each = axes.map((axis) => perAxis(header, axis));
    steps = each.map(({ spacing }, n) => [0, 1, 2].map((row) => (row === n ? spacing : 0)));
    origin = each.map((one) => one.origin);
  }
  const units = [...(header.get("space units") ?? "").matchAll(/"([^"]*)"/g)].map(([, unit]) => unit!.trim()).filter(Boolean).slice(0, 3);
  let factor = 1;
  if (units.some((unit) => UNITS_MM[unit.toLowerCase()] !== 1)) {
    factor = converted(header.name, new Set(units.map((unit) => unit.toLowerCase())).size === 1 ? units[0]! : units.join(), remarks);
  }
  const placed = (vector: number[]) => vector.map((mm, row) => mm * sign[row]! * factor);
  return { affine: fromLps(steps.map(placed), placed(origin)), remarks };
}

/** Where the first voxel lies; 0, with a remark, if the header does not say so (no such field, or NaN). */
function spaceOrigin(header: Header, remarks: string[]): number[] {
  const text = header.get("space origin") ?? "nan nan nan";
  const given = numbersIn(text).slice(0, 3);
  const words = text.split(/[\s,()]+/).filter(Boolean).slice(0, 3);
  if (given.length < 3 || given.some((mm, n) => Number.isNaN(mm) && !/^[+-]?nan$/i.test(words[n]!))) {
    throw header.broken("space origin", "a vector (x,y,z)");
  }
  if (!given.some(Number.isNaN)) return given;
  remarks.push(`${header.name} does not say where it lies (space origin); read with its first voxel at 0, 0, 0`);
  return [0, 0, 0];
}

/** Spacing and origin along one axis of a header without directions; 1 and 0 if it gives none. */
function perAxis(header: Header, axis: number): { spacing: number; origin: number } {
  const [given, low] = ["spacings", "axis mins"].map((key) => numbersIn(header.get(key) ?? "")[axis]);
  const spacing = given === undefined || Number.isNaN(given) ? 1 : given;
  const centre = wordsOf((header.get("centers") ?? header.get("centerings") ?? "").toLowerCase())[axis];
  return { spacing, origin: low !== undefined && Number.isFinite(low) ? low + (centre === "node" ? 0 : spacing / 2) : 0 };
}

async function nrrdVoxels(header: Header, where: string | undefined, shape: number[], remarks: string[]): Promise<Stored> {
  const kind = NRRD_TYPES.find(([, words]) => words.includes((header.get("type") ?? "").toLowerCase()))?.[0];
  const encoding = ENCODINGS[(header.get("encoding") ?? "").toLowerCase()];
  if (!kind) throw header.broken("type", "a type of number, such as short");
  if (!encoding) throw header.broken("encoding", "raw, gzip, text or hex");
  const endian = (header.get("endian") ?? "").toLowerCase();
  if (!["big", "little"].includes(endian) && kind[1] !== "1" && encoding !== "text") remarks.push(`${header.name} does not say its byte order; read as little-endian`);
  const [lines, skip] = [header.whole("line skip")[0] ?? 0, header.whole("byte skip")[0] ?? 0];
  const files = where === undefined ? [header.bytes] : await header.dataFiles(where);
  let start = where === undefined ? header.size : 0;
  if (lines || skip) {
    if (skip < -1 || lines < 0 || encoding === "gzip" || (lines && files.length > 1)) throw header.broken(lines ? "line skip" : "byte skip", "none, or a count before raw voxels");
    for (let n = 0; n < lines; n++) start = files[0]!.indexOf(10, start) + 1 || files[0]!.length;
    start = skip === -1 ? -1 : start + skip;
  }
  return { files, start, shape, kind, littleEndian: endian !== "big", encoding };
}
