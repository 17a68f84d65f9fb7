// Vite's plugin for the folder of a web space: beside the page its model, its policy, WebAssembly gzipped, and the service worker that keeps it all.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { gzipSync } from "node:zlib";
import type { Plugin } from "vite";

// Nothing from elsewhere. What the viewer and WebAssembly make themselves are blobs and modules of their own.
const POLICY = [
  "default-src 'none'", "script-src 'self' 'wasm-unsafe-eval'", "worker-src 'self'", "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data: blob:", "font-src 'self' data:", "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
].join("; ");
const MODEL_FILES = ["card.json", "decoder.onnx", "encoder.onnx"];
const DEMO = "demo.nii.gz"; // fetched when it is opened: most visitors have a scan of their own
const WORKER = new URL("service-worker.js", import.meta.url);

// Packages whose code is in a worker: Vite lists the licences of the page's own code alone.
const inWorkers = new Set<string>();

/** For the workers' own builds: notes what they bundle. */
export function noteLicences(): Plugin {
  return {
    name: "voxsam-note-licences",
    generateBundle(_, bundle) {
      for (const file of Object.values(bundle)) {
        for (const id of file.type === "chunk" ? file.moduleIds : []) {
          const root = /^.*\/node_modules\/(@[^/]+\/)?[^/]+(?=\/)/.exec(id)?.[0];
          if (root) inWorkers.add(root);
        }
      }
    },
  };
}

function licenceOf(root: string): string {
  const { name, version, license } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Record<string, string>;
  const file = readdirSync(root).find((one) => /^licen[cs]e/i.test(one));
  return `## ${name} - ${version} (${license})\n\n${file ? readFileSync(join(root, file), "utf8").trim() : ""}\n`;
}

/** A file of the model; of its card without the cases that it was trained on, which nobody looks up in a browser. */
function modelFile(path: string): Buffer | string {
  const content = readFileSync(path);
  return path.endsWith(".json") ? JSON.stringify({ ...(JSON.parse(content.toString()) as object), trained_on: {} }) : content;
}

/** `model` is a folder that `voxsam weights export --format onnx` wrote, `demo` a scan for who has none, if there is one. */
export function webFolder(model: string, demo: string): Plugin {
  return {
    name: "voxsam-web-folder",
    transformIndexHtml: () => [{ tag: "meta", attrs: { "http-equiv": "Content-Security-Policy", content: POLICY }, injectTo: "head-prepend" }],
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        for (const name of MODEL_FILES) this.emitFile({ type: "asset", fileName: `model/${name}`, source: modelFile(join(model, name)) });
        if (existsSync(demo)) this.emitFile({ type: "asset", fileName: DEMO, source: readFileSync(demo) });
        const licences = bundle["licences.txt"];
        if (licences?.type !== "asset") throw new Error("Vite made no licences.txt");
        const missing = [...inWorkers].map(licenceOf).filter((text) => !String(licences.source).includes(text.split("\n")[0]!));
        licences.source = [String(licences.source), ...missing.sort()].join("\n");
        for (const [name, file] of Object.entries(bundle)) {
          if (file.type !== "asset" || !name.endsWith(".wasm")) continue;
          this.emitFile({ type: "asset", fileName: `${name}.gz`, source: gzipSync(file.source, { level: 9 }) });
          delete bundle[name];
        }
      },
    },
    writeBundle({ dir }) {
      const files = filesIn(dir!).filter((name) => name !== "service-worker.js" && name !== DEMO).sort();
      const digest = createHash("sha256");
      for (const name of files) digest.update(name).update(readFileSync(join(dir!, name)));
      const script = readFileSync(WORKER, "utf8")
        .replace("/*files*/ []", JSON.stringify(files))
        .replace('/*version*/ ""', JSON.stringify(digest.digest("hex").slice(0, 16)));
      writeFileSync(join(dir!, "service-worker.js"), script);
    },
  };
}

function filesIn(folder: string): string[] {
  const entries = readdirSync(folder, { withFileTypes: true, recursive: true }).filter((entry) => entry.isFile());
  return entries.map((entry) => relative(folder, join(entry.parentPath, entry.name)).replaceAll("\\", "/"));
}
