/** The client of an orchestrator. */
import { create } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import { type Connection, serverStream, unary } from "./calls.js";
import { channelOptions, credentialsOf, metadataOf, type TlsOptions } from "./channel.js";
import { errorOf } from "./errors.js";
import { GetInfoRequestSchema, type GenerateResponse, OrchestratorService } from "./gen/presift/v1/orchestrator_pb.js";
import { type ExplainOptions, explainRequest, generateRequest, type Options } from "./requests.js";
import {
  type Event,
  eventOf,
  type Explanation,
  explanationOf,
  gather,
  type Generation,
  type Info,
  infoOf,
} from "./results.js";

/**
 * `tls` unset is plaintext; `{}` trusts the public authorities. `apiKey` authenticates the caller; without `tls` it is
 * sent unencrypted. `tenant` (1-64 of A-Z a-z 0-9 . _ -) selects the defaults that apply; it does not authenticate.
 */
export interface ClientOptions {
  readonly tls?: TlsOptions;
  readonly apiKey?: string;
  readonly tenant?: string;
  readonly maxMessageBytes?: number;
}

/**
 * A client of the orchestrator at `address` (HOST:PORT). One is enough for a program; call `close()` at the end.
 *
 * Calls throw PresiftError. gRPC retries them on UNAVAILABLE while nothing was received, and never after that. Invalid
 * options throw TypeError, and text that is not valid Unicode InvalidRequest, before anything is sent.
 */
export class Client {
  readonly #connection: Connection;

  constructor(address = "127.0.0.1:50051", options: ClientOptions = {}) {
    const { tls, apiKey, tenant, maxMessageBytes = 64 * 2 ** 20 } = options;
    const channel = channelOptions(address, maxMessageBytes, tls);
    this.#connection = {
      metadata: metadataOf(tenant, apiKey),
      client: new grpc.Client(address, credentialsOf(tls), channel),
    };
  }

  /** One Decision, then Deltas, then one Usage. Leaving the loop cancels the request at every service. */
  stream(options: Options): AsyncGenerator<Event, void, undefined> {
    const request = generateRequest(options); // throws here for invalid options, not at the first iteration
    return events(serverStream(this.#connection, OrchestratorService.method.generate, request, options));
  }

  /** The whole answer. */
  async generate(options: Options): Promise<Generation> {
    return gather(this.stream(options));
  }

  /** What would be kept of a prompt and why, without an answer. */
  async explain(options: ExplainOptions): Promise<Explanation> {
    const request = explainRequest(options);
    return explanationOf(await unary(this.#connection, OrchestratorService.method.explain, request, options));
  }

  /** The models, routes and replicas of the orchestrator. */
  async info(deadlineMs = 10_000): Promise<Info> {
    const request = create(GetInfoRequestSchema);
    return infoOf(await unary(this.#connection, OrchestratorService.method.getInfo, request, { deadlineMs }));
  }

  /** Cancel all calls and close the connection. */
  close(): void {
    this.#connection.client.close();
  }
}

async function* events(responses: AsyncIterable<GenerateResponse>): AsyncGenerator<Event, void, undefined> {
  let receivedTokens = 0;
  try {
    for await (const response of responses) {
      const event = eventOf(response);
      if (event?.kind === "delta") receivedTokens += event.tokenIds.length;
      if (event !== undefined) yield event;
    }
  } catch (failure) {
    throw errorOf(failure, receivedTokens);
  }
}
