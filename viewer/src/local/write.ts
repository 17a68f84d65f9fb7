// Writes files to download, in a worker: the mask as NIfTI, one NIfTI per object, DICOM-SEG, surfaces, the report.
import type { Confidence, Diameter, FileKind, Index, KnownPrompt, ObjectFacts } from "../engine/engine";
import { isEmpty, sizeOf, toWorld } from "../stage/geometry";
import { surfaceOf } from "../stage/surface";
import { cross, determinant } from "./files/checks";
import { niftiOf } from "./files/nifti";
import { overlapping, type Region } from "./region";
import type { Volume } from "./volume";
import { refusal } from "./refusal";

const UNSAFE = /[<>:"/|?*. ]/g; // in an object's name, replaced in that of its file

export interface WrittenObject {
  number: number;
  facts: ObjectFacts;
  region: Region;
  clicks: KnownPrompt[];
  volume_ml: number;
  longest: Diameter | null;
  perpendicular: Diameter | null;
  remarks: string[];
  edited?: boolean; // by hand
  confidence?: Confidence | null; // of a calibrated model
  class_name?: string | null; // of a model with classes
  inWords?: string; // its measurements; set here
}

/** What made the objects. */
export interface ReportFacts {
  model: string;
  version: string; // of VoxSAM
  seconds: number; // that all steps took
}

/** Write one of the files. Throws EngineError for what its format cannot hold. */
export async function writeFile(kind: FileKind, scan: Volume, objects: WrittenObject[], facts: ReportFacts): Promise<Blob> {
  const some = objects.filter(({ region }) => !isEmpty(region.box));
  const drawn = some.length ? some : objects.slice(0, 1);
  switch (kind) {
    case "nifti": return gzipped(niftiOf(labelMap(scan, drawn), scan));
    case "masks": return zipOf(scan, drawn);
    case "seg": {
      const { segmentationOf } = await import("./files/seg");
      return new Blob([segmentationOf(scan, drawn.map((object) => ({ ...object, inWords: inWords(object) })), facts)], { type: "application/dicom" });
    }
    case "sr":
    case "rtstruct": throw refusal(`an ${kind === "sr" ? "SR" : "RTSTRUCT"} in the browser`, "voxsam serve, which writes it", "save the DICOM-SEG, or use voxsam serve");
    case "stl": return new Blob([stlOf(scan, some)], { type: "model/stl" });
    case "report":
    case "json": {
      const { pageOf, reportOf } = await import("./files/report");
      const report = reportOf(scan, objects, facts);
      return kind === "json" ? new Blob([`${JSON.stringify(report, null, 2)}\n`], { type: "application/json" }) : new Blob([pageOf(report)], { type: "text/html" });
    }
  }
}

function labelMap(scan: Volume, objects: WrittenObject[]): Uint8Array {
  if (overlapping(objects.map(({ region }) => region))) {
    throw refusal("a label map of objects that share voxels", "objects apart, or a format that holds them", "save one file an object, or a DICOM-SEG");
  }
  const labels = new Uint8Array(scan.shape[0] * scan.shape[1] * scan.shape[2]);
  for (const { number, region } of objects) draw(region, number, labels, scan.shape);
  return labels;
}

function draw({ box, inside }: Region, value: number, labels: Uint8Array, [ni, nj]: Index): void {
  const [width, height, depth] = sizeOf(box);
  let from = 0;
  for (let k = 0; k < depth; k++) {
    for (let j = 0; j < height; j++) {
      const to = ((box.low[2] + k) * nj + box.low[1] + j) * ni + box.low[0];
      for (let i = 0; i < width; i++, from++) if (inside[from]) labels[to + i] = value;
    }
  }
}

async function gzipped(bytes: Uint8Array<ArrayBuffer>): Promise<Blob> {
  const packed = new Response(new Blob([bytes]).stream().pipeThrough(new CompressionStream("gzip")));
  return new Blob([await packed.arrayBuffer()], { type: "application/gzip" });
}

async function zipOf(scan: Volume, objects: WrittenObject[]): Promise<Blob> {
  const { zipSync } = await import("fflate");
  const files: Record<string, [Uint8Array, { level: 0 }]> = {};
  for (const { number, facts, region } of objects) {
    const labels = new Uint8Array(scan.shape[0] * scan.shape[1] * scan.shape[2]);
    draw(region, 1, labels, scan.shape);
    const file = await gzipped(niftiOf(labels, scan));
    files[`${number}_${facts.name.replace(UNSAFE, "_")}.nii.gz`] = [new Uint8Array(await file.arrayBuffer()), { level: 0 }];
  }
  return new Blob([zipSync(files) as Uint8Array<ArrayBuffer>], { type: "application/zip" });
}

/** `12.3 mL, longest axial diameter 31.0 mm, perpendicular 20.1 mm`. */
function inWords({ volume_ml, longest, perpendicular }: WrittenObject): string {
  const words = `${volume_ml.toFixed(2)} mL, longest axial diameter ${(longest?.mm ?? 0).toFixed(1)} mm`;
  return perpendicular ? `${words}, perpendicular ${perpendicular.mm.toFixed(1)} mm` : words;
}

/** One named solid per object, in LPS+ mm, which the name says in a form that 3D Slicer reads. */
function stlOf(scan: Volume, objects: WrittenObject[]): string {
  if (!objects.length) throw refusal("an empty mask", "an object with voxels", "click the tumour first");
  return objects.map(({ facts, region }) => {
    const title = `${facts.name.trim().split(/\s+/).join("_")} SPACE=LPS`;
    return `solid ${title}\n${facetsOf(scan, region).join("")}endsolid ${title}\n`;
  }).join("");
}

function facetsOf({ affine }: Volume, { box, inside }: Region): string[] {
  const size = sizeOf(box);
  const { points, triangles } = surfaceOf(inside, size, 1, { low: [0, 0, 0], high: size });
  const corner = (n: number): Index => {
    const [x, y, z] = toWorld(affine, [0, 1, 2].map((axis) => points[3 * n + axis]! + box.low[axis]!) as Index);
    return [-x, -y, z];
  };
  const isMirrored = determinant([0, 1, 2].map((axis) => [0, 1, 2].map((row) => affine[row]![axis]!))) < 0;
  const facets: string[] = [];
  for (let n = 0; n < triangles.length; n += 3) {
    const order = isMirrored ? [0, 2, 1] : [0, 1, 2];
    const [p, q, r] = order.map((t) => corner(triangles[n + t]!)) as [Index, Index, Index];
    const [u, v] = [q, r].map((end) => end.map((mm, axis) => mm - p[axis]!)) as [number[], number[]];
    const across = cross(u, v);
    const length = Math.max(Math.hypot(...across), 1e-12);
    const vertices = [p, q, r].map((end) => `  vertex ${end.map((mm) => mm.toFixed(4)).join(" ")}\n`).join("");
    facets.push(` facet normal ${across.map((mm) => (mm / length).toFixed(4)).join(" ")}\n outer loop\n${vertices} endloop\n endfacet\n`);
  }
  return facets;
}
