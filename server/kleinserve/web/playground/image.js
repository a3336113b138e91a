// One image of the session: its request under way, its picture as it forms, and what can be done with it.
import { Background, problem, read } from "./klein.js";
import { sentence } from "./errors.js";
import { curl, python, typescript } from "./snippets.js";

// Sends the request and shows it. `tell` is called with what happens; returns its list item and what cancels it.
export function draw(server, request, number, tell) {
  const { options } = request;
  const abort = new AbortController();
  const began = performance.now();
  const parts = article(request, number);
  const { item, picture, image, progress, facts, actions } = parts;
  const cancel = button("Cancel", () => abort.abort(), `Cancel image ${number}`);
  actions.append(cancel);
  let url = "";
  let left; // {text, unit, until}: what is shown while it runs, and when that is expected to end
  const clock = setInterval(tick, 200);

  function tick() {
    if (!left) return;
    const seconds = (left.until - performance.now()) / 1000;
    facts.textContent = seconds > 0 ? `${left.text}, about ${duration(seconds)} ${left.unit}` : left.text;
  }
  function wait(text, remaining, unit = "left") {
    left = { text, unit, until: performance.now() + seconds(remaining) * 1000 };
    tick();
  }
  function showPicture(data, type) {
    URL.revokeObjectURL(url);
    url = URL.createObjectURL(new Blob([data], { type }));
    image.src = url;
    image.hidden = false;
  }
  const on = {
    accepted({ width, height, estimatedWait, promptTruncated, steps, seed }) {
      picture.style.aspectRatio = `${width} / ${height}`;
      progress.max = steps;
      image.alt = `${request.prompt} (seed ${seed})`;
      wait("Accepted", estimatedWait, "to wait");
      if (promptTruncated) tell.say("the prompt is too long and was cut");
    },
    queued({ position, estimatedWait }) {
      wait(position ? `Waiting, ${position} before it` : "Waiting, next", estimatedWait, "to wait");
    },
    started() {
      left = { text: "Started", until: 0 };
      tick();
      tell.say("started");
    },
    progress({ step, totalSteps, estimatedRemaining }) {
      progress.value = step;
      wait(`Step ${step} of ${totalSteps}`, estimatedRemaining);
    },
    preview({ data }) {
      showPicture(data, "");
      image.dataset.previews = Number(image.dataset.previews ?? 0) + 1;
    },
  };

  async function run() {
    const stub = request.references.length ? server.images.edit : server.images.generate;
    const { references, ...rest } = request;
    const asked = references.length ? { ...rest, references } : rest;
    try {
      const drawing = await read(stub(asked, { signal: abort.signal }), ({ event }) => on[event.case]?.(event.value));
      finish(drawing);
    } catch (error) {
      fail(problem(error));
    } finally {
      clearInterval(clock);
      const hadFocus = cancel === document.activeElement;
      cancel.remove();
      progress.remove();
      if (hadFocus) actions.querySelector("button")?.focus();
      tell.left();
    }
  }
  function finish({ accepted, header, image: data, completed }) {
    showPicture(data, header.mimeType);
    picture.classList.remove("forming");
    facts.textContent = told(accepted, completed, performance.now() - began);
    const name = `klein-${accepted.seed}.${header.mimeType.split("/")[1]}`;
    offer(data, name, { ...options, seed: accepted.seed, width: header.width, height: header.height });
    tell.done(completed);
    tell.say(`done after ${duration((performance.now() - began) / 1000)}`);
  }
  function fail(failure) {
    const isCancelled = abort.signal.aborted;
    const said = isCancelled ? "Cancelled." : sentence(failure);
    facts.textContent = said;
    facts.classList.toggle("error", !isCancelled);
    if (image.hidden) picture.remove();
    tell.say(said);
    actions.append(button("Again", () => tell.again({}), `Image ${number} again`), removal());
    if (!isCancelled) tell.failed(failure);
  }
  function offer(data, name, made) {
    const save = document.createElement("a");
    save.textContent = "Download";
    save.href = url;
    save.download = name;
    const drawn = { ...request, options: made };
    const count = request.references.length;
    const copy = async (text) => tell.say((await isCopied(text)) ? "copied" : text);
    actions.append(
      button("Edit", () => tell.edit(data, name), `Edit image ${number}`),
      button("Again", () => tell.again({ seed: undefined }), `Image ${number} again, with another seed`),
      button("Same seed", () => tell.sameSeed(made.seed), `Use the seed of image ${number}`),
      save,
      copying({ curl, Python: python, TypeScript: typescript }, (snippet) => copy(snippet(location.origin, drawn, count))),
      removal(),
    );
  }
  function removal() {
    return button("Remove", () => {
      URL.revokeObjectURL(url);
      const next = item.nextElementSibling ?? item.previousElementSibling;
      item.remove();
      (next?.querySelector("button") ?? document.getElementById("prompt")).focus();
    }, `Remove image ${number}`);
  }

  if (options.output.background === Background.TRANSPARENT) picture.classList.add("checkered");
  run();
  return { item, cancel: () => abort.abort() };
}

function article(request, number) {
  const item = document.createElement("li");
  item.innerHTML = `<article><h3></h3><div class="picture forming"><img hidden alt=""></div>
    <progress aria-label="Progress of image ${number}"></progress><p class="facts"></p><div class="actions"></div></article>`;
  const find = (selector) => item.querySelector(selector);
  find("article").ariaLabel = `Image ${number}`;
  find("h3").textContent = request.prompt;
  find(".facts").textContent = "Sent";
  const [picture, image, progress] = [find(".picture"), find("img"), find("progress")];
  return { item, picture, image, progress, facts: find(".facts"), actions: find(".actions") };
}

function told(accepted, { usage, maxStepRequests, previewsSkipped }, milliseconds) {
  const shared = maxStepRequests > 1 ? `up to ${maxStepRequests} requests shared a step` : "alone in its steps";
  const facts = [
    `${accepted.width}×${accepted.height}`,
    `${accepted.steps} ${accepted.steps === 1 ? "step" : "steps"}, ${shared}`,
    `seed ${accepted.seed}`,
    duration(milliseconds / 1000),
    `${usage.outputMegapixels} MP, $${(Number(usage.costMicrousd) / 1e6).toFixed(3)}`,
  ];
  if (previewsSkipped) facts.push(`${previewsSkipped} previews skipped`);
  return facts.join(" · ");
}

function button(text, act, label) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.ariaLabel = label;
  made.addEventListener("click", act);
  return made;
}

// A page on plain HTTP has no clipboard, but for localhost's; what is selected can be copied there all the same.
async function isCopied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return isDone;
}

// A choice that acts and shows its title again.
function copying(kinds, act) {
  const made = document.createElement("select");
  made.ariaLabel = "Copy this request as";
  for (const text of ["Copy as…", ...Object.keys(kinds)]) made.append(new Option(text, text));
  made.addEventListener("change", () => {
    act(kinds[made.value]);
    made.selectedIndex = 0;
  });
  return made;
}

const seconds = (given) => (given ? Number(given.seconds) + given.nanos / 1e9 : 0);
const duration = (given) => (given < 60 ? `${given.toFixed(1)}\u00a0s` : `${Math.floor(given / 60)}\u00a0min ${Math.floor(given % 60)}\u00a0s`);
