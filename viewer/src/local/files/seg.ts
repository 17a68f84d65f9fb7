// Writes DICOM-SEG through dcmjs: a binary segment per object, which may share voxels, on the scan's own series.
// As in voxsam.io.dicom.seg: patient and study as in the series, every instance referenced, VoxSAM as the algorithm.
import { data as dicom, type Elements } from "dcmjs";
import { isEmpty, sizeOf } from "../../stage/geometry";
import { overlapping, type Region } from "../region";
import { categoryOf } from "../types";
import type { Volume } from "../volume";
import type { WrittenObject } from "../write";
import { refusal } from "../refusal";

const SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4";
const EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1";
const IMPLEMENTATION = "2.25.333347779709678217297223881435172422156"; // VoxSAM's
const MANUFACTURER = "VoxSAM contributors";
const DESCRIPTION = "VoxSAM segmentation, not reviewed, research use only";
const SERIES_NUMBER = 9100; // far above those of scanners
const MAX_TEXT = 64; // characters of a name (VR LO)
// Patient and study, repeated from the series; of the first nine (type 2) those that it lacks are written empty.
const PATIENT_AND_STUDY = ["00100010", "00100020", "00100030", "00100040", "00080020", "00080030", "00080090", "00200010", "00080050"];
const ALSO_REPEATED = [
  ...["00080201", "00081030", "00100021", "00101010", "00101020", "00101030", "00120062", "00120063", "00120064", "00280303"],
  ...["00120010", "00120020", "00120021", "00120030", "00120031", "00120040", "00120042", "00120050"],
];
const NEEDED = { StudyInstanceUID: "0020000D", SeriesInstanceUID: "0020000E", FrameOfReferenceUID: "00200052" };
const LOSSY = { LossyImageCompression: "00282110", LossyImageCompressionRatio: "00282112", LossyImageCompressionMethod: "00282114" };

type Dataset = Record<string, unknown>;

