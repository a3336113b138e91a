// The page: its form, what is dropped and pasted, and the images of this session. The token stays in its field.
import { Background, ImageFormat, klein, PreviewFormat, problem } from "./klein.js";
import { draw } from "./image.js";
import { sentence, violations } from "./errors.js";

const at = (id) => document.getElementById(id);
const server = klein(location.origin, () => at("token").value.trim());
const FIELDS = {
  prompt: "prompt",
  references: "references",
  "options.width": "width",
  "options.height": "height",
  "options.steps": "steps",
  "options.seed": "seed",
  "options.output.format": "format",
  "options.output.background": "transparent",
};
const SEED_MAX = 2n ** 64n - 1n;
let references = []; // {data: Uint8Array, name, url}, in order
let running = new Set(); // functions that cancel
const total = { images: 0, number: 0, microusd: 0n, megapixels: 0 };

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
});
at("token").addEventListener("change", ask);
at("who").addEventListener("submit", (event) => event.preventDefault()); // Enter has changed it
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async () => {
  await add(at("file").files);
  at("file").value = "";
});
at("cancel-all").addEventListener("click", () => {
  for (const cancel of running) cancel();
  at("prompt").focus();
});
document.addEventListener("paste", (event) => {
  const files = imagesOf(event.clipboardData?.files);
  if (files.length) event.preventDefault();
  add(files);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) document.addEventListener(kind, onDrag);
await ask();

// What the server serves, and whether this token may ask it.
async function ask() {
  show("token", "");
  try {
    const served = await server.images.getCapabilities({});
    at("model").textContent = `${served.model} on ${served.device}, klein-serve ${served.serverVersion}`;
    at("width").placeholder = served.defaultWidth;
    at("height").placeholder = served.defaultHeight;
    at("steps").placeholder = served.defaultSteps;
    at("steps").max = served.maxSteps;
  } catch (error) {
    const { reason } = problem(error);
    at("model").textContent = reason === "UNAUTHENTICATED" ? "This server asks for a token." : "";
    show("token", reason === "UNAUTHENTICATED" && !at("token").value ? "" : sentence(problem(error)));
    if (reason === "UNAUTHENTICATED") at("token").focus();
  }
}

function submit() {
  clear();
  const made = requests();
  if (made) for (const request of made) start(request);
}

// One request for each image asked for; nothing where a field cannot be sent.
function requests() {
  const numbers = Object.fromEntries(["width", "height", "steps", "count"].map((id) => [id, whole(id)]));
  const seed = at("seed").value.trim();
  if (seed && !(/^\d{1,20}$/.test(seed) && BigInt(seed) <= SEED_MAX)) show("seed", `Seed: a whole number from 0 to ${SEED_MAX}.`);
  if (numbers.count !== undefined && !(numbers.count >= 1 && numbers.count <= 6))
    show("count", "Images: 1 to 6, since a browser opens six connections to a server.");
  if (focusFirst()) return undefined;
  const isTransparent = at("transparent").checked;
  return Array.from({ length: numbers.count }, (_, i) => ({
    prompt: at("prompt").value,
    references: references.map(({ data }) => ({ image: data })),
    options: {
      width: numbers.width,
      height: numbers.height,
      steps: numbers.steps,
      seed: seed ? (BigInt(seed) + BigInt(i)) & SEED_MAX : undefined,
      output: {
        format: ImageFormat[at("format").value],
        background: isTransparent ? Background.TRANSPARENT : Background.OPAQUE,
      },
      preview: { format: isTransparent ? PreviewFormat.PNG : PreviewFormat.JPEG },
    },
  }));
}

// The field's number, 0 where it is empty: the server's default.
function whole(id) {
  const { value, validity } = at(id);
  if (!validity.badInput && /^\d{0,9}$/.test(value)) return Number(value || (id === "count" ? 1 : 0));
  show(id, `${document.querySelector(`label[for=${id}]`).textContent}: a whole number.`);
  return undefined;
}

function start(request) {
  at("empty").hidden = true;
  const number = ++total.number;
  const image = draw(server, request, number, {
    say: (text) => (at("status").textContent = `Image ${number}: ${text}`),
    again: (options) => start({ ...request, options: { ...request.options, ...options } }),
    sameSeed(seed) {
      at("seed").value = seed;
      at("seed").focus();
    },
    async edit(data, name) {
      references = [];
      keep(data, name);
      at("width").value = at("height").value = ""; // as the picture is
      at("prompt").focus();
      at("prompt").select();
    },
    done({ usage }) {
      total.images += 1;
      total.microusd += usage.costMicrousd;
      total.megapixels += Number(usage.outputMegapixels);
    },
    failed: (failure) => refuse(failure, image.item),
    left() {
      running.delete(image.cancel);
      count();
    },
  });
  running.add(image.cancel);
  at("images").prepend(image.item);
  count();
}

function count() {
  at("cancel-all").hidden = running.size < 2;
  const cost = `$${(Number(total.microusd) / 1e6).toFixed(3)}`;
  at("totals").textContent = total.images
    ? `${total.images} ${total.images === 1 ? "image" : "images"}, ${total.megapixels} ${total.megapixels === 1 ? "megapixel" : "megapixels"}, ${cost}`
    : "";
}

// Shows an error at the fields that it names; where all are the form's the request needs no place of its own.
function refuse(failure, item) {
  let isShown = failure.violations.length > 0;
  for (const { field, text } of violations(failure)) {
    const id = FIELDS[field.replace(/\[\d+\]\.image$/, "")];
    isShown &&= id !== undefined;
    show(id ?? "form", text);
  }
  if (failure.reason === "UNAUTHENTICATED") show("token", sentence(failure));
  if (isShown) item.remove();
  focusFirst();
  return isShown;
}

function show(id, text) {
  const place = at(`${id}-error`);
  if (text && place.textContent && place.textContent !== text) text = `${place.textContent} ${text}`;
  place.textContent = text;
  const field = id === "references" ? at("choose") : at(id);
  if (text && id !== "form") field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
}

function clear() {
  for (const id of [...Object.values(FIELDS), "count", "form", "token"]) show(id, "");
}

function focusFirst() {
  const first = document.querySelector("[aria-invalid=true]");
  first?.focus();
  return first !== null;
}

const imagesOf = (files) => [...(files ?? [])].filter((file) => file.type.startsWith("image/"));

async function add(files) {
  for (const file of imagesOf(files)) keep(new Uint8Array(await file.arrayBuffer()), file.name || "pasted image");
}

function keep(data, name) {
  references.push({ data, name, url: URL.createObjectURL(new Blob([data])) });
  showReferences();
}

function showReferences() {
  show("references", "");
  const items = references.map((reference, i) => {
    const item = document.createElement("li");
    const picture = document.createElement("img");
    picture.src = reference.url;
    picture.alt = `Image ${i + 1}: ${reference.name}`;
    picture.title = picture.alt;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.ariaLabel = `Remove image ${i + 1}`;
    remove.addEventListener("click", () => {
      URL.revokeObjectURL(reference.url);
      references = references.filter((other) => other !== reference);
      showReferences();
      at("choose").focus();
    });
    item.append(picture, remove);
    return item;
  });
  at("references").replaceChildren(...items);
  at("submit").textContent = references.length ? "Edit" : "Generate";
}

function onDrag(event) {
  if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
  event.preventDefault();
  const isLeaving = event.type === "drop" || (event.type === "dragleave" && event.relatedTarget === null);
  at("dropping").hidden = isLeaving;
  if (event.type === "drop") add(event.dataTransfer.files);
}
