// A klein server from a browser, over gRPC-Web: the clients, a stream's image, and what an error says.
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type Client, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../build/gen/browser/google/rpc/error_details_pb";
import { Health } from "../build/gen/browser/grpc/health/v1/health_pb";
import {
  type Accepted,
  type Completed,
  type ImageEvent,
  type ImageHeader,
  ImageOptionsSchema,
  ImageService,
} from "../build/gen/browser/klein/v1/image_pb";
import { UsageService } from "../build/gen/browser/klein/v1/usage_pb";

export * from "../build/gen/browser/klein/v1/image_pb";
export * from "../build/gen/browser/klein/v1/usage_pb";
export { create, Code };

// Every field has a default, as the contract's comments say.
export type Options = MessageInitShape<typeof ImageOptionsSchema>;

export interface Klein {
  images: Client<typeof ImageService>;
  usage: Client<typeof UsageService>;
  health: Client<typeof Health>;
}

// The services of the server at this address; the token is asked for at each call and never kept.
export function klein(baseUrl: string, token: () => string = () => ""): Klein {
  const transport = createGrpcWebTransport({
    baseUrl,
    interceptors: [
      (next) => (request) => {
        if (token()) request.header.set("authorization", `Bearer ${token()}`);
        return next(request);
      },
    ],
  });
  return {
    images: createClient(ImageService, transport),
    usage: createClient(UsageService, transport),
    health: createClient(Health, transport),
  };
}

// What a stream of Generate, Edit or Attach brought, its previews apart.
export interface Drawing {
  accepted: Accepted;
  header: ImageHeader;
  image: Uint8Array<ArrayBuffer>;
  completed: Completed;
}

// Takes a stream to its end; each event is shown as it comes. The image's length and hash are checked (the hash where
// the page is a secure context, as browsers call https and localhost: elsewhere they offer none). Throws the stream's
// ConnectError.
export async function read(events: AsyncIterable<ImageEvent>, onEvent = (_: ImageEvent) => {}): Promise<Drawing> {
  const got: Partial<Drawing> = {};
  let filled = 0;
  for await (const message of events) {
    const { event } = message;
    if (event.case === "accepted") got.accepted = event.value;
    if (event.case === "imageHeader") {
      got.header = event.value;
      got.image = new Uint8Array(Number(event.value.sizeBytes));
    }
    if (event.case === "imageChunk") {
      got.image?.set(event.value.data, Number(event.value.offset));
      filled += event.value.data.length;
    }
    if (event.case === "completed") got.completed = event.value;
    onEvent(message);
  }
  const { accepted, header, image, completed } = got;
  if (!accepted || !header || !image || !completed || filled !== image.length || !(await hasHash(image, header.sha256)))
    throw new ConnectError("the image did not come whole", Code.DataLoss);
  return { accepted, header, image, completed };
}

async function hasHash(image: Uint8Array<ArrayBuffer>, sha256: Uint8Array): Promise<boolean> {
  if (!globalThis.isSecureContext) return true;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", image));
  return hash.length === sha256.length && hash.every((byte, i) => byte === sha256[i]);
}

// An error as the contract has it; `reason` is empty where no klein server wrote it (the network, a proxy).
export interface Problem {
  code: Code;
  message: string;
  reason: string;
  requestId: string;
  violations: { field: string; description: string }[];
  retrySeconds?: number;
}

// What an error of a call says.
export function problem(error: unknown): Problem {
  const failure = ConnectError.from(error);
  const [info] = failure.findDetails(ErrorInfoSchema);
  const [retry] = failure.findDetails(RetryInfoSchema);
  const delay = retry?.retryDelay;
  return {
    code: failure.code,
    message: failure.rawMessage,
    reason: info?.reason ?? "",
    requestId: info?.metadata.request_id ?? "",
    violations: failure.findDetails(BadRequestSchema).flatMap((one) => one.fieldViolations),
    retrySeconds: delay && Number(delay.seconds) + delay.nanos / 1e9,
  };
}
