// How the page is built: into the Python package, from where `voxsam serve` sends it and a wheel carries it; or, in the mode `web`, as a
// folder for a web space, with the engine that runs in the browser.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";
import { noteLicences, webFolder } from "./web/folder.ts";

const at = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const none = at("src/none.ts");
// Whose threads load a file of their own; the package's bundle would have them load ours.
const onnx = at("node_modules/onnxruntime-web/dist/ort.wasm.min.mjs");
const dcmjs = at("node_modules/dcmjs/build/dcmjs.es.js"); // also for dcmjs-codecs, which would take a second copy
const demo = process.env["VOXSAM_DEMO_SCAN"] ?? "../build/web-demo/scan.nii.gz"; // a folder may go without

export default defineConfig(({ mode }) => ({
  define: { "import.meta.env.DEMO": JSON.stringify(existsSync(demo)) },
  resolve: { alias: { "numcodecs/blosc": none, "numcodecs/lz4": none, "numcodecs/zstd": none, "onnxruntime-web/wasm": onnx, dcmjs } },
  base: "./", // the page also works behind a path, such as /voxsam/
  plugins: mode === "web" ? [webFolder(process.env["VOXSAM_MODEL_FOLDER"] ?? "../build/web-model", demo)] : [],
  worker: { format: "es", plugins: () => [noteLicences()] },
  build: {
    outDir: mode === "web" ? "../dist/web" : "../src/voxsam/server/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // no data: addresses, so that a strict Content-Security-Policy holds
    modulePreload: { polyfill: false },
    license: { fileName: "licences.txt" }, // of what is bundled, as those licences ask
    chunkSizeWarningLimit: 4000, // NiiVue is one large module
  },
  // `npm run dev` beside a running `voxsam serve`
  server: { proxy: { "/api": "http://127.0.0.1:8000", "/healthz": "http://127.0.0.1:8000" } },
  test: { include: ["test/**/*.test.ts"] },
}));
