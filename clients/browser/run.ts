// Runs a bundle in Chromium, in a page of the server's own origin: run BUNDLE HOST:PORT
// A bundle that exports `tasks` runs them, one line each. Another runs by itself until it has saved image.png.
import { chromium, type Page } from "playwright-core";
import connectWeb from "../node_modules/@connectrpc/connect-web/package.json" with { type: "json" };
import type { tasks } from "./tasks";

declare global {
  interface Window {
    page?: { tasks?: typeof tasks };
    run: ReturnType<typeof tasks>;
  }
}

const [bundle, address] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox"] });
try {
  const page = await browser.newPage({ bypassCSP: true });
  page.on("pageerror", (error) => console.log(String(error)));
  const saved = downloads(page);
  await page.goto(`http://${address}/`); // whatever it answers, the page is of the server's own origin
  await page.addScriptTag({ path: bundle }); // one that exports leaves the global `page`
  const names = await page.evaluate(() => Object.keys((window.run = window.page?.tasks?.(location.origin) ?? {})));
  if (names.length > 0) console.log(`versions chromium ${browser.version()}, connect-web ${connectWeb.version}`);
  for (const name of names) await runTask(page, name);
  if (names.length === 0) await saved;
} finally {
  await browser.close();
}

async function runTask(page: Page, name: string): Promise<void> {
  try {
    const [said, isRight] = await page.evaluate((task) => window.run[task](), name);
    console.log(`${name} ${isRight ? "ok" : "FAILED not as expected:"} ${said}`);
  } catch (error) {
    console.log(`${name} FAILED ${String(error).split("\n")[0]}`);
  }
}

// Saves what the page downloads in the working folder; resolves when that is image.png.
function downloads(page: Page): Promise<void> {
  return new Promise((resolve) =>
    page.on("download", async (download) => {
      await download.saveAs(download.suggestedFilename());
      if (download.suggestedFilename() === "image.png") resolve();
    }),
  );
}
