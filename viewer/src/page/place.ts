// Where the engine is, in words: what happens to scans, what this browser lacks; and, in the browser, the copy that works offline.
import { element } from "./dom";

const HERE = "Scans stay in this browser: nothing is sent anywhere.";
// A module with one instruction of 128 bits: v128.const, dropped.
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 23, 1, 21, 0, 253, 12, ...Array<number>(16).fill(0), 26, 11);
const RELOADED = "voxsam-reloaded"; // once, for threads

export function showPlace(isLocal: boolean): void {
  if (!isLocal) return;
  element("where").textContent = HERE;
  const missing = limits();
  element("limits").hidden = !missing;
  element("limits").textContent = missing;
  void keepOffline();
}

/** What this browser cannot do that the engine in it needs, in one line; "" for nothing. */
function limits(): string {
  if (!WebAssembly.validate(SIMD)) return "This browser's WebAssembly has no SIMD: it is too old to segment here. Take a newer one, or a VoxSAM server.";
  if (typeof DecompressionStream === "undefined") return "This browser cannot unpack compressed files: it is too old. Take a newer one, or a VoxSAM server.";
  return "";
}

/** Let the service worker keep the page; it says when a newer version waits. */
async function keepOffline(): Promise<void> {
  if (!("serviceWorker" in navigator)) return; // plain http from another machine
  const { serviceWorker } = navigator;
  const registration = await serviceWorker.register("./service-worker.js").catch(() => undefined);
  if (!registration) return; // switched off, as in private windows: the page works, but not offline
  const offer = () => {
    if (registration.waiting && serviceWorker.controller) showNewer(registration.waiting);
  };
  offer();
  registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
  await serviceWorker.ready;
  // What the worker sends is isolated, so that threads may share memory; what came before it was not.
  if (crossOriginIsolated || sessionStorage.getItem(RELOADED)) return;
  if (!serviceWorker.controller) await new Promise((done) => serviceWorker.addEventListener("controllerchange", done, { once: true }));
  if (!isIdle()) return; // the next visit has them
  sessionStorage.setItem(RELOADED, "1");
  location.reload();
}

/** Whether no scan is open or being opened. */
function isIdle(): boolean {
  return element("panel").hidden && element("busy").hidden && !location.hash;
}

function showNewer(waiting: ServiceWorker): void {
  const link = document.createElement("button");
  link.type = "button";
  link.textContent = "A newer version is here: use it";
  link.addEventListener("click", () => {
    navigator.serviceWorker.addEventListener("controllerchange", () => location.reload(), { once: true });
    waiting.postMessage("take over");
  });
  element("elsewhere").replaceChildren(link);
  element("elsewhere").hidden = false;
}
