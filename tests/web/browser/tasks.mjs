// What a person does with the playground, done in headless Chromium: tasks.mjs BASE METRICS [TOKEN]
// One line each: NAME ok, or NAME FAILED and why. With a token the server is one that asks for it.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const { chromium } = createRequire(new URL("../../../clients/", import.meta.url))("playwright-core");
const [base, metrics, token] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--no-proxy-server", "--host-resolver-rules=MAP klein.test 127.0.0.1"] });

const open = {
  // Each task's page has no token, no history, and must have no error on its console.
  async bare({ at = base, ...options } = {}) {
    const context = await browser.newContext({ permissions: ["clipboard-read", "clipboard-write"], ...options });
    const page = await context.newPage();
    page.setDefaultTimeout(240_000);
    page.faults = [];
    page.on("pageerror", (error) => page.faults.push(String(error)));
    page.on("console", (line) => line.type() === "error" && page.faults.push(line.text()));
    await page.goto(at);
    return page;
  },
  async ready(options) {
    const page = await open.bare(options);
    await page.waitForFunction(() => document.getElementById("model").textContent.includes("mini"));
    return page;
  },
};
const until = (page, check, argument) => page.waitForFunction(check, argument);
const ask = async (page, fields) => {
  for (const [id, value] of Object.entries(fields)) await page.fill(`#${id}`, String(value));
  await page.click("#submit");
};
const done = (page, count = 1) =>
  until(page, (wanted) => document.querySelectorAll("article a[download]").length === wanted, count);
const LONG = { prompt: "a red circle", width: 512, height: 512, steps: 50 };

async function counted(name) {
  const text = await (await fetch(`http://${metrics}/metrics`)).text();
  const lines = text.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}
async function counts(name, wanted) {
  for (let i = 0; i < 600 && (await counted(name)) !== wanted; i++) await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(await counted(name), wanted);
}
// Drops a file of these bytes on the page, as a person does.
const drop = (page, data) =>
  page.evaluate((bytes) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
  }, data);
const picture = (page) =>
  page.evaluate(async () => {
    const canvas = new OffscreenCanvas(96, 64);
    canvas.getContext("2d").fillRect(0, 0, 48, 64);
    return [...new Uint8Array(await (await canvas.convertToBlob()).arrayBuffer())];
  });

