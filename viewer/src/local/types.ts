// The types of objects that the page offers, each with its category; codes of DICOM PS3.16 CID 7159, 7151 and 7166.
import type { ObjectType } from "../engine/engine";

const ABNORMAL: ObjectType = { value: "49755003", scheme: "SCT", meaning: "Morphologically Abnormal Structure" };
const ANATOMICAL: ObjectType = { value: "123037004", scheme: "SCT", meaning: "Anatomical Structure" };
const ANATOMY = ["59441001", "91772007"]; // lymph node, organ

export const TYPES: ObjectType[] = [
  ["108369006", "Neoplasm"], ["372087000", "Neoplasm, Primary"], ["14799000", "Neoplasm, Secondary"], ["59441001", "Lymph Node"], ["27925004", "Nodule"],
  ["367643001", "Cyst"], ["6574001", "Necrosis"], ["79654002", "Edema"], ["50960005", "Hemorrhage"], ["52988006", "Lesion"], ["91772007", "Organ"],
].map(([value, meaning]) => ({ value: value!, scheme: "SCT", meaning: meaning! }));

/** The category of a type; an abnormal structure for types that are not offered. */
export function categoryOf({ value, scheme }: ObjectType): ObjectType {
  return scheme === "SCT" && ANATOMY.includes(value) ? ANATOMICAL : ABNORMAL;
}
