// Finds DICOM images among files, reads their headers through dcmjs, chooses one series; as in voxsam.io.dicom.
import { data as dicom, log, type Elements } from "dcmjs";
import type { NamedFile, Series } from "../../engine/engine";
import { truncated } from "./checks";
import { refusal } from "../refusal";

const MAX_FILES = 20_000;
const HEAD_BYTES = 132;
const [LISTED, FEW] = [24, 2]; // stacks listed in a message; images of a stack that is left out beside a larger one
const PARALLEL = 0.05; // largest difference between the direction cosines of two images
const SCOUTS = ["LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW"];
const NOT_IMAGES = ["SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "RTIMAGE", "PLAN", "PR", "KO", "SR", "REG", "FID", "DOC"];
const IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2";
const EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1";
const UNREADABLE = ["1.2.840.113619.5.2"]; // a private one of GE, with pixels in the other byte order

export const TAGS = {
  SOPClassUID: "00080016", SOPInstanceUID: "00080018", Modality: "00080060", ImageType: "00080008", TransferSyntaxUID: "00020010",
  SeriesInstanceUID: "0020000E", SeriesNumber: "00200011", SeriesDescription: "0008103E", Rows: "00280010", Columns: "00280011",
  NumberOfFrames: "00280008", SamplesPerPixel: "00280002", PhotometricInterpretation: "00280004", BitsAllocated: "00280100",
  BitsStored: "00280101", HighBit: "00280102", PixelRepresentation: "00280103", ImagePositionPatient: "00200032",
  ImageOrientationPatient: "00200037", PixelSpacing: "00280030", RescaleSlope: "00281053", RescaleIntercept: "00281052",
  PixelData: "7FE00010", PerFrameFunctionalGroupsSequence: "52009230", SharedFunctionalGroupsSequence: "52009229",
  PlanePositionSequence: "00209113", PlaneOrientationSequence: "00209116", PixelMeasuresSequence: "00289110",
  PixelValueTransformationSequence: "00289145",
} as const;
export type Keyword = keyof typeof TAGS;

log.getLogger("validation.dcmjs").setLevel("silent"); // odd values in elements that the image does not depend on

/** One DICOM image: its file, a name for messages, its header without pixels; `frame` from 1 in a multi-frame file. */
export interface Slice {
  file: Blob;
  name: string;
  header: Elements;
  syntax: string;
  frame: number;
}

export function values(header: Elements, keyword: Keyword): unknown[] {
  return header[TAGS[keyword]]?.Value ?? [];
}

export function text(header: Elements, keyword: Keyword): string {
  return values(header, keyword).map(String).join("\\").trim();
}

/** The first number of an element; `missing` if it has none. */
export function number(header: Elements, keyword: Keyword, missing: number): number {
  const [value] = values(header, keyword);
  return value === undefined || value === null || value === "" ? missing : Number(value);
}

/** The `count` numbers of an element. Throws if it is absent or malformed. */
export function numbers(slice: Slice, keyword: Keyword, count: number): number[] {
  const found = values(slice.header, keyword).map((value) => (value === null || value === "" ? NaN : Number(value)));
  if (found.length !== count || !found.every(Number.isFinite)) {
    throw refusal(`the DICOM image ${slice.name} has no valid ${keyword}`, `${count} number(s) there`, "export the original series again");
  }
  return found;
}

export const frameCount = (header: Elements) => number(header, "NumberOfFrames", 1);
export const sizeOfSlice = ({ header }: Slice): [columns: number, rows: number] => [number(header, "Columns", 0), number(header, "Rows", 0)];

/** Whether a file's first bytes look like DICOM, including old files without its mark. */
function mayBeDicom(head: Uint8Array): boolean {
  return isMarked(head) || ((head[0] === 2 || head[0] === 8) && head[1] === 0 && head.length >= 8);
}

function isMarked(head: Uint8Array): boolean {
  return String.fromCharCode(...head.subarray(128, HEAD_BYTES)) === "DICM";
}

/** The images among files; other files are skipped. `progress` is called with the fraction examined. */
export async function imagesIn(files: NamedFile[], progress: (fraction: number) => void): Promise<Slice[]> {
  if (files.length > MAX_FILES) throw refusal(`${files.length.toLocaleString("en")} files`, "one series", "choose the folder of the series");
  const found: Slice[] = [];
  const sorted = [...files].sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const [n, { name, file }] of sorted.entries()) {
    const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
    const slice = mayBeDicom(head) ? await readHeader(name.split("/").at(-1)!, file, isMarked(head)) : null;
    if (slice) found.push(slice);
    progress((n + 1) / files.length);
  }
  return found;
}

/** A file's elements; what a file without preamble lacks is added before it is read. */
export async function elementsOf(name: string, file: Blob, options: { untilTag?: string } = {}): Promise<{ meta: Elements; dict: Elements }> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    return dicom.DicomMessage.readFile((isMarked(bytes) ? bytes : withPreamble(bytes)).buffer as ArrayBuffer, { noCopy: false, ...options });
  } catch (error) {
    throw truncated(name, `its DICOM header cannot be read: ${(error as Error).message}`);
  }
}

