// A request as code. A token is never in it: the environment has it.
import { Background, ImageFormat } from "./klein.js";

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const format = ({ output }) => ImageFormat[output.format]?.toLowerCase() ?? "png";
const background = ({ output }) => (output.background === Background.TRANSPARENT ? "transparent" : "opaque");
const files = (count) => Array.from({ length: count }, (_, i) => `image-${i + 1}.png`);

// By OpenAI's Images API. A seed beyond 2^53 is a number in JSON all the same.
export function curl(origin, { prompt, options }, references) {
  const fields = { prompt, size: `${options.width}x${options.height}`, seed: options.seed, steps: options.steps || undefined };
  fields.output_format = format(options);
  fields.background = background(options);
  const given = Object.entries(fields).filter(([, value]) => value !== undefined);
  const head = `curl -sf ${origin}/v1/images/${references ? "edits" : "generations"} -H "Authorization: Bearer $KLEIN_TOKEN" \\\n`;
  const tail = ` \\\n  | jq -r '.data[0].b64_json' | base64 -d > image.${format(options)}\n`;
  if (references) {
    const parts = given.map(([name, value]) => `  --form-string ${shell(`${name}=${value}`)}`);
    return head + [...files(references).map((file) => `  -F 'image[]=@${file}'`), ...parts].join(" \\\n") + tail;
  }
  const json = given.map(([name, value]) => `${JSON.stringify(name)}: ${typeof value === "string" ? JSON.stringify(value) : value}`);
  return `${head}  -H 'Content-Type: application/json' -d ${shell(`{${json.join(", ")}}`)}${tail}`;
}

// By kleinclient, whose server is the gRPC port: KLEIN_SERVER and KLEIN_TOKEN say where and who.
export function python(_origin, { prompt, options }, references) {
  const kind = format(options);
  const given = references ? `, [${files(references).map((file) => JSON.stringify(file)).join(", ")}]` : "";
  const more = [`size=(${options.width}, ${options.height})`, `seed=${options.seed}`];
  if (options.steps) more.push(`steps=${options.steps}`);
  more.push(`format="${kind}"`, `background="${background(options)}"`);
  return `from kleinclient import Client

with Client() as klein:
    stream = klein.${references ? "edit" : "generate"}(${JSON.stringify(prompt)}${given}, ${more.join(", ")})
    for preview in stream.previews():
        print("step", preview.step)
    stream.result().save("image.${kind}")
`;
}

// By the module of this page.
export function typescript(origin, { prompt, options }, references) {
  const more = [`width: ${options.width}`, `height: ${options.height}`, `seed: ${options.seed}n`];
  if (options.steps) more.push(`steps: ${options.steps}`);
  more.push(`output: { format: ImageFormat.${format(options).toUpperCase()}, background: Background.${background(options).toUpperCase()} }`);
  const given = references ? `\n  references: [${files(references).map((_, i) => `{ image: image${i + 1} }`).join(", ")}], // Uint8Array` : "";
  return `import { Background, ImageFormat, klein, read } from "${origin}/klein.js";

const { images } = klein(${JSON.stringify(origin)}, () => token);
const events = images.${references ? "edit" : "generate"}({
  prompt: ${JSON.stringify(prompt)},${given}
  options: { ${more.join(", ")} },
});
const { image } = await read(events, ({ event }) => {
  if (event.case === "preview") console.log("step", event.value.step);
});
`;
}
