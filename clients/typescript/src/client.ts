/** The client. */
import { create } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import { answered, type Line, streamed } from "./calls.js";
import { channelOptions, credentialsOf, metadataOf, type TlsOptions } from "./channel.js";
import { errorOf } from "./errors.js";
import { GetInfoRequestSchema, type GenerateResponse, OrchestratorService } from "./gen/presift/v1/orchestrator_pb.js";
import { type ExplainOptions, explainRequest, generateRequest, type Options } from "./requests.js";
import { type Event, eventOf, type Explanation, explanationOf, gathered, type Generation } from "./results.js";
import { type Info, infoOf } from "./results.js";

/**
 * `tls` unset is plain; `{}` trusts the public authorities. An `apiKey` says who calls: without `tls` the network sees it.
 * `tenant` names whose defaults apply (1-64 of A-Z a-z 0-9 . _ -); it is no authentication.
 */
export interface ClientOptions {
  readonly tls?: TlsOptions;
  readonly apiKey?: string;
  readonly tenant?: string;
  readonly maxMessageBytes?: number;
}

/**
 * Talks to an orchestrator at `address` (HOST:PORT); one for a whole program. `close()` it at the end.
 *
 * Calls throw PresiftError. They are retried by gRPC on UNAVAILABLE while nothing was received, and never after.
 */
export class Client {
  readonly #line: Line;

  constructor(address = "127.0.0.1:50051", options: ClientOptions = {}) {
    const { tls, apiKey, tenant, maxMessageBytes = 64 * 2 ** 20 } = options;
    const channel = channelOptions(maxMessageBytes, tls);
    this.#line = {
      metadata: metadataOf(tenant, apiKey),
      client: new grpc.Client(address, credentialsOf(tls), channel),
    };
  }

  /** One Decision, then Deltas, then one Usage. Leaving the loop cancels the request everywhere. */
  stream(options: Options): AsyncGenerator<Event, void, undefined> {
    const request = generateRequest(options); // what is wrong with it is thrown here, not at the first step
    const responses = streamed(this.#line, OrchestratorService.method.generate, request, options);
    return told(responses);
  }

  /** The whole answer. */
  async generate(options: Options): Promise<Generation> {
    return gathered(this.stream(options));
  }

  /** What would be kept of a prompt and why, without an answer. */
  async explain(options: ExplainOptions): Promise<Explanation> {
    const request = explainRequest(options);
    return explanationOf(await answered(this.#line, OrchestratorService.method.explain, request, options));
  }

  /** What stands behind the orchestrator. */
  async info(deadlineMs = 10_000): Promise<Info> {
    const request = create(GetInfoRequestSchema);
    return infoOf(await answered(this.#line, OrchestratorService.method.getInfo, request, { deadlineMs }));
  }

  /** End all calls and the connection. */
  close(): void {
    this.#line.client.close();
  }
}

async function* told(responses: AsyncIterable<GenerateResponse>): AsyncGenerator<Event, void, undefined> {
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
