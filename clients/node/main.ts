// Nine tasks against a klein server, one line each: main HOST:PORT
import { createHash } from "node:crypto";
import { type ClientReadableStream, credentials, Metadata, type ServiceError, status } from "@grpc/grpc-js";
import grpcPackage from "../node_modules/@grpc/grpc-js/package.json" with { type: "json" };
import { BadRequest, ErrorInfo } from "../build/gen/node/google/rpc/error_details";
import { Status } from "../build/gen/node/google/rpc/status";
import { HealthCheckResponse_ServingStatus, HealthClient } from "../build/gen/node/grpc/health/v1/health";
import {
  type Accepted,
  type Completed,
  type DeepPartial,
  EditRequest,
  GenerateRequest,
  type GetCapabilitiesResponse,
  type ImageEvent,
  ImageFormat,
  type ImageHeader,
  type ImageOptions,
  ImageServiceClient,
  type Preview,
} from "../build/gen/node/klein/v1/image";

const target = process.argv[2];
const images = new ImageServiceClient(target, credentials.createInsecure());
const health = new HealthClient(target, credentials.createInsecure());
const timely = () => ({ deadline: Date.now() + 120_000 });
let made: Buffer = Buffer.alloc(0); // the image that Edit gets as its reference

// All that one stream brought.
interface Drawing {
  accepted: Accepted;
  previews: Preview[];
  header: ImageHeader;
  image: Buffer;
  completed: Completed;
}

// Takes a stream to its end, calls onPreview after each preview, and checks order, length and hash.
async function read(stream: ClientReadableStream<ImageEvent>, onPreview = () => {}): Promise<Drawing> {
  const got: Partial<Drawing> & { previews: Preview[] } = { previews: [] };
  const chunks: Buffer[] = [];
  let sequence = 0;
  for await (const { event, sequence: number } of stream as AsyncIterable<ImageEvent>) {
    if (number !== sequence++) throw new Error(`event ${sequence - 1} came as number ${number}`);
    switch (event?.$case) {
      case "accepted":
        got.accepted = event.value;
        break;
      case "preview":
        got.previews.push(event.value);
        onPreview();
        break;
      case "imageHeader":
        got.header = event.value;
        break;
      case "imageChunk":
        chunks.push(Buffer.from(event.value.data));
        break;
      case "completed":
        got.completed = event.value;
    }
  }
  const { accepted, previews, header, completed } = got;
  if (!accepted || !header || !completed) throw new Error("an OK without an image");
  const image = Buffer.concat(chunks);
  const hash = createHash("sha256").update(image).digest();
  if (BigInt(image.length) !== header.sizeBytes || !hash.equals(header.sha256))
    throw new Error(`${image.length} bytes do not have the header's length and hash`);
  return { accepted, previews, header, image, completed };
}

function generate(options: DeepPartial<ImageOptions>, callOptions = timely()) {
  return images.generate(GenerateRequest.fromPartial({ prompt: "a large red circle", options }), callOptions);
}

// What the stream's error is; an Error where it has none.
async function failure(stream: ClientReadableStream<ImageEvent>, onPreview = () => {}): Promise<ServiceError> {
  try {
    await read(stream, onPreview);
  } catch (error) {
    if (error instanceof Error && "code" in error) return error as ServiceError;
    throw error;
  }
  throw new Error("the image came");
}

function details(error: ServiceError) {
  const [packed] = error.metadata.get("grpc-status-details-bin");
  let info: ErrorInfo | undefined;
  let request: BadRequest | undefined;
  for (const { typeUrl, value } of Status.decode(packed as Buffer).details) {
    if (typeUrl.endsWith("/google.rpc.ErrorInfo")) info = ErrorInfo.decode(value);
    if (typeUrl.endsWith("/google.rpc.BadRequest")) request = BadRequest.decode(value);
  }
  return { reason: info?.reason, field: request?.fieldViolations[0].field };
}

// Each task says what it saw, and whether that is right.
const tasks: Record<string, () => Promise<[string, boolean]>> = {
  async health() {
    const answer = await new Promise<HealthCheckResponse_ServingStatus>((resolve, reject) =>
      health.check({ service: "" }, new Metadata(), timely(), (error, value) => (error ? reject(error) : resolve(value.status))),
    );
    return [HealthCheckResponse_ServingStatus[answer], answer === HealthCheckResponse_ServingStatus.SERVING];
  },
  async capabilities() {
    const answer = await new Promise<GetCapabilitiesResponse>((resolve, reject) =>
      images.getCapabilities({}, new Metadata(), timely(), (error, value) => (error ? reject(error) : resolve(value))),
    );
    return [answer.model, answer.model !== "" && answer.chunkBytes <= 1 << 20];
  },
  async generate() {
    const seed = 2n ** 64n - 1n;
    const output = { format: ImageFormat.IMAGE_FORMAT_WEBP };
    const got = await read(generate({ width: 128, height: 128, steps: 4, seed, output }));
    made = got.image;
    const told = got.previews.length + got.completed.previewsSkipped;
    const isJpeg = got.previews[0].data[0] === 0xff && got.previews[0].data[1] === 0xd8;
    return [`${got.previews.length} previews`, told === 4 && isJpeg && got.accepted.seed === seed];
  },
  async edit() {
    const request = { prompt: "make it green", references: [{ image: made }], options: { steps: 2 } };
    const got = await read(images.edit(EditRequest.fromPartial(request), timely()));
    const [size] = got.accepted.referenceSizes;
    return [`of ${size.width}×${size.height}`, size.width === 128];
  },
  async large() {
    const output = { format: ImageFormat.IMAGE_FORMAT_RAW_RGBA };
    const got = await read(generate({ width: 1040, height: 1024, steps: 1, output, preview: { disabled: true } }));
    return [`${got.image.length} bytes`, got.image.length === 1040 * 1024 * 4];
  },
  async png() {
    const { header, image } = await read(generate({ width: 96, height: 64, steps: 1 }));
    const isPng = image.subarray(0, 8).equals(Buffer.from("\x89PNG\r\n\x1a\n", "latin1"));
    return [header.mimeType, isPng && image.readUInt32BE(16) === 96 && image.readUInt32BE(20) === 64];
  },
  async cancel() {
    const stream = generate({ width: 256, height: 256, steps: 50 });
    const error = await failure(stream, () => stream.cancel());
    return [status[error.code], error.code === status.CANCELLED];
  },
  async bad_field() {
    const error = await failure(generate({ width: 100, height: 128 }));
    const { reason, field } = details(error);
    const isRight = error.code === status.INVALID_ARGUMENT && reason === "INVALID_FIELD" && field === "options.width";
    return [`${reason} ${field}`, isRight];
  },
  async deadline() {
    const error = await failure(generate({ width: 1024, height: 1024, steps: 50 }, { deadline: Date.now() + 500 }));
    return [status[error.code], error.code === status.DEADLINE_EXCEEDED];
  },
};

console.log(`versions node ${process.versions.node}, grpc-js ${grpcPackage.version}`);
for (const [name, task] of Object.entries(tasks)) {
  try {
    const [said, isRight] = await task();
    console.log(`${name} ${isRight ? "ok" : "FAILED not as expected:"} ${said}`);
  } catch (error) {
    console.log(`${name} FAILED ${error}`);
  }
}
images.close();
health.close();
