// The page's engine: the server that sent it or, in a build for a web space (mode `web`), the browser; never both.
/// <reference types="vite/client" />
import type { Engine } from "./engine";
import { ServerEngine } from "./server";

export const IS_LOCAL = import.meta.env.MODE === "web";

/** `key` is the server's; `askForKey` is called if it wants another. `store` keeps the list of recent sessions. */
export async function chosenEngine(
  key: string | null,
  askForKey: (wrong: boolean) => Promise<string>,
  store: Pick<Storage, "getItem" | "setItem"> | null,
): Promise<Engine> {
  if (!IS_LOCAL) return new ServerEngine("", key, askForKey, store);
  const { LocalEngine } = await import("../local/engine");
  return LocalEngine.start(store);
}
