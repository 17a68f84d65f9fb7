// The report: what was done, and the results, as JSON and as a page for people; fields as in voxsam.report.report.
import type { Elements } from "dcmjs";
import type { Diameter, KnownPrompt } from "../../engine/engine";
import { orientationOf } from "../../stage/geometry";
import { voxelsOf } from "../region";
import type { Volume } from "../volume";
import type { ReportFacts, WrittenObject } from "../write";
import { format } from "./checks";

const SAID_OF_DICOM = {
  patient: { name: "00100010", id: "00100020" },
  study: { uid: "0020000D", date: "00080020", description: "00081030" },
  series: { uid: "0020000E", number: "00200011", description: "0008103E" },
};
const STYLE = `:root { color-scheme: light dark }
body { margin: 0 auto; max-width: 1000px; padding: 24px; font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 24px }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: 6px 12px 6px 0; border-bottom: 1px solid #8884 }
th { font-weight: normal; width: 16em; opacity: 0.75 }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
footer { margin-top: 24px; font-size: 14px; opacity: 0.75 }`;

const round = (value: number, digits: number) => Math.round(value * 10 ** digits) / 10 ** digits;

/** The report's facts, in JSON's types only. */
export function reportOf(scan: Volume, objects: WrittenObject[], facts: ReportFacts) {
  const axes = orientationOf(scan.affine, scan.shape).axes;
  const letters = [0, 1, 2].map((axis) => {
    const world = axes.findIndex((along) => Math.abs(along) === axis + 1);
    return ["RL", "AP", "SI"][world]![axes[world]! > 0 ? 0 : 1];
  });
  return {
    voxsam: facts.version,
    scan: {
      name: scan.name,
      shape: scan.shape,
      spacing_mm: [0, 1, 2].map((axis) => round(Math.hypot(...[0, 1, 2].map((row) => scan.affine[row]![axis]!)), 6)),
      axes: letters.join(""),
      modality: scan.modality,
    },
    ...whoseOf(scan),
    date: new Date().toISOString().replace(/\.\d+Z$/, "+00:00"),
    model: facts.model,
    clicks: objects.flatMap(({ clicks }) => clicks.map(clickOf)),
    confidence: null, // each object has its own
    class: null, // each object has its own, too
    objects: objects.map(objectOf),
    seconds: { "all steps": round(facts.seconds, 4) },
    messages: [...scan.remarks, ...objects.flatMap(({ remarks }) => remarks)],
  };
}

type Report = ReturnType<typeof reportOf>;

function clickOf(prompt: KnownPrompt) {
  return prompt.kind === "point" ? { index: prompt.index, positive: prompt.positive } : prompt;
}

function objectOf({ number, facts, region, clicks, volume_ml, longest, perpendicular, edited, confidence, class_name }: WrittenObject) {
  const line = (diameter: Diameter | null) =>
    diameter && { mm: round(diameter.mm, 3), ends: diameter.ends.map((end) => end.map((voxel) => round(voxel, 3))) };
  return {
    label: number,
    voxels: voxelsOf(region),
    volume_ml: round(volume_ml, 6),
    longest_axial_diameter_mm: longest ? round(longest.mm, 3) : 0,
    longest: line(longest),
    perpendicular: line(perpendicular),
    name: facts.name,
    type: facts.type,
    clicks: clicks.map(clickOf),
    edited: edited ?? false,
    confidence: confidence ?? null,
    class: class_name ?? null,
  };
}

function whoseOf({ dicom }: Volume): Record<string, Record<string, string>> {
  if (!dicom) return {};
  const groups = Object.entries(SAID_OF_DICOM);
  return Object.fromEntries(groups.map(([kind, words]) => [kind, Object.fromEntries(Object.entries(words).map(([word, tag]) => [word, textOf(dicom.common, tag)]))]));
}

function textOf(common: Elements, tag: string): string {
  const [value] = common[tag]?.Value ?? [];
  const alphabetic = (value as { Alphabetic?: string } | undefined)?.Alphabetic;
  return String(alphabetic ?? value ?? "");
}

/** The report as one self-contained page. */
export function pageOf(report: Report): string {
  const rows = rowsOf(report).map(([name, value]) => `<tr><th>${escaped(name)}</th><td>${escaped(value)}</td></tr>`);
  const messages = report.messages.map((message) => `<li>${escaped(message)}</li>`);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>VoxSAM</title>
<style>${STYLE}</style>
</head>
<body>
<h1>VoxSAM</h1>
<table>
${rows.join("\n")}
</table>
${messages.length ? `<ul>\n${messages.join("\n")}\n</ul>` : ""}
<footer>VoxSAM ${escaped(report.voxsam)}. Made in a browser. Research use only, not a medical device.</footer>
</body>
</html>
`;
}

function rowsOf(report: Report): [string, string][] {
  const { scan, objects } = report;
  const rows: [string, string][] = [
    ["Scan", scan.name],
    ["Voxels", scan.shape.join(" × ")],
    ["Spacing", `${scan.spacing_mm.map((mm) => format(mm, 4)).join(" × ")} mm, axes ${scan.axes}`],
    ["Model", report.model],
    ["Clicks", clicksIn(report.clicks)],
  ];
  for (const [kind, words] of Object.entries(SAID_OF_DICOM)) {
    const of = (report as unknown as Record<string, Record<string, string> | undefined>)[kind] ?? {};
    const said = Object.keys(words).filter((word) => word !== "uid").map((word) => of[word]).filter(Boolean);
    if (said.length) rows.push([kind[0]!.toUpperCase() + kind.slice(1), said.join(", ")]);
  }
  rows.push(["Date", report.date]);
  for (const object of objects) {
    const number = objects.length > 1 ? ` ${object.label}` : "";
    rows.push([`Object${number}`, `${object.name} (${object.type.meaning})${object.edited ? ", edited by hand" : ""}`]);
    if (number) rows.push([`Clicks${number}`, clicksIn(object.clicks)]);
    rows.push([`Volume${number}`, `${object.volume_ml.toFixed(1)} mL (${object.voxels.toLocaleString("en")} voxels)`]);
    rows.push([`Longest axial diameter${number}`, `${object.longest_axial_diameter_mm.toFixed(1)} mm`]);
    if (object.perpendicular) rows.push([`Perpendicular${number}`, `${object.perpendicular.mm.toFixed(1)} mm`]);
    if (object.class) rows.push([`Class${number}`, object.class]);
    if (object.confidence) {
      const { dice, volume_ml } = object.confidence;
      rows.push([`Expected${number}`, `Dice ${dice.toFixed(2)}, volume ${volume_ml.map((ml) => format(ml, 3)).join(" to ")} mL (80 %)`]);
    }
  }
  if (!objects.length) rows.push(["Volume", "0 mL: the mask is empty"]);
  return [...rows, ["Time, all steps", `${format(report.seconds["all steps"], 3)} s`]];
}

function clicksIn(clicks: Report["clicks"]): string {
  return clicks.map((click) => ("index" in click ? `(${click.index.join(", ")}) ${click.positive ? "positive" : "negative"}` : click.kind)).join("; ") || "none";
}

function escaped(text: string): string {
  const signs: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return text.replace(/[&<>"']/g, (sign) => signs[sign]!);
}
