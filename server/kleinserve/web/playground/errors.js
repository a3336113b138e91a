// Errors as sentences.

const SENTENCES = {
  QUEUE_FULL: "The server has its hands full.",
  QUOTA_EXCEEDED: "That is more than you may have now.",
  DEADLINE_UNREACHABLE: "The server cannot make it in time.",
  DEADLINE_PASSED: "It took too long.",
  NOT_READY: "The server is still warming up.",
  DRAINING: "The server is shutting down.",
  LEDGER_UNAVAILABLE: "The server cannot write down what it makes, so it makes nothing.",
  ACCELERATOR_OUT_OF_MEMORY: "The server has not enough memory for this.",
  ALPHA_UNAVAILABLE: "No background could be found to cut out. Try another seed or prompt.",
  READER_STALLED: "This page did not read fast enough.",
  UNAUTHENTICATED: "The server does not know this token.",
  CANCELLED: "Cancelled.",
};
const LEADS = {
  "options.width": "Width",
  "options.height": "Height",
  "options.steps": "Steps",
  "options.seed": "Seed",
  "options.output.format": "Format",
};

// What went wrong, and when to try again.
export function sentence({ reason, message, retrySeconds, requestId }) {
  const known = SENTENCES[reason];
  const said = known ?? (reason === "INTERNAL" ? `The server failed (request ${requestId}).` : end(message || "The server cannot be reached"));
  return retrySeconds ? `${said} Try again in ${Math.ceil(retrySeconds)} s.` : said;
}

// One sentence for each field that an error names.
export function violations({ violations }) {
  return violations.map(({ field, description }) => ({ field, text: text(field, description) }));
}

function text(field, description) {
  const [given, rule] = description.split("; ", 2);
  if (given === "blank") return "Write what the picture is to show.";
  const image = /^references\[(\d+)\]/.exec(field);
  const lead = image ? `Image ${Number(image[1]) + 1}` : LEADS[field];
  const said = rule === undefined ? given : `${given} will not do: ${rule}`;
  return end(lead ? `${lead}: ${said}` : said.charAt(0).toUpperCase() + said.slice(1));
}

const end = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);
