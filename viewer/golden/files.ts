// Reads and writes files through the browser's code, so that tests/web can compare it with Python's.
// usage: node files.js FOLDER, whose folders hold job.json; of each, what was read goes to read.json and voxels.bin beside it, and
// files of the job's objects to a folder `written`.
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { basename, join, relative, resolve } from "node:path";
import { EngineError, FILES, type FileKind, type NamedFile, type ObjectFacts } from "../src/engine/engine";
import { readScan } from "../src/local/read";
import { regionOf } from "../src/local/region";
import type { Volume } from "../src/local/volume";
import { writeFile, type WrittenObject } from "../src/local/write";

interface Job {
  files: string; // a folder, or one file
  series?: string;
  write?: { kinds: FileKind[]; objects: (Omit<WrittenObject, "region" | "facts"> & { facts: Partial<ObjectFacts>; mask: string })[] };
}

const CODECS = resolve("node_modules/dcmjs-codecs/build/dcmjs-native-codecs.wasm");
globalThis.fetch = async () => new Response(readFileSync(CODECS)); // as the page's server would send it

function filesIn(path: string): NamedFile[] {
  const entries = readdirSync(path, { withFileTypes: true, recursive: true }).filter((entry) => entry.isFile());
  return entries.map((entry) => {
    const file = join(entry.parentPath, entry.name);
    return { name: join(basename(path), relative(path, file)), file: new Blob([readFileSync(file)]) };
  });
}

/** A single-file scan, with what lies beside it. */
function filesBeside(folder: string): NamedFile[] {
  const names = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile() && !entry.name.endsWith(".json"));
  return names.map(({ name }) => ({ name, file: new Blob([readFileSync(join(folder, name))]) }));
}

async function done(folder: string): Promise<void> {
  const job = JSON.parse(readFileSync(join(folder, "job.json"), "utf8")) as Job;
  const place = join(folder, job.files);
  const files = statSync(place).isDirectory() ? filesIn(place) : filesBeside(folder);
  try {
    const scan = await readScan(files, job.series);
    writeFileSync(join(folder, "voxels.bin"), Float64Array.from(scan.data, (value) => value * scan.slope + scan.intercept));
    const { shape, affine, modality, remarks, name } = scan;
    writeFileSync(join(folder, "read.json"), JSON.stringify({ shape, affine, modality, remarks, name, type: scan.data.constructor.name }));
    if (job.write) await write(folder, scan, job.write);
  } catch (error) {
    if (!(error instanceof EngineError)) throw error;
    writeFileSync(join(folder, "read.json"), JSON.stringify({ problem: error.problem }));
  }
}

async function write(folder: string, scan: Volume, { kinds, objects }: NonNullable<Job["write"]>): Promise<void> {
  mkdirSync(join(folder, "written"));
  const given = objects.map(({ mask, facts, ...others }) => ({
    ...others,
    facts: { colour: "#ff5a5f", visible: true, locked: false, type: { value: "108369006", scheme: "SCT", meaning: "Neoplasm" }, name: "", ...facts },
    region: regionOf(readFileSync(join(folder, mask)), scan.shape),
  }));
  for (const kind of kinds) {
    try {
      const blob = await writeFile(kind, scan, given, { model: "voxsam-tiny", version: "0.0.0", seconds: 1.5 });
      writeFileSync(join(folder, "written", FILES[kind]), new Uint8Array(await blob.arrayBuffer()));
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
      writeFileSync(join(folder, "written", `${FILES[kind]}.refused`), error.message);
    }
  }
}

for (const name of readdirSync(process.argv[2]!)) {
  const folder = join(process.argv[2]!, name);
  if (existsSync(join(folder, "job.json"))) await done(folder);
}
