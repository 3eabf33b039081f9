/**
 * What every call has: gRPC's own retries where the contract says they are safe, keepalive, message size, tenant, TLS and
 * API key. The same as the Python client's.
 */
import { readFileSync } from "node:fs";
import { credentials, type ChannelCredentials, type ChannelOptions, Metadata } from "@grpc/grpc-js";

import { OrchestratorService } from "./gen/presift/v1/orchestrator_pb.js";

/**
 * PEM files: `ca` is the authority to trust (public ones if unset); `cert` and `key` are ours where the service asks.
 * `nameOverride` is the name that the service's certificate must have, where that is not its address.
 */
export interface TlsOptions {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly nameOverride?: string;
}

const TENANT_KEY = "presift-tenant";
const PRINTABLE = /^[\x20-\x7e]*$/;
// gRPC retries a stream only while nothing was received: presift's first message is the decision, so no answer repeats.
const RETRY = {
  maxAttempts: 4,
  initialBackoff: "0.1s",
  maxBackoff: "2s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE"],
};

/** Throws an error that names the file for one that cannot be read. */
export function credentialsOf(tls: TlsOptions | undefined): ChannelCredentials {
  if (tls === undefined) return credentials.createInsecure();
  if ((tls.cert === undefined) !== (tls.key === undefined)) throw new TypeError("cert and key go together");
  const [ca, key, cert] = [tls.ca, tls.key, tls.cert].map((path) => (path === undefined ? null : readFileSync(path)));
  return credentials.createSsl(ca, key, cert);
}

/** The service checks both; throws TypeError only for what gRPC cannot send, and never quotes a key. */
export function metadataOf(tenant: string | undefined, apiKey: string | undefined): Metadata {
  const metadata = new Metadata();
  if (tenant !== undefined) {
    if (!PRINTABLE.test(tenant)) {
      throw new TypeError(`tenant is ${JSON.stringify(tenant)}; it must be 1-64 of A-Z a-z 0-9 . _ -`);
    }
    metadata.set(TENANT_KEY, tenant);
  }
  if (apiKey !== undefined) {
    if (!apiKey || apiKey.includes(" ") || !PRINTABLE.test(apiKey)) {
      throw new TypeError("the apiKey has characters that no key has");
    }
    metadata.set("authorization", `Bearer ${apiKey}`);
  }
  return metadata;
}

/** Of every channel. */
export function channelOptions(maxMessageBytes: number, tls: TlsOptions | undefined): ChannelOptions {
  const config = { methodConfig: [{ name: [{ service: OrchestratorService.typeName }], retryPolicy: RETRY }] };
  return {
    "grpc.service_config": JSON.stringify(config),
    "grpc.max_receive_message_length": maxMessageBytes,
    "grpc.max_send_message_length": maxMessageBytes,
    // What is not kept is not sent again: long prompts are what this is for.
    "grpc.per_rpc_retry_buffer_size": maxMessageBytes,
    "grpc.retry_buffer_size": 4 * maxMessageBytes,
    // A service that is gone without a word is found within 8 s.
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 3_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    ...(tls?.nameOverride === undefined ? {} : { "grpc.ssl_target_name_override": tls.nameOverride }),
  };
}
