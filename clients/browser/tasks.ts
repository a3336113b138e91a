// Nine tasks against a klein server, run in a page.
import { Code, ImageFormat, type ImageEvent, klein, type Options, problem, read } from "./klein";
import { HealthCheckResponse_ServingStatus } from "../build/gen/browser/grpc/health/v1/health_pb";

// Each task says what it saw, and whether that is right.
type Task = () => Promise<[string, boolean]>;

// The nine tasks at this address.
export function tasks(baseUrl: string): Record<string, Task> {
  const { images, health } = klein(baseUrl);
  let made = new Uint8Array(); // the image that Edit gets as its reference
  const prompt = "a large red circle";
  const draw = (options: Options, onEvent?: (event: ImageEvent) => void) =>
    read(images.generate({ prompt, options }, { timeoutMs: 120_000 }), onEvent);
  const failure = async (work: Promise<unknown>) =>
    problem(await work.then(() => Promise.reject(new Error("the image came")), (error: unknown) => error));
  return {
    async health() {
      const { status } = await health.check({});
      return [HealthCheckResponse_ServingStatus[status], status === HealthCheckResponse_ServingStatus.SERVING];
    },
    async capabilities() {
      const answer = await images.getCapabilities({});
      return [answer.model, answer.model !== "" && answer.chunkBytes <= 1 << 20];
    },
    async generate() {
      const seed = 2n ** 64n - 1n;
      const previews: Uint8Array[] = [];
      const sequence: number[] = [];
      const options = { width: 128, height: 128, steps: 4, seed, output: { format: ImageFormat.WEBP } };
      const got = await draw(options, (message) => {
        sequence.push(message.sequence);
        if (message.event.case === "preview") previews.push(message.event.value.data);
      });
      made = got.image;
      const told = previews.length + got.completed.previewsSkipped;
      const isJpeg = previews[0][0] === 0xff && previews[0][1] === 0xd8;
      const isOrdered = sequence.every((number, i) => number === i);
      return [`${previews.length} previews`, told === 4 && isJpeg && isOrdered && got.accepted.seed === seed];
    },
    async edit() {
      const request = { prompt: "make it green", references: [{ image: made }], options: { steps: 2 } };
      const [size] = (await read(images.edit(request))).accepted.referenceSizes;
      return [`of ${size.width}×${size.height}`, size.width === 128];
    },
    async large() {
      const output = { format: ImageFormat.RAW_RGBA };
      const { image } = await draw({ width: 1040, height: 1024, steps: 1, output, preview: { disabled: true } });
      return [`${image.length} bytes`, image.length === 1040 * 1024 * 4];
    },
    async png() {
      const { header, image } = await draw({ width: 96, height: 64, steps: 1 });
      const picture = await createImageBitmap(new Blob([image], { type: header.mimeType }));
      return [header.mimeType, header.mimeType === "image/png" && picture.width === 96 && picture.height === 64];
    },
    async cancel() {
      const abort = new AbortController();
      const options = { width: 256, height: 256, steps: 50 };
      const events = images.generate({ prompt, options }, { signal: abort.signal });
      const { code } = await failure(read(events, ({ event }) => event.case === "preview" && abort.abort()));
      return [Code[code], code === Code.Canceled];
    },
    async bad_field() {
      const { code, reason, violations } = await failure(draw({ width: 100, height: 128 }));
      const field = violations[0]?.field;
      const isRight = code === Code.InvalidArgument && reason === "INVALID_FIELD" && field === "options.width";
      return [`${reason} ${field}`, isRight];
    },
    async deadline() {
      const options = { width: 1024, height: 1024, steps: 50 };
      const { code } = await failure(read(images.generate({ prompt, options }, { timeoutMs: 500 })));
      return [Code[code], code === Code.DeadlineExceeded];
    },
  };
}
