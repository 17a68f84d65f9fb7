// The part of dcmjs that VoxSAM uses; dcmjs comes without types.
declare module "dcmjs" {
  /** Elements by their tag in hexadecimal, as in DICOM JSON; binary values are ArrayBuffers. */
  export type Elements = Record<string, { vr: string; Value: unknown[] }>;
  export const data: {
    DicomMessage: { readFile(buffer: ArrayBuffer, options?: { ignoreErrors?: boolean; untilTag?: string; noCopy?: boolean }): { meta: Elements; dict: Elements } };
    DicomMetaDictionary: { denaturalizeDataset(dataset: Record<string, unknown>): Elements; uid(): string };
    DicomDict: new (meta: Elements) => { dict: Elements; write(options?: object): ArrayBuffer };
  };
  export const log: { getLogger(name: string): { setLevel(level: string): void } };
}
