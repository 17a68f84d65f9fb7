// The page's entry point. Its engine runs on the VoxSAM server that sent the page, or in the browser itself.
import { chosenEngine, IS_LOCAL } from "./engine/choice";
import { askForKey, followAddress, readAddress, writeAddress } from "./page/address";
import { Page } from "./page/app";
import { showPlace } from "./page/place";
import { showProblem } from "./page/messages";

async function main(): Promise<void> {
  const { session, key, demo } = readAddress();
  followAddress();
  showPlace(IS_LOCAL);
  const store = storage();
  const page = new Page(await chosenEngine(key, askForKey, store), store);
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
