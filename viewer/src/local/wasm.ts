// WebAssembly from the page's own folder, where it lies gzipped: web spaces differ in what they compress by themselves.
import { unpacked } from "./files/checks";
import { refusal } from "./refusal";

/** The module's bytes; `address` is that of its asset, without the .gz that a build for a web space adds. */
export async function wasmBytes(address: string): Promise<Uint8Array<ArrayBuffer>> {
  const place = import.meta.env.MODE === "web" ? `${address}.gz` : address;
  const answer = await fetch(place).catch(() => null);
  if (!answer?.ok) throw refusal("a part of this page that could not be loaded", "the connection, or a page that was loaded once as a whole", "load the page again");
  // a server may have unpacked it on the way
  return unpacked(place, new Uint8Array(await answer.arrayBuffer()));
}