/** The file. Throws EngineError for a scan that is not DICOM, or that cannot be referenced. */
export function segmentationOf(scan: Volume, objects: WrittenObject[], facts: { model: string; version: string }): ArrayBuffer {
  const { dicom: series } = scan;
  if (!series) throw refusal("DICOM-SEG of a scan that is not DICOM", "a DICOM series", "download the NIfTI instead");
  const { common, frames } = series;
  const missing = Object.entries(NEEDED).filter(([, tag]) => !common[tag]?.Value?.length).map(([keyword]) => keyword);
  if (frames.some(({ sopInstance, sopClass }) => !sopInstance || !sopClass)) missing.push("SOPInstanceUID");
  if (missing.length) throw refusal(`a mask of a DICOM series without ${missing.join(", ")}`, "a series that can be referred to", "export it again, or download the NIfTI");
  const [columns, rows] = scan.shape;
  const planes = planesOf(scan, objects);
  const one = <T>(tag: string) => common[tag]?.Value?.[0] as T;
  const organisation = dicom.DicomMetaDictionary.uid();
  const instance = dicom.DicomMetaDictionary.uid();
  const step = Math.hypot(...[0, 1, 2].map((row) => scan.affine[row]![2]!));
  const now = new Date().toISOString().replace(/[-:T]/g, "");
  const used = [...new Set(planes.map(({ k }) => k))];
  const dataset: Dataset = {
    _vrMap: { PixelData: "OB" },
    SpecificCharacterSet: "ISO_IR 192",
    SOPClassUID: SEGMENTATION, SOPInstanceUID: instance, Modality: "SEG", ImageType: ["DERIVED", "PRIMARY"],
    StudyInstanceUID: one(NEEDED.StudyInstanceUID), SeriesInstanceUID: dicom.DicomMetaDictionary.uid(), FrameOfReferenceUID: one(NEEDED.FrameOfReferenceUID),
    PositionReferenceIndicator: one("00201040") ?? "",
    SeriesNumber: SERIES_NUMBER, InstanceNumber: 1, SeriesDescription: DESCRIPTION,
    ContentDate: now.slice(0, 8), ContentTime: now.slice(8, 14), SeriesDate: now.slice(0, 8), SeriesTime: now.slice(8, 14),
    ContentLabel: "TUMOUR", ContentDescription: DESCRIPTION, ContentCreatorName: "",
    Manufacturer: MANUFACTURER, ManufacturerModelName: "VoxSAM", SoftwareVersions: facts.version, DeviceSerialNumber: "0",
    Rows: rows, Columns: columns, NumberOfFrames: planes.length, SamplesPerPixel: 1, PhotometricInterpretation: "MONOCHROME2",
    BitsAllocated: 1, BitsStored: 1, HighBit: 0, PixelRepresentation: 0, LossyImageCompression: one(LOSSY.LossyImageCompression) ?? "00",
    SegmentationType: "BINARY", SegmentsOverlap: overlapping(objects.map(({ region }) => region)) ? "YES" : "NO",
    SegmentSequence: objects.map((object, n) => segment(object, n + 1, facts)),
    DimensionOrganizationType: "3D",
    DimensionOrganizationSequence: [{ DimensionOrganizationUID: organisation }],
    DimensionIndexSequence: [
      { DimensionOrganizationUID: organisation, DimensionIndexPointer: 0x0062000b, FunctionalGroupPointer: 0x0062000a, DimensionDescriptionLabel: "Segment Number" },
      { DimensionOrganizationUID: organisation, DimensionIndexPointer: 0x00200032, FunctionalGroupPointer: 0x00209113, DimensionDescriptionLabel: "Image Position Patient" },
    ],
    ReferencedSeriesSequence: [{
      SeriesInstanceUID: one(NEEDED.SeriesInstanceUID),
      ReferencedInstanceSequence: instancesOf(scan),
    }],
    SharedFunctionalGroupsSequence: [{
      PlaneOrientationSequence: [{ ImageOrientationPatient: orientationOf(scan) }],
      PixelMeasuresSequence: [{
        PixelSpacing: (common["00280030"]?.Value as number[]).map(decimal),
        SliceThickness: decimal(one<number>("00180050") || step),
        SpacingBetweenSlices: decimal(step),
      }],
    }],
    PerFrameFunctionalGroupsSequence: planes.map(({ number, k }) => ({
      FrameContentSequence: [{ DimensionIndexValues: [number, used.indexOf(k) + 1] }],
      PlanePositionSequence: [{ ImagePositionPatient: frames[k]!.position.map(decimal) }],
      SegmentIdentificationSequence: [{ ReferencedSegmentNumber: number }],
      DerivationImageSequence: [derivation(scan, k)],
    })),
    PixelData: packed(planes.map(({ bits }) => bits)).buffer,
  };
  const file = new dicom.DicomDict({
    "00020001": { vr: "OB", Value: [Uint8Array.of(0, 1).buffer] },
    "00020002": { vr: "UI", Value: [SEGMENTATION] },
    "00020003": { vr: "UI", Value: [instance] },
    "00020010": { vr: "UI", Value: [EXPLICIT_LITTLE_ENDIAN] },
    "00020012": { vr: "UI", Value: [IMPLEMENTATION] },
  });
  file.dict = { ...dicom.DicomMetaDictionary.denaturalizeDataset(dataset), ...repeated(common) };
  return file.write();
}

function repeated(common: Elements): Elements {
  const empty = Object.fromEntries(PATIENT_AND_STUDY.map((tag, n) => [tag, { vr: ["PN", "LO", "DA", "CS", "DA", "TM", "PN", "SH", "SH"][n]!, Value: [] }]));
  const lossy = common[LOSSY.LossyImageCompression]?.Value?.[0] === "01" ? Object.values(LOSSY) : [];
  const found = [...PATIENT_AND_STUDY, ...ALSO_REPEATED, ...lossy].filter((tag) => common[tag]);
  return { ...empty, ...Object.fromEntries(found.map((tag) => [tag, common[tag]!])) };
}

const code = ({ value, scheme, meaning }: { value: string; scheme: string; meaning: string }) => [{ CodeValue: value, CodingSchemeDesignator: scheme, CodeMeaning: meaning }];

function segment({ facts, inWords }: WrittenObject, number: number, { model, version }: { model: string; version: string }): Dataset {
  const name = facts.name.slice(0, MAX_TEXT);
  return {
    SegmentNumber: number, SegmentLabel: name, SegmentDescription: inWords, SegmentAlgorithmType: "SEMIAUTOMATIC", SegmentAlgorithmName: "VoxSAM",
    SegmentedPropertyCategoryCodeSequence: code(categoryOf(facts.type)),
    SegmentedPropertyTypeCodeSequence: code(facts.type),
    SegmentationAlgorithmIdentificationSequence: [{
      AlgorithmFamilyCodeSequence: code({ value: "123110", scheme: "DCM", meaning: "Artificial Intelligence" }),
      AlgorithmName: "VoxSAM", AlgorithmVersion: version, AlgorithmSource: MANUFACTURER, AlgorithmParameters: `model=${model}`,
    }],
    TrackingID: name, TrackingUID: dicom.DicomMetaDictionary.uid(),
    RecommendedDisplayCIELabValue: labOf(facts.colour),
  };
}

