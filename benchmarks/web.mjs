// Reads one image's previews in headless Chromium by the playground's module: web.mjs BASE KEY STEPS generate | attach
// A line of JSON for each event that counts: its kind, its step, and the seconds since 1970 when the page had it.
import { createRequire } from "node:module";

const { chromium } = createRequire(new URL("../clients/", import.meta.url))("playwright-core");
const [base, key, steps, method] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--no-proxy-server"] });
try {
  const page = await browser.newPage();
  await page.exposeFunction("tell", (line) => console.log(line));
  await page.goto(base);
  console.log(JSON.stringify({ kind: "ready" }));
  if (method === "attach") await new Promise((resolve) => process.stdin.once("data", resolve));
  await page.evaluate(
    async ({ key, steps, method }) => {
      const { klein } = await import("/klein.js");
      const { images } = klein(location.origin);
      const options = { width: 256, height: 256, seed: 1n, steps: Number(steps), idempotencyKey: key };
      const events =
        method === "attach" ? images.attach({ idempotencyKey: key }) : images.generate({ prompt: "a red circle", options });
      const seen = [];
      for await (const { event } of events) {
        const at = (performance.timeOrigin + performance.now()) / 1000;
        if (event.case === "accepted") window.tell(JSON.stringify({ kind: "accepted", at }));
        if (event.case === "preview") seen.push({ kind: "preview", step: event.value.step, at });
      }
      for (const one of seen) await window.tell(JSON.stringify(one));
    },
    { key, steps, method },
  );
} finally {
  await browser.close();
  process.stdin.destroy();
}
