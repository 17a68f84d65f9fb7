// Compressed DICOM pixels: RLE, JPEG, JPEG-LS, JPEG 2000 and HTJ2K, by dcmjs-codecs' WebAssembly, loaded only for them.
import { Context, NativeCodecs } from "dcmjs-codecs";
import address from "dcmjs-codecs/build/dcmjs-native-codecs.wasm?url";
import { wasmBytes } from "../wasm";
import { number, sizeOfSlice, text, type Slice } from "./dicom";
import { undecodable } from "./series";

type Decoder = "decodeRle" | "decodeJpeg" | "decodeJpegLs" | "decodeJpeg2000" | "decodeHtJpeg2000";
const DECODERS: Record<string, Decoder> = {
  "1.2.840.10008.1.2.5": "decodeRle",
  "1.2.840.10008.1.2.4.50": "decodeJpeg", "1.2.840.10008.1.2.4.51": "decodeJpeg",
  "1.2.840.10008.1.2.4.57": "decodeJpeg", "1.2.840.10008.1.2.4.70": "decodeJpeg",
  "1.2.840.10008.1.2.4.80": "decodeJpegLs", "1.2.840.10008.1.2.4.81": "decodeJpegLs",
  "1.2.840.10008.1.2.4.90": "decodeJpeg2000", "1.2.840.10008.1.2.4.91": "decodeJpeg2000",
  "1.2.840.10008.1.2.4.201": "decodeHtJpeg2000", "1.2.840.10008.1.2.4.202": "decodeHtJpeg2000", "1.2.840.10008.1.2.4.203": "decodeHtJpeg2000",
};

/** The pixels of a compressed frame as little-endian bytes, with the bits its header allocates. Throws EngineError. */
export async function unpackedFrame(slice: Slice, frame: Uint8Array): Promise<Uint8Array> {
  const decode = DECODERS[slice.syntax];
  if (!decode) throw undecodable(slice);
  await loaded();
  const { header } = slice;
  const [width, height] = sizeOfSlice(slice);
  const bitsAllocated = number(header, "BitsAllocated", 16);
  const context = new Context({
    width, height, bitsAllocated, encodedBuffer: frame, samplesPerPixel: 1, planarConfiguration: 0,
    bitsStored: number(header, "BitsStored", bitsAllocated),
    pixelRepresentation: number(header, "PixelRepresentation", 0),
    photometricInterpretation: text(header, "PhotometricInterpretation") || "MONOCHROME2",
  });
  try {
    return NativeCodecs[decode](context).getDecodedBuffer()!;
  } catch {
    throw undecodable(slice);
  }
}

let ready: Promise<void> | null = null;

/** Load the codecs, once. Their own loader evaluates text as code, which the page's security policy forbids. */
function loaded(): Promise<void> {
  const codecs = NativeCodecs as unknown as { _getWebAssemblyBytes(): Promise<ArrayBuffer> };
  codecs._getWebAssemblyBytes = async () => (await wasmBytes(address)).buffer;
  ready ??= NativeCodecs.initializeAsync();
  return ready;
}