function withPreamble(bytes: Uint8Array): Uint8Array {
  let meta = new Uint8Array(0);
  if (bytes[0] === 8) {
    const isExplicit = /^[A-Z]{2}$/.test(String.fromCharCode(bytes[4]!, bytes[5]!));
    const uid = isExplicit ? EXPLICIT_LITTLE_ENDIAN : IMPLICIT_LITTLE_ENDIAN;
    const padded = uid.length % 2 ? `${uid}\0` : uid;
    const syntax = [2, 0, 0x10, 0, 0x55, 0x49, padded.length, 0, ...[...padded].map((letter) => letter.charCodeAt(0))];
    meta = Uint8Array.from([2, 0, 0, 0, 0x55, 0x4c, 4, 0, syntax.length, 0, 0, 0, ...syntax]);
  }
  const whole = new Uint8Array(HEAD_BYTES + meta.length + bytes.length);
  whole.set([0x44, 0x49, 0x43, 0x4d], 128);
  whole.set(meta, HEAD_BYTES);
  whole.set(bytes, HEAD_BYTES + meta.length);
  return whole;
}

/** The header of a DICOM image; null if the file is something else. */
async function readHeader(name: string, file: Blob, marked: boolean): Promise<Slice | null> {
  let read: Awaited<ReturnType<typeof elementsOf>>;
  try {
    read = await elementsOf(name, file, { untilTag: TAGS.PixelData });
  } catch (error) {
    if (!marked) return null; // it only began like one
    throw error;
  }
  const header = read.dict;
  delete header[TAGS.PixelData];
  if (NOT_IMAGES.includes(text(header, "Modality"))) return null;
  const [columns, rows] = sizeOfSlice({ header } as Slice);
  if (!columns && !rows) return null;
  if (Math.min(columns, rows, frameCount(header)) < 1) throw truncated(name, "its DICOM header declares negative counts");
  const syntax = text(read.meta, "TransferSyntaxUID") || IMPLICIT_LITTLE_ENDIAN;
  if (UNREADABLE.includes(syntax)) throw refusal(`${name} is in a transfer syntax that no browser reads (${syntax})`, "a common one", "use voxsam serve, or export the series again");
  return { file, name, header, syntax, frame: 0 };
}

// Which stack

/** The images of the one stack to read, without duplicates, and remarks on what is left out. */
export async function chosen(images: Slice[], name: string, wanted: string): Promise<{ slices: Slice[]; remarks: string[] }> {
  const isPlaced = ({ header }: Slice) => values(header, "ImagePositionPatient").length > 0 || frameCount(header) > 1;
  const placed = images.filter(isPlaced);
  const stacks = stacksOf(placed.length ? placed : images);
  if (!stacks.length) throw refusal(`${name} holds no DICOM images`, "a DICOM series (CT or MR)", "choose the folder with its .dcm files");
  const labels = labelsOf(stacks);
  let matching = [...stacks.keys()];
  if (wanted) {
    matching = matching.filter((n) => wanted === labels[n] || wanted === seriesOf(stacks[n]![0]!));
    if (!matching.length) matching = [...stacks.keys()].filter((n) => labels[n]!.split(".")[0] === wanted);
    if (!matching.length) throw refusal(`series '${wanted}' of ${name}`, `one of its series: ${listed(stacks, labels)}`, "choose one of them");
  }
  const scans = matching.length > 1 ? matching.filter((n) => !isAside(stacks[n]!)) : matching;
  const [only] = scans;
  if (scans.length !== 1 || only === undefined) {
    const given = `${name} holds ${matching.length} image series (${listed(stacks, labels, matching)})`;
    throw refusal(given, "one series", "choose one of them", matching.map((n) => factsOf(stacks[n]!, labels[n]!, stacks)));
  }
  const others = [...stacks.keys()].filter((n) => n !== only);
  const remarks: string[] = [];
  if (others.length) remarks.push(`${name}: read ${described(stacks[only]!, labels[only]!)}; left out: ${listed(stacks, labels, others)}`);
  const { slices, doubles } = await withoutDoubles(stacks[only]!);
  if (doubles) remarks.push(`${name} has ${doubles} cop${doubles === 1 ? "y" : "ies"} of the same image; each counts once`);
  return { slices, remarks };
}

const seriesOf = ({ header }: Slice) => text(header, "SeriesInstanceUID");

function grouped<T, K>(items: Iterable<T>, key: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>();
  for (const item of items) groups.set(key(item), [...(groups.get(key(item)) ?? []), item]);
  return groups;
}

/** The images by series; a series is split if some of its images are localizers or lie across the others. */
function stacksOf(images: Slice[]): Slice[][] {
  const found: Slice[][] = [];
  for (const members of grouped(images, seriesOf).values()) {
    const parts: Slice[][] = [];
    for (const image of members) {
      const part = parts.find(([first]) => isLike(first!, image));
      if (part) part.push(image);
      else parts.push([image]);
    }
    const largest = parts.reduce((a, b) => (b.length > a.length ? b : a));
    // a slice or two of another size are a fault of the series, not a series of their own
    const apart = parts.every((part) => part.length > FEW || isScout(part[0]!) || !isParallel(part[0]!, largest[0]!));
    found.push(...(apart && !isAside(largest) ? parts : [members]));
  }
  return found;
}

