// Drives Firefox through the page that needs no server, by WebDriver BiDi: a scan is opened, clicked, its mask saved.
// usage: node firefox.mjs FIREFOX ADDRESS SCAN I,J,K FOLDER, on a display: without one Firefox draws nothing (no WebGL2).
// The mask goes to FOLDER; what was noted of the page is printed as JSON.
import { existsSync, readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import puppeteer from "puppeteer-core";

const LONGEST_MS = 240_000; // that anything may take, on a machine that is busy with other work
const [executablePath, address, scan, click, folder] = process.argv.slice(2);
const downloads = { "browser.download.folderList": 2, "browser.download.dir": folder, "browser.download.alwaysOpenPanel": false };
const browser = await puppeteer.launch({
  browser: "firefox",
  executablePath,
  headless: false,
  protocolTimeout: LONGEST_MS,
  extraPrefsFirefox: { ...downloads, "webgl.force-enabled": true }, // drawn by the processor
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(LONGEST_MS);
  await page.setViewport({ width: 1280, height: 720 });
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("request", (request) => /^(blob:|data:)/.test(request.url()) || request.url().startsWith(address) || faults.push(request.url()));
  await page.goto(address);
  await page.waitForFunction(() => self.crossOriginIsolated && navigator.serviceWorker.controller !== null);
  await page.waitForSelector("#welcome:not([hidden]), #problem:not([hidden])");
  await (await page.waitForSelector("#choose-files")).uploadFile(scan);
  await page.waitForSelector("#panel:not([hidden])");
  const { x, y } = await page.evaluate((index) => {
    const { viewer } = window.voxsam;
    viewer.moveTo(index);
    const { left, top } = document.getElementById("planes").getBoundingClientRect();
    const place = viewer.tiles.projector("axial")(index);
    return { x: left + place.x, y: top + place.y };
  }, click.split(",").map(Number));
  const begun = performance.now();
  await page.mouse.click(x, y);
  await page.waitForFunction(() => /1 mark/.test(document.getElementById("objects").textContent) && document.getElementById("busy").hidden);
  const click_s = (performance.now() - begun) / 1000;
  await page.click("#save-nifti");
  const isSaved = () => readdirSync(folder).some((name) => name.endsWith(".nii.gz")) && !readdirSync(folder).some((name) => name.endsWith(".part"));
  for (const until = Date.now() + LONGEST_MS; !isSaved() && Date.now() < until && existsSync(folder); ) await sleep(100);
  const threads = await page.evaluate(() => (self.crossOriginIsolated ? navigator.hardwareConcurrency : 1));
  console.log(JSON.stringify({ browser: await browser.version(), threads, click_s, faults }));
} finally {
  await browser.close();
}
