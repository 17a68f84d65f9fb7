// Where the page begins.
import { followAddress, readAddress, writeAddress } from "./address";
import { ApiError } from "./api";
import { Page } from "./app";
import { showProblem } from "./tell";

async function main(): Promise<void> {
  const { session, key, demo } = readAddress();
  followAddress();
  const page = new Page(key);
  Object.assign(window, { voxsam: page }); // for tests, and for the curious
  try {
    await page.start(session, demo);
  } catch (error) {
    page.busy(null);
    showProblem(error);
    if (error instanceof ApiError && session && page.info) {
      writeAddress(null);
      page.welcome(true);
    }
  }
}

void main();