/** A colour as DICOM writes it: CIE L*a*b* in 16 bits each (PS3.3 C.10.7.1.1). */
function labOf(colour: string): number[] {
  const linear = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255).map((c) => (c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92));
  const [r, g, b] = linear as [number, number, number];
  const root = (c: number) => (c >= 216 / 24389 ? Math.cbrt(c) : (841 / 108) * c + 4 / 29);
  const x = root((r * 0.4124 + g * 0.3576 + b * 0.1805) / 0.95047);
  const y = root(r * 0.2126 + g * 0.7152 + b * 0.0722);
  const z = root((r * 0.0193 + g * 0.1192 + b * 0.9505) / 1.08883);
  const scale = (value: number, low: number, high: number) => Math.round(((Math.min(Math.max(value, low), high) - low) / (high - low)) * 65535);
  return [scale(116 * y - 16, 0, 100), scale(500 * (x - y), -128, 127), scale(200 * (y - z), -128, 127)];
}

function instancesOf({ dicom: series }: Volume): Dataset[] {
  const once = new Map(series!.frames.map(({ sopClass, sopInstance }) => [sopInstance, sopClass]));
  return [...once].map(([instance, kind]) => ({ ReferencedSOPClassUID: kind, ReferencedSOPInstanceUID: instance }));
}

function derivation({ dicom: series }: Volume, k: number): Dataset {
  const { sopClass, sopInstance, frame } = series!.frames[k]!;
  return {
    DerivationCodeSequence: code({ value: "113076", scheme: "DCM", meaning: "Segmentation" }),
    SourceImageSequence: [{
      ReferencedSOPClassUID: sopClass, ReferencedSOPInstanceUID: sopInstance, ...(frame && { ReferencedFrameNumber: frame }),
      PurposeOfReferenceCodeSequence: code({ value: "121322", scheme: "DCM", meaning: "Source image for image processing operation" }),
    }],
  };
}

function orientationOf({ affine }: Volume): string[] {
  return [0, 1].flatMap((axis) => {
    const step = [-1, -1, 1].map((sign, row) => sign * affine[row]![axis]!);
    return step.map((mm) => decimal(mm / Math.hypot(...step)));
  });
}

/** A number in at most 16 characters, as a decimal string allows (PS3.5 6.2). */
export function decimal(value: number): string {
  const whole = String(value);
  if (whole.length <= 16) return whole;
  for (let digits = 15; ; digits--) {
    const text = value.toPrecision(digits);
    if (text.length <= 16) return text;
  }
}

interface Plane {
  number: number;
  k: number;
  bits: Uint8Array; // 0 or 1, row by row
}

/** The slices in which each object has voxels, object by object; one empty slice if there are none. */
function planesOf({ shape: [ni, nj] }: Volume, objects: WrittenObject[]): Plane[] {
  const planes = objects.flatMap(({ region }, n) => slicesOf(region, n + 1, ni, nj));
  return planes.length ? planes : [{ number: 1, k: 0, bits: new Uint8Array(ni * nj) }];
}

function slicesOf({ box, inside }: Region, number: number, ni: number, nj: number): Plane[] {
  if (isEmpty(box)) return [];
  const [width, height, depth] = sizeOf(box);
  const planes: Plane[] = [];
  for (let k = 0; k < depth; k++) {
    const slice = inside.subarray(k * width * height, (k + 1) * width * height);
    if (!slice.includes(1)) continue;
    const bits = new Uint8Array(ni * nj);
    for (let j = 0; j < height; j++) bits.set(slice.subarray(j * width, (j + 1) * width), (box.low[1] + j) * ni + box.low[0]);
    planes.push({ number, k: box.low[2] + k, bits });
  }
  return planes;
}

/** Bits packed across frames, the first in the lowest bit, in an even number of bytes (PS3.5 8.1.1, 8.2). */
function packed(planes: Uint8Array[]): Uint8Array {
  const size = planes[0]!.length;
  const bytes = Math.ceil((planes.length * size) / 8);
  const out = new Uint8Array(bytes + (bytes % 2));
  planes.forEach((bits, frame) => {
    for (let n = bits.indexOf(1); n >= 0; n = bits.indexOf(1, n + 1)) out[(frame * size + n) >> 3]! |= 1 << ((frame * size + n) & 7);
  });
  return out;
}
