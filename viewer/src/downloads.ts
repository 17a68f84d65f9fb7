// Masks and reports as files.
import type { Api } from "./api";
import { save } from "./dom";
import { say, showProblem } from "./tell";
import type { State } from "./types";

const FILES = { nifti: "mask.nii.gz", seg: "mask.seg.dcm", report: "report.html", json: "report.json" } as const;
export type Download = keyof typeof FILES;

const SUFFIX = /(\.nii(\.gz)?|\.nrrd|\.mha|\.zip)$/i;

/** Fetch a file of the session and hand it to the user, named after the scan. */
export async function download(api: Api, { id, name }: State, what: Download): Promise<void> {
  const file = FILES[what];
  const stem = name.replace(SUFFIX, "").replaceAll(/[^\w-]+/g, "_") || "scan";
  try {
    save(await api.download(id, file), `${stem}_${file}`);
    say(`${file} saved`);
  } catch (error) {
    showProblem(error);
  }
}
