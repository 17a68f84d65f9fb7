// Reads scans from the user's files, in a worker: NIfTI, NRRD, MetaImage, and DICOM as files, a folder or a zip.
// The same as through voxsam.io on the server: the same voxels, the same geometry, the same error messages.
import type { NamedFile } from "../engine/engine";
import type { Volume } from "./volume";
import { asScan, oneLine, truncated, unpacked } from "./files/checks";
import { isNifti, readNifti } from "./files/nifti";
import { readText } from "./files/text";
import { refusal } from "./refusal";

const HEADERS = /\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|hdr|hdr\.gz)$/i;
const VOXELS = /\.(img|img\.gz)$/i; // of a pair whose header is missing
const TEXT = /\.(nrrd|nhdr|mha|mhd)$/i;
const MAX_UNZIPPED_BYTES = 2 * 2 ** 30; // what a tab can hold
const KINDS = ".nii, .nii.gz, .nrrd, .mha, .nhdr, .mhd, .hdr, or a folder or .zip of DICOM";

/** How far reading has come, from 0 to 1. */
export type Progress = (fraction: number) => void;

/**
 * Read a scan: a single-file format (with the file of its voxels, if that is separate), or a DICOM series; `series`
 * chooses one of several by number or UID. Throws EngineError, whose `problem.series` lists those that could be meant.
 */
export async function readScan(files: NamedFile[], series = "", progress: Progress = () => {}): Promise<Volume> {
  try {
    return asScan(await read(files, series, progress));
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw refusal("the scan needs more memory than this tab has", "a smaller scan", "use voxsam serve, or crop it");
  }
}

/** Read integer labels from one file of a single-file format; only the server reads DICOM-SEG and RTSTRUCT. */
export async function readLabels(files: NamedFile[]): Promise<Volume> {
  const found = await readSingle(files);
  if (!found) throw refusal(`${files[0]?.name ?? "nothing"} holds no mask that a browser reads`, ".nii, .nii.gz, .nrrd or .mha", "convert it, or use voxsam serve");
  if (!found.data.every((value: number) => Number.isInteger(value))) {
    throw refusal(`${found.name} has values that are not whole numbers`, "a mask or labels", "threshold it first");
  }
  return found;
}

async function read(files: NamedFile[], series: string, progress: Progress): Promise<Volume> {
  const [first] = files;
  if (!first) throw refusal("no file", `a scan (${KINDS})`, "choose one");
  const empty = files.length === 1 && first.file.size === 0;
  if (empty) throw refusal(`${baseOf(first.name)} is empty (0 bytes)`, "an image", "copy or export it again");
  const single = await readSingle(files);
  return single ?? readSeries(files, series, progress);
}

const baseOf = (path: string) => path.split("/").at(-1)!;

/** Read a single-file format; null if the files are something else. Throws for several scans. */
async function readSingle(files: NamedFile[]): Promise<Volume | null> {
  let headers = files.filter(({ name }) => HEADERS.test(name));
  if (!headers.length && files.length === 1) headers = VOXELS.test(files[0]!.name) || (await beginsAsOne(files[0]!)) ? files : [];
  if (!headers.length) return null;
  const [header] = headers;
  if (headers.length > 1 || !header) {
    const listed = headers.slice(0, 4).map(({ name }) => baseOf(name)).join(", ");
    throw refusal(`${headers.length} scans (${listed}${headers.length > 4 ? ", ..." : ""})`, "one scan", "choose one of them");
  }
  const name = baseOf(header.name);
  const beside = files.filter((file) => file !== header);
  const bytes = new Uint8Array(await header.file.arrayBuffer());
  if (!bytes.length) throw refusal(`${name} is empty (0 bytes)`, "an image", "copy or export it again");
  if (TEXT.test(name) || startsAs(bytes, "NRRD000")) return readText(name, bytes, beside);
  const stem = name.replace(/\.(hdr|hdr\.gz)$/i, "");
  const voxels = beside.find(({ name: other }) => new RegExp(`\\.img(\\.gz)?$`, "i").test(other) && baseOf(other).replace(VOXELS, "") === stem);
  const pair = voxels ? await unpacked(name, new Uint8Array(await voxels.file.arrayBuffer())) : null;
  return readNifti(name, await unpacked(name, bytes), pair);
}

/** Whether a file without a telling suffix begins like NRRD, NIfTI or gzip. */
async function beginsAsOne({ name, file }: NamedFile): Promise<boolean> {
  if (/\.(dcm|ima|zip)$/i.test(name)) return false;
  const head = new Uint8Array(await file.slice(0, 352).arrayBuffer());
  return startsAs(head, "NRRD000") || isNifti(head) || (head[0] === 0x1f && head[1] === 0x8b);
}

const startsAs = (bytes: Uint8Array, word: string) => [...word].every((letter, n) => bytes[n] === letter.charCodeAt(0));

async function readSeries(files: NamedFile[], series: string, progress: Progress): Promise<Volume> {
  const [first] = files as [NamedFile];
  const isZip = files.length === 1 && /\.zip$/i.test(first.name);
  const folder = first.name.includes("/") ? first.name.split("/").at(-2)! : files.length > 1 ? "the series" : baseOf(first.name);
  const [{ chosen, imagesIn, frameCount }, { volumeOf }] = await Promise.all([import("./files/dicom"), import("./files/series")]);
  const images = await imagesIn(isZip ? await unzipped(first) : files, (fraction) => progress(fraction / 2));
  if (files.length === 1 && !isZip) {
    if (!images.length) throw refusal(`${baseOf(first.name)} is of an unsupported kind`, KINDS, "convert it to .nii.gz");
    if (frameCount(images[0]!.header) === 1) throw refusal(`${baseOf(first.name)} is a single DICOM file`, "the folder or .zip of its series", "choose that folder");
  }
  const { slices, remarks } = await chosen(images, folder, series);
  return volumeOf(slices, oneLine(folder), remarks, (fraction) => progress(0.5 + fraction / 2));
}

/** The files of a zip. Throws EngineError for one that is damaged or too large. */
async function unzipped({ name, file }: NamedFile): Promise<NamedFile[]> {
  const { unzipSync } = await import("fflate");
  let total = 0;
  try {
    const members = unzipSync(new Uint8Array(await file.arrayBuffer()), {
      filter: ({ name: member, originalSize }) => {
        total += originalSize;
        if (total > MAX_UNZIPPED_BYTES) throw refusal(`${name} would unpack to more than ${MAX_UNZIPPED_BYTES / 2 ** 30} GiB`, "one series", "zip one series alone, or choose its folder");
        return !member.endsWith("/");
      },
    });
    return Object.entries(members).map(([member, bytes]) => ({ name: member, file: new Blob([bytes as Uint8Array<ArrayBuffer>]) }));
  } catch (error) {
    if (error instanceof Error && "problem" in error) throw error;
    throw truncated(name, `it cannot be unzipped: ${(error as Error).message}`);
  }
}
