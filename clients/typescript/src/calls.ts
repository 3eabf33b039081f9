/** Calls methods of the generated contract through grpc-js: paths, encoding, deadlines and cancellation. */
import {
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import type { CallOptions, Client, ClientReadableStream, Metadata, ServiceError } from "@grpc/grpc-js";

import { errorOf } from "./errors.js";

/** Limits of one call: `deadlineMs` for the whole call (unset: none), and a `signal` that cancels it. */
export interface CallLimits {
  readonly deadlineMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A channel, with the metadata that every call sends. */
export interface Connection {
  readonly client: Client;
  readonly metadata: Metadata;
}

const unchanged = (bytes: Buffer): Buffer => bytes;

/**
 * The responses of a stream. The call starts with the first iteration; leaving the loop cancels it at every service.
 *
 * Throws at once if the request cannot be encoded. Iterating throws gRPC's own errors.
 */
export function serverStream<I extends DescMessage, O extends DescMessage>(
  connection: Connection,
  method: DescMethodServerStreaming<I, O>,
  request: MessageShape<I>,
  limits: CallLimits,
): AsyncGenerator<MessageShape<O>, void, undefined> {
  const [path, bytes] = [pathOf(method), encode(method.input, request)];
  const decode = (bytes: Buffer) => fromBinary(method.output, bytes);
  const begin = () =>
    connection.client.makeServerStreamRequest(path, unchanged, decode, bytes, connection.metadata, callOptions(limits));
  return responses(begin, limits.signal);
}

async function* responses<Response>(
  begin: () => ClientReadableStream<Response>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Response, void, undefined> {
  const call = begin();
  call.on("error", () => {}); // the iterator throws errors; without a listener, a late one would end the process
  const release = onAbort(signal, () => call.cancel());
  try {
    for await (const response of call) yield response as Response;
  } finally {
    release();
    call.cancel();
  }
}

/** The response of a unary call. Rejects with PresiftError. */
export function unary<I extends DescMessage, O extends DescMessage>(
  connection: Connection,
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
  limits: CallLimits,
): Promise<MessageShape<O>> {
  const decode = (bytes: Buffer) => fromBinary(method.output, bytes);
  const [path, bytes] = [pathOf(method), encode(method.input, request)];
  return new Promise((resolve, reject) => {
    const onResponse = (failure: ServiceError | null, response?: MessageShape<O>) => {
      release();
      if (failure === null && response !== undefined) resolve(response);
      else reject(errorOf(failure));
    };
    const call = connection.client.makeUnaryRequest(
      path,
      unchanged,
      decode,
      bytes,
      connection.metadata,
      callOptions(limits),
      onResponse,
    );
    const release = onAbort(limits.signal, () => call.cancel());
  });
}

// Encodes before the call, so that a number out of range is the caller's error and not a failure of the call.
function encode<D extends DescMessage>(schema: D, request: MessageShape<D>): Buffer {
  return Buffer.from(toBinary(schema, request));
}

function pathOf(method: { readonly parent: { readonly typeName: string }; readonly name: string }): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function callOptions({ deadlineMs }: CallLimits): CallOptions {
  return deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
}

function onAbort(signal: AbortSignal | undefined, cancel: () => void): () => void {
  if (signal?.aborted) cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  return () => signal?.removeEventListener("abort", cancel);
}
