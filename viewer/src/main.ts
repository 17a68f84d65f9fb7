// Where the page begins: on a VoxSAM server, which is the engine.
import { ServerEngine } from "./engine/server";
import { askForKey, followAddress, readAddress, writeAddress } from "./page/address";
import { Page } from "./page/app";
import { showProblem } from "./page/messages";

async function main(): Promise<void> {
  const { session, key, demo } = readAddress();
  followAddress();
  const page = new Page(new ServerEngine("", key, askForKey, storage()));
  Object.assign(window, { voxsam: page }); // for tests, and for the curious
  try {
    await page.start(session, demo);
  } catch (error) {
    page.busy(null);
    showProblem(error);
    if (!session || !page.info) return;
    writeAddress(null);
    page.welcome(true);
  }
}

// Null where the browser keeps nothing.
function storage(): Storage | null {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

void main();
