// Builds a script of this folder for Node.js, so that tests/web can run the browser's own code on what Python wrote:
// npx vite build --config golden/vite.config.ts --ssr golden/NAME.ts --outDir FOLDER, then node FOLDER/NAME.js
import { defineConfig } from "vite";

export default defineConfig({
  publicDir: false,
  ssr: { noExternal: true },
  build: { target: "node20", emptyOutDir: false, minify: false },
});
