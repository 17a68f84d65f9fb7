// Keeps the page, whole, for the time without a network. FILES and VERSION are written in by folder.ts.
// A newer version is fetched beside the old one and waits until no tab has that open, or the user asks for it.
const FILES = /*files*/ [];
const VERSION = /*version*/ "";
const OURS = `voxsam ${new URL(".", location.href).pathname} `; // caches belong to all of a host, and it may have the page twice
const CACHE = OURS + VERSION;
// Isolated from other sites, so that WebAssembly's threads may share memory.
const ISOLATED = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

self.addEventListener("install", (event) => {
  const fetched = (file) => new Request(file, { cache: file.includes("assets/") ? "default" : "no-cache" });
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES.map(fetched))));
});

self.addEventListener("activate", (event) => {
  const old = async () => (await caches.keys()).filter((name) => name.startsWith(OURS) && name !== CACHE);
  event.waitUntil(old().then((names) => Promise.all(names.map((name) => caches.delete(name)))).then(() => self.clients.claim()));
});

self.addEventListener("message", ({ data }) => {
  if (data === "take over") self.skipWaiting();
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === location.origin) event.respondWith(answer(request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  const isPage = request.mode === "navigate" && new URL(request.url).pathname === new URL(self.registration.scope).pathname;
  const kept = await cache.match(isPage ? new URL("index.html", self.registration.scope) : request, { ignoreSearch: true });
  const found = kept ?? (await fetch(request));
  // Also of workers and of what they load: a page that is isolated takes nothing else.
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(ISOLATED)) headers.set(name, value);
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return found.type === "opaqueredirect" || found.status === 0 ? found : new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
