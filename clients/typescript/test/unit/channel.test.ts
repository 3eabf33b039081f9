import assert from "node:assert/strict";
import { test } from "node:test";

import { channelOptions, credentialsOf, metadataOf } from "../../src/channel.js";

test("tenant and key travel as metadata", () => {
  const metadata = metadataOf("acme", "psk_1");
  assert.deepEqual(metadata.getMap(), { "presift-tenant": "acme", authorization: "Bearer psk_1" });
  assert.deepEqual(metadataOf(undefined, undefined).getMap(), {});
});

for (const key of ["", "psk 1", "psk\n1", "schlüssel"]) {
  test(`the key ${JSON.stringify(key)} is refused and not quoted`, () => {
    assert.throws(
      () => metadataOf(undefined, key),
      (error) =>
        error instanceof TypeError &&
        error.message === "the apiKey must consist of printable ASCII characters without spaces",
    );
  });
}

test("a tenant that cannot be sent is refused", () => {
  assert.throws(() => metadataOf("a\nb", undefined), /tenant is "a\\nb"/);
});

test("cert needs key, and the error names a missing file", () => {
  assert.throws(() => credentialsOf({ cert: "cert.pem" }), /cert and key must be given together/);
  assert.throws(() => credentialsOf({ ca: "/nowhere/ca.pem" }), /\/nowhere\/ca\.pem/);
});

test("the retry buffer holds the largest message", () => {
  const options = channelOptions("127.0.0.1:1", 1000, { nameOverride: "presift" });
  assert.equal(options["grpc.per_rpc_retry_buffer_size"], 1000);
  assert.equal(options["grpc.ssl_target_name_override"], "presift");
  assert.match(String(options["grpc.service_config"]), /"service":"presift\.v1\.OrchestratorService"/);
});

test("the environment's proxy is not used for this machine", () => {
  for (const address of ["127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1"]) {
    assert.equal(channelOptions(address, 1, undefined)["grpc.enable_http_proxy"], 0);
  }
  for (const address of ["10.0.0.1:1", "localhost.example.com:1", "presift.example.com:443"]) {
    assert.equal(channelOptions(address, 1, undefined)["grpc.enable_http_proxy"], undefined);
  }
});
