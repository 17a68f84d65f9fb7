// How the page is built: into the Python package, from where `voxsam serve` sends it and a wheel carries it.
import { fileURLToPath } from "node:url";
import { defineConfig } from "vitest/config";

const none = fileURLToPath(new URL("src/none.ts", import.meta.url));

export default defineConfig({
  resolve: { alias: { "numcodecs/blosc": none, "numcodecs/lz4": none, "numcodecs/zstd": none } },
  base: "./", // the page also works behind a path, such as /voxsam/
  build: {
    outDir: "../src/voxsam/server/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // no data: addresses, so that a strict Content-Security-Policy holds
    modulePreload: { polyfill: false },
    license: { fileName: "licences.md" }, // of what is bundled, as those licences ask
    chunkSizeWarningLimit: 4000, // NiiVue is one large module
  },
  // `npm run dev` beside a running `voxsam serve`
  server: { proxy: { "/api": "http://127.0.0.1:8000", "/healthz": "http://127.0.0.1:8000" } },
  test: { include: ["test/**/*.test.ts"] },
});