const tasks = {
  async previews() {
    const page = await open.ready();
    await ask(page, { ...LONG, width: 256, height: 256, steps: 20 });
    await until(page, () => Number(document.querySelector("article img")?.dataset.previews) >= 2 && document.querySelector("progress"));
    assert.match(await page.textContent(".facts"), /^Step \d+ of 20/);
    await done(page);
    assert.match(await page.textContent(".facts"), /256×256 · 20 steps, .* · seed \d+ · .* · 1 MP, \$0\.014/);
    assert.match(await page.textContent("#totals"), /^1 image, 1 megapixel, \$0\.014/);
    const shown = await page.evaluate(() => createImageBitmap(document.querySelector("article img")).then(({ width }) => width));
    assert.equal(shown, 256);
    return page;
  },
  async cancel() {
    const page = await open.ready();
    const before = await counted("klein_cancelled_total");
    await ask(page, LONG);
    await until(page, () => document.querySelector("progress").value > 0);
    await page.click("article button:text-is('Cancel')");
    await until(page, () => document.querySelector(".facts").textContent === "Cancelled.");
    await counts("klein_cancelled_total", before + 1);
    return page;
  },
  async error() {
    const page = await open.ready();
    await ask(page, { prompt: "a red circle", width: 100, height: 128, steps: 4 });
    await until(page, () => document.getElementById("width-error").textContent !== "");
    assert.equal(await page.textContent("#width-error"), "Width: 100 will not do: a multiple of 16 from 64 to 8192.");
    assert.equal(await page.evaluate(() => document.activeElement.id), "width");
    assert.equal(await page.getAttribute("#width", "aria-invalid"), "true");
    assert.equal(await page.getAttribute("#height", "aria-invalid"), null);
    await ask(page, { prompt: " ", width: 128, seed: "2x" });
    assert.match(await page.textContent("#seed-error"), /whole number from 0 to 18446744073709551615/);
    await ask(page, { seed: "18446744073709551615" });
    await until(page, () => document.getElementById("prompt-error").textContent !== "");
    assert.equal(await page.textContent("#width-error"), "");
    await drop(page, [1, 2, 3]);
    await ask(page, { prompt: "make it green" });
    await until(page, () => document.getElementById("references-error").textContent !== "");
    assert.match(await page.textContent("#references-error"), /^Image 1: not a whole PNG, JPEG or WebP/);
    page.faults = page.faults.filter((fault) => !fault.includes("the server responded with a status"));
    return page;
  },
  async drop() {
    const page = await open.ready();
    await drop(page, await picture(page));
    await until(page, () => document.getElementById("submit").textContent === "Edit");
    await ask(page, { prompt: "make it green", steps: 2 });
    await done(page);
    assert.match(await page.textContent(".facts"), /^96×64/);
    await page.click("article button:text-is('Edit')");
    await page.check("#transparent");
    await ask(page, { prompt: "make it blue" });
    await done(page, 2);
    assert.equal(await page.locator(".checkered").count(), 1);
    return page;
  },
  async choose_and_paste() {
    const page = await open.ready();
    const buffer = Buffer.from(await picture(page));
    const [chooser] = await Promise.all([page.waitForEvent("filechooser"), page.click("#choose")]);
    await chooser.setFiles(["one.png", "two.png"].map((name) => ({ name, mimeType: "image/png", buffer })));
    await until(page, () => document.querySelectorAll("#references img").length === 2);
    await page.click("button[aria-label='Remove image 1']");
    await page.evaluate(async (bytes) => {
      const blob = new Blob([new Uint8Array(bytes)], { type: "image/png" });
      await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    }, [...buffer]);
    await page.focus("#prompt");
    await page.keyboard.press("Control+V");
    await until(page, () => document.querySelectorAll("#references img").length === 2);
    const names = await page.locator("#references img").evaluateAll((images) => images.map(({ alt }) => alt));
    assert.equal(names[0], "Image 1: two.png");
    assert.match(names[1], /^Image 2: /);
    await ask(page, { prompt: "make it green", steps: 1 });
    await done(page);
    assert.match(await page.textContent(".facts"), /^96×64/);
    return page;
  },
  async waiting() {
    const page = await open.ready();
    await ask(page, { ...LONG, width: 1024, height: 1024 });
    await until(page, () => document.querySelector("progress").value > 0);
    await page.evaluate(() => {
      window.said = [];
      const note = () => window.said.push(...[...document.querySelectorAll(".facts")].map(({ textContent }) => textContent));
      new MutationObserver(note).observe(document.body, { childList: true, characterData: true, subtree: true });
    });
    await ask(page, { ...LONG, width: 1024, height: 1024, count: 2 });
    await until(page, () => window.said.some((text) => /^Waiting, (next|1 before it)(, about .* to wait)?$/.test(text)));
    await page.click("#cancel-all");
    await until(page, () => [...document.querySelectorAll(".facts")].filter(({ textContent }) => textContent === "Cancelled.").length === 3);
    return page;
  },
  async light_and_dark() {
    const page = await open.ready();
    const seen = {};
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      seen[colorScheme] = await page.evaluate(() => {
        const lightness = (color) => {
          const parts = color.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255);
          const [r, g, b] = parts.map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = getComputedStyle(document.body);
        return { ground: lightness(style.backgroundColor), ink: lightness(style.color) };
      });
    }
    const { light, dark } = seen;
    assert.ok((light.ground + 0.05) / (light.ink + 0.05) > 7 && (dark.ink + 0.05) / (dark.ground + 0.05) > 7, JSON.stringify(seen));
    return page;
  },
  async large() {
    const page = await open.ready();
    // The picture is large, not the work: tests/e2e/faults.py draws nothing for this prompt.
    const length = await page.evaluate(async () => {
      const { ImageFormat, klein, read } = await import("/klein.js");
      const options = { width: 2048, height: 2048, steps: 1, output: { format: ImageFormat.RAW_RGBA }, preview: { disabled: true } };
      return (await read(klein(location.origin).images.generate({ prompt: "a blank picture", options }))).image.length;
    });
    assert.equal(length, 16 * 2 ** 20);
    return page;
  },
  async closed_tab() {
    const page = await open.ready();
    const before = await counted("klein_cancelled_total");
    await ask(page, LONG);
    await until(page, () => document.querySelector("progress").value > 0);
    await page.close();
    await counts("klein_cancelled_total", before + 1);
  },
  async keyboard() {
    const page = await open.ready();
    const focused = () => page.evaluate(() => `${document.activeElement.id}|${document.activeElement.textContent}`);
    const tab = async (wanted) => {
      for (let i = 0; i < 30 && !(await focused()).match(wanted); i++) await page.keyboard.press("Tab");
      assert.match(await focused(), wanted);
    };
    await tab(/^prompt\|/);
    await page.keyboard.type("a red circle");
    await tab(/^steps\|/);
    await page.keyboard.type("50");
    await tab(/^submit\|/);
    await page.keyboard.press("Enter");
    await tab(/\|Cancel$/);
    await page.keyboard.press("Enter");
    await until(page, () => document.querySelector(".facts").textContent === "Cancelled.");
    assert.match(await focused(), /\|Again$/);
    await page.focus("#prompt");
    await page.keyboard.type(" again");
    await page.fill("#steps", "1");
    await page.focus("#prompt");
    await page.keyboard.press("Control+Enter");
    await done(page);
    const said = await page.textContent("#status");
    assert.match(said, /^Image 2: done after/);
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll("input:not([hidden]), textarea, select, button, a, progress")]
        .filter((one) => !(one.labels?.length || one.ariaLabel || one.textContent.trim()))
        .map((one) => one.outerHTML));
    assert.deepEqual(nameless, []);
    return page;
  },
  async together() {
    const page = await open.ready();
    await ask(page, { prompt: "a red circle", width: 64, height: 64, steps: 50, count: 3, seed: "18446744073709551614" });
    await done(page, 3);
    const facts = (await page.locator(".facts").allTextContents()).join("\n");
    for (const seed of ["18446744073709551614", "18446744073709551615", "0"]) assert.match(facts, new RegExp(`seed ${seed} `));
    assert.match(facts, /up to [23] requests shared a step/);
    assert.match(await page.textContent("#totals"), /^3 images, 3 megapixels, \$0\.042/);
    await page.locator("article").first().locator("button:text-is('Same seed')").click();
    assert.equal(await page.inputValue("#seed"), "0");
    return page;
  },
  async copy() {
    const page = await open.ready();
    await ask(page, { prompt: "it's \"red\"", width: 64, height: 64, steps: 1, seed: 7 });
    await done(page);
    const copied = {};
    for (const kind of ["curl", "Python", "TypeScript"]) {
      await page.selectOption("article select", kind);
      copied[kind] = await page.evaluate(() => navigator.clipboard.readText());
    }
    assert.match(copied.curl, /\/v1\/images\/generations/);
    assert.match(copied.Python, /klein\.generate\("it's \\"red\\""/);
    assert.match(copied.TypeScript, /seed: 7n/);
    console.log(`snippets ${JSON.stringify(copied)}`);
    return page;
  },
  async foreign_page() {
    const before = [await counted("grpc_server_started_total"), await counted("klein_requests_total")];
    const other = createServer((_, answer) => answer.end("<title>foreign</title>")).listen(0, "127.0.0.1");
    await new Promise((resolve) => other.on("listening", resolve));
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${other.address().port}`);
    const outcomes = await page.evaluate(async (base) => {
      const path = `${base}/klein.v1.ImageService/Generate`;
      const attempts = [
        fetch(path, { method: "POST", headers: { "content-type": "application/grpc-web" }, body: new Uint8Array(5) }),
        fetch(path, { method: "POST", mode: "no-cors", body: new Uint8Array(5) }),
        fetch(`${base}/v1/images/generations`, { method: "POST", body: '{"prompt": "x"}' }),
        fetch(`${base}/klein.js`),
      ];
      return (await Promise.allSettled(attempts)).map(({ status, value }) => (status === "rejected" ? status : value.type));
    }, base);
    assert.deepEqual(outcomes, ["rejected", "opaque", "rejected", "rejected"]);
    assert.deepEqual([await counted("grpc_server_started_total"), await counted("klein_requests_total")], before);
    other.close();
    await page.close();
  },
};

const withToken = {
  async token() {
    const page = await open.bare();
    await until(page, () => document.getElementById("model").textContent === "This server asks for a token.");
    await page.fill("#token", "wrong");
    await page.press("#token", "Enter");
    await until(page, () => document.getElementById("token-error").textContent.includes("does not know this token"));
    await page.fill("#token", token);
    await page.press("#token", "Enter");
    await until(page, () => document.getElementById("model").textContent.includes("mini"));
    await ask(page, { prompt: "a red circle", width: 64, height: 64, steps: 1 });
    await done(page);
    const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href, history.state]));
    assert.ok(!kept.includes(token) && !(await page.content()).includes(token));
    await page.reload();
    await until(page, () => document.getElementById("model").textContent === "This server asks for a token.");
    assert.equal(await page.inputValue("#token"), "");
    return page;
  },
  async plain_http() {
    const page = await open.bare({ at: base.replace(/\/\/[^:]+/, "//klein.test") });
    assert.equal(await page.evaluate(() => navigator.clipboard), undefined);
    await page.fill("#token", token);
    await page.press("#token", "Enter");
    await until(page, () => document.getElementById("model").textContent.includes("mini"));
    await ask(page, { prompt: "a red circle", width: 64, height: 64, steps: 1 });
    await done(page);
    await page.focus("article select");
    await page.keyboard.press("ArrowDown");
    await until(page, () => document.getElementById("status").textContent.endsWith(": copied"));
    assert.equal(await page.evaluate(() => document.activeElement.ariaLabel), "Copy this request as");
    await page.fill("#prompt", "");
    await page.focus("#prompt");
    await page.keyboard.press("Control+V");
    assert.match(await page.inputValue("#prompt"), /^curl .*\/v1\/images\/generations/);
    page.faults = page.faults.filter((fault) => !fault.includes("Cross-Origin-Opener-Policy header has been ignored"));
    return page;
  },
};

try {
  for (const [name, task] of Object.entries(token ? withToken : tasks)) {
    try {
      const page = await task();
      assert.deepEqual(page?.faults ?? [], [], "errors on the console");
      await page?.context().close();
      console.log(`${name} ok`);
    } catch (error) {
      console.log(`${name} FAILED ${String(error.message ?? error).replaceAll("\n", " | ").slice(0, 600)}`);
    }
  }
} finally {
  await browser.close();
}
