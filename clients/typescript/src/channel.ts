/**
 * Channel options and call metadata: retries, keepalive, message size, TLS, tenant and API key. The same as the Python
 * client's.
 */
import { readFileSync } from "node:fs";
import { credentials, type ChannelCredentials, type ChannelOptions, Metadata } from "@grpc/grpc-js";

import { OrchestratorService } from "./gen/presift/v1/orchestrator_pb.js";

/**
 * PEM files: `ca` is the authority to trust (unset: the public ones); `cert` and `key` are for mutual TLS.
 * `nameOverride` is the name that the service's certificate must have, if it differs from the address.
 */
export interface TlsOptions {
  readonly ca?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly nameOverride?: string;
}

const TENANT_KEY = "presift-tenant";
const PRINTABLE = /^[\x20-\x7e]*$/;
// gRPC retries a stream only while nothing was received. The first message is the decision, so no answer is repeated.
// A service that stops may cancel a call that arrives in that moment.
const RETRY = {
  maxAttempts: 4,
  initialBackoff: "0.1s",
  maxBackoff: "2s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE", "CANCELLED"],
};

/** Throws TypeError for a cert without a key or a key without a cert, and an error that names an unreadable file. */
export function credentialsOf(tls: TlsOptions | undefined): ChannelCredentials {
  if (tls === undefined) return credentials.createInsecure();
  if ((tls.cert === undefined) !== (tls.key === undefined)) throw new TypeError("cert and key must be given together");
  const [ca, key, cert] = [tls.ca, tls.key, tls.cert].map((path) => (path === undefined ? null : readFileSync(path)));
  return credentials.createSsl(ca, key, cert);
}

/**
 * The metadata of every call. The service checks both values. Throws TypeError for a value that gRPC cannot send; the
 * message never contains the key.
 */
export function metadataOf(tenant: string | undefined, apiKey: string | undefined): Metadata {
  const metadata = new Metadata();
  if (tenant !== undefined) {
    if (!PRINTABLE.test(tenant)) {
      throw new TypeError(`tenant is ${JSON.stringify(tenant)}; it must be 1-64 characters of A-Z a-z 0-9 . _ -`);
    }
    metadata.set(TENANT_KEY, tenant);
  }
  if (apiKey !== undefined) {
    if (!apiKey || apiKey.includes(" ") || !PRINTABLE.test(apiKey)) {
      throw new TypeError("the apiKey must consist of printable ASCII characters without spaces");
    }
    metadata.set("authorization", `Bearer ${apiKey}`);
  }
  return metadata;
}

const LOOPBACK = /^(?:.*\/)?(?:localhost|127(?:\.\d+){3}|\[::1\]):\d+$/;

/** The gRPC options of a channel to `address`. */
export function channelOptions(address: string, maxMessageBytes: number, tls: TlsOptions | undefined): ChannelOptions {
  const config = { methodConfig: [{ name: [{ service: OrchestratorService.typeName }], retryPolicy: RETRY }] };
  return {
    "grpc.service_config": JSON.stringify(config),
    "grpc.max_receive_message_length": maxMessageBytes,
    "grpc.max_send_message_length": maxMessageBytes,
    // gRPC can only retry what it has buffered; its defaults are too small for long prompts.
    "grpc.per_rpc_retry_buffer_size": maxMessageBytes,
    "grpc.retry_buffer_size": 4 * maxMessageBytes,
    // A service that disappears without closing the connection is detected within 8 s.
    "grpc.keepalive_time_ms": 5_000,
    "grpc.keepalive_timeout_ms": 3_000,
    "grpc.max_reconnect_backoff_ms": 2_000,
    // `http_proxy` in the environment cannot mean this machine.
    ...(LOOPBACK.test(address) ? { "grpc.enable_http_proxy": 0 } : {}),
    ...(tls?.nameOverride === undefined ? {} : { "grpc.ssl_target_name_override": tls.nameOverride }),
  };
}
