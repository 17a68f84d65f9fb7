// Says where scans go and what this browser lacks; with the engine in the browser, keeps the page for offline use.
import { element } from "./dom";

const HERE = "Scans stay in this browser: nothing is sent anywhere.";
// A module with one 128-bit instruction: v128.const, dropped.
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 23, 1, 21, 0, 253, 12, ...Array<number>(16).fill(0), 26, 11);
const RELOADED = "voxsam-reloaded"; // set by the one reload that enables threads

export function showPlace(isLocal: boolean): void {
  if (!isLocal) return;
  element("where").textContent = HERE;
  const missing = limits();
  element("limits").hidden = !missing;
  element("limits").textContent = missing;
  void keepOffline();
}

/** What this browser lacks to run the engine, in one line; "" if nothing. */
function limits(): string {
  if (!WebAssembly.validate(SIMD)) return "This browser's WebAssembly has no SIMD: it is too old to segment here. Take a newer one, or a VoxSAM server.";
  if (typeof DecompressionStream === "undefined") return "This browser cannot unpack compressed files: it is too old. Take a newer one, or a VoxSAM server.";
  return "";
}

/** Let the service worker keep the page for offline use, and offer a newer version when one is waiting. */
async function keepOffline(): Promise<void> {
  if (!("serviceWorker" in navigator)) return; // as over plain http from another machine
  const { serviceWorker } = navigator;
  const registration = await serviceWorker.register("./service-worker.js").catch(() => undefined);
  if (!registration) return; // switched off, as in private windows: the page works, but not offline
  const offer = () => {
    if (registration.waiting && serviceWorker.controller) showNewer(registration.waiting);
  };
  offer();
  registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
  await serviceWorker.ready;
  // A page from the service worker is cross-origin isolated, so that threads may share memory; the first one was not.
  if (crossOriginIsolated || sessionStorage.getItem(RELOADED)) return;
  if (!serviceWorker.controller) await new Promise((done) => serviceWorker.addEventListener("controllerchange", done, { once: true }));
  if (!isIdle()) return; // the next visit will have them
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