function isLike(image: Slice, other: Slice): boolean {
  const [a, b] = [sizeOfSlice(image), sizeOfSlice(other)];
  return a[0] === b[0] && a[1] === b[1] && isScout(image) === isScout(other) && isParallel(image, other);
}

/** Whether two images have about the same orientation; an image without one matches any other. */
function isParallel(image: Slice, other: Slice): boolean {
  const [a, b] = [image, other].map(({ header }) => values(header, "ImageOrientationPatient").map(Number)) as [number[], number[]];
  if (a.length !== 6 || b.length !== 6) return true;
  return a.every((cosine, n) => Math.abs(cosine - b[n]!) < PARALLEL);
}

function isScout({ header }: Slice): boolean {
  const words = `${text(header, "ImageType")} ${text(header, "SeriesDescription")}`.toUpperCase();
  return SCOUTS.some((word) => words.includes(word));
}

/** Whether a stack is a localizer, or has too few images to be the scan. */
function isAside(stack: Slice[]): boolean {
  if (frameCount(stack[0]!.header) > FEW && !isScout(stack[0]!)) return false;
  return stack.length <= FEW || stack.every(isScout);
}

/** What each stack is called: its series number, with .1, .2 if several share it. */
function labelsOf(stacks: Slice[][]): string[] {
  const all = stacks.map(([first]) => text(first!.header, "SeriesNumber") || "0");
  return all.map((label, n) => (all.indexOf(label) === all.lastIndexOf(label) ? label : `${label}.${all.slice(0, n + 1).filter((one) => one === label).length}`));
}

function listed(stacks: Slice[][], labels: string[], which: number[] = [...stacks.keys()]): string {
  const words = which.slice(0, LISTED).map((n) => described(stacks[n]!, labels[n]!));
  return [...words, ...(which.length > LISTED ? ["..."] : [])].join(", ");
}

function described(stack: Slice[], label: string): string {
  const { header } = stack[0]!;
  const title = text(header, "SeriesDescription");
  return `${text(header, "Modality") || "?"} series ${label}${title ? ` '${title}'` : ""}: ${stack.length} image${stack.length > 1 ? "s" : ""}`;
}

/** What a person chooses a stack by. `uid` is what to ask for: the series' own, or the label if stacks share that. */
function factsOf(stack: Slice[], label: string, stacks: Slice[][]): Series {
  const [{ header }] = stack as [Slice];
  const uid = seriesOf(stack[0]!);
  const count = Math.max(stack.length, frameCount(header));
  let spacing_mm: Series["spacing_mm"] = null;
  try {
    const [rows, columns] = numbers(stack[0]!, "PixelSpacing", 2) as [number, number];
    const places = stack.map((image) => numbers(image, "ImagePositionPatient", 3));
    const length = Math.max(...places.map((place) => Math.hypot(...place.map((mm, n) => mm - places[0]![n]!))));
    spacing_mm = [columns, rows, stack.length > 1 ? length / (stack.length - 1) : null].map((mm) => mm && Math.round(mm * 1e4) / 1e4);
  } catch {
    // a multi-frame file has them elsewhere
  }
  return {
    uid: stacks.filter(([first]) => seriesOf(first!) === uid).length > 1 ? label : uid,
    description: text(header, "SeriesDescription"),
    modality: text(header, "Modality"),
    count,
    shape: [...sizeOfSlice(stack[0]!), count],
    spacing_mm,
    localizer: isAside(stack),
  };
}

/** The images, each instance once. Throws if two with the same SOPInstanceUID differ. */
async function withoutDoubles(images: Slice[]): Promise<{ slices: Slice[]; doubles: number }> {
  const named = (image: Slice, n: number) => text(image.header, "SOPInstanceUID") || `no UID ${n}`;
  const slices: Slice[] = [];
  for (const [first, ...copies] of grouped(images.map((image, n) => ({ image, uid: named(image, n) })), ({ uid }) => uid).values()) {
    slices.push(first!.image);
    const content = copies.length ? await contentOf(first!.image) : "";
    for (const { image } of copies) {
      if ((await contentOf(image)) === content) continue;
      throw refusal(`${first!.image.name} and ${image.name} have one SOPInstanceUID, but other pixels`, "one file for each instance", "remove the one that does not belong here");
    }
  }
  return { slices, doubles: images.length - slices.length };
}

async function contentOf({ name, file, header }: Slice): Promise<string> {
  const { dict } = await elementsOf(name, file);
  const pixels = await new Blob(values(dict, "PixelData") as ArrayBuffer[]).arrayBuffer();
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", pixels));
  return `${digest.join()} ${text(header, "ImagePositionPatient")}`;
}
