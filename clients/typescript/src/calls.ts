/** Between the generated contract and gRPC: what a method of a service is called, how its messages become bytes. */
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

/** How long a call may take in all, in milliseconds (unset: for ever), and what ends it before. */
export interface Patience {
  readonly deadlineMs?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A channel with the metadata of each of its calls. */
export interface Line {
  readonly client: Client;
  readonly metadata: Metadata;
}

const asIs = (bytes: Buffer): Buffer => bytes;

/**
 * The answers of a stream, which begins when the first is asked for. They throw gRPC's own errors; whoever stops asking for
 * more cancels the call everywhere. Throws at once what is wrong with the request.
 */
export function streamed<I extends DescMessage, O extends DescMessage>(
  line: Line,
  method: DescMethodServerStreaming<I, O>,
  request: MessageShape<I>,
  patience: Patience,
): AsyncGenerator<MessageShape<O>, void, undefined> {
  const [path, bytes] = [pathOf(method), written(method.input, request)];
  const decode = (answer: Buffer) => fromBinary(method.output, answer);
  const begin = () => line.client.makeServerStreamRequest(path, asIs, decode, bytes, line.metadata, within(patience));
  return read(begin, patience.signal);
}

async function* read<Answer>(
  begin: () => ClientReadableStream<Answer>,
  signal: AbortSignal | undefined,
): AsyncGenerator<Answer, void, undefined> {
  const call = begin();
  call.on("error", () => {}); // told to whoever reads; once nobody does, it is no event that ends the process
  const release = onAbort(signal, () => call.cancel());
  try {
    for await (const answer of call) yield answer as Answer;
  } finally {
    release();
    call.cancel();
  }
}

/** The one answer of a call. Rejects with PresiftError. */
export function answered<I extends DescMessage, O extends DescMessage>(
  line: Line,
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
  patience: Patience,
): Promise<MessageShape<O>> {
  const decode = (bytes: Buffer) => fromBinary(method.output, bytes);
  const [path, bytes] = [pathOf(method), written(method.input, request)];
  return new Promise((resolve, reject) => {
    const settle = (failure: ServiceError | null, answer?: MessageShape<O>) => {
      release();
      if (failure === null && answer !== undefined) resolve(answer);
      else reject(errorOf(failure));
    };
    const call = line.client.makeUnaryRequest(path, asIs, decode, bytes, line.metadata, within(patience), settle);
    const release = onAbort(patience.signal, () => call.cancel());
  });
}

// Before gRPC is asked, so that a number out of its range is the caller's error and no failure of the service.
function written<D extends DescMessage>(schema: D, request: MessageShape<D>): Buffer {
  return Buffer.from(toBinary(schema, request));
}

function pathOf(method: { readonly parent: { readonly typeName: string }; readonly name: string }): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function within({ deadlineMs }: Patience): CallOptions {
  return deadlineMs === undefined ? {} : { deadline: Date.now() + deadlineMs };
}

function onAbort(signal: AbortSignal | undefined, cancel: () => void): () => void {
  if (signal?.aborted) cancel();
  signal?.addEventListener("abort", cancel, { once: true });
  return () => signal?.removeEventListener("abort", cancel);
}
