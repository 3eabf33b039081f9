import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type DescMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { errorOf } from "../../src/errors.js";
import { ErrorInfoSchema, RetryInfoSchema, StatusSchema } from "../../src/gen/presift/v1/errors_pb.js";
import * as presift from "../../src/index.js";

function failure(code: status, details: string, trailer?: Uint8Array): ServiceError {
  const metadata = new Metadata();
  if (trailer !== undefined) metadata.set("grpc-status-details-bin", Buffer.from(trailer));
  return Object.assign(new Error(`${code} ${details}`), { code, details, metadata });
}

function detail<D extends DescMessage>(name: string, schema: D, init: MessageInitShape<D>) {
  return { typeUrl: `type.googleapis.com/google.rpc.${name}`, value: toBinary(schema, create(schema, init)) };
}

function trailer(reason: string, metadata: Record<string, string> = {}, retryMs?: number): Uint8Array {
  const details = [detail("ErrorInfo", ErrorInfoSchema, { reason, domain: "presift.dev", metadata })];
  if (retryMs !== undefined) {
    const retryDelay = { seconds: BigInt(Math.floor(retryMs / 1000)), nanos: (retryMs % 1000) * 1e6 };
    details.push(detail("RetryInfo", RetryInfoSchema, { retryDelay }));
  }
  return toBinary(StatusSchema, create(StatusSchema, { details }));
}

const kinds: [status, string, new (...given: never[]) => presift.PresiftError][] = [
  [status.INVALID_ARGUMENT, "INVALID_REQUEST", presift.InvalidRequest],
  [status.INVALID_ARGUMENT, "PROMPT_TOO_LONG", presift.PromptTooLong],
  [status.FAILED_PRECONDITION, "BUDGET_EXCEEDED", presift.BudgetExceeded],
  [status.FAILED_PRECONDITION, "ROUTE_UNSUPPORTED", presift.RouteUnsupported],
  [status.RESOURCE_EXHAUSTED, "OVERLOADED", presift.Overloaded],
  [status.UNAVAILABLE, "TARGET_UNAVAILABLE", presift.Unavailable],
  [status.UNAVAILABLE, "SHUTTING_DOWN", presift.Unavailable],
  [status.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", presift.DeadlineExceeded],
  [status.CANCELLED, "", presift.Cancelled],
  [status.UNAUTHENTICATED, "UNAUTHENTICATED", presift.Unauthenticated],
  [status.PERMISSION_DENIED, "PERMISSION_DENIED", presift.PermissionDenied],
  [status.INTERNAL, "INTERNAL", presift.InternalError],
  [status.UNKNOWN, "", presift.InternalError],
];
for (const [code, reason, kind] of kinds) {
  test(`${status[code]} ${reason} is ${kind.name}`, () => {
    const error = errorOf(failure(code, "why", trailer(reason)));
    assert.ok(error instanceof kind && error instanceof presift.PresiftError);
    assert.deepEqual([error.name, error.code, error.reason, error.message], [kind.name, status[code], reason, "why"]);
  });
}

test("field, value, limit, retry time and delivered tokens", () => {
  const known = { field: "max_running", value: "64", limit: "64", delivered_tokens: "12" };
  const error = errorOf(failure(status.RESOURCE_EXHAUSTED, "full", trailer("OVERLOADED", known, 1500)));
  assert.ok(error instanceof presift.Overloaded);
  assert.deepEqual([error.field, error.value, error.limit], ["max_running", "64", "64"]);
  assert.deepEqual([error.retryAfterMs, error.deliveredTokens], [1500, 12]);
});

test("a message over the size limit is an invalid request, on either side", () => {
  for (const text of [
    "SERVER: Received message larger than max (9 vs. 4)",
    "Attempted to send message with a size larger than 5",
  ]) {
    assert.ok(errorOf(failure(status.RESOURCE_EXHAUSTED, text)) instanceof presift.InvalidRequest);
  }
});

test("malformed details are ignored", () => {
  for (const raw of [Buffer.from("\xff\xff\xff"), Buffer.alloc(0)]) {
    const error = errorOf(failure(status.UNAVAILABLE, "", raw));
    assert.ok(error instanceof presift.Unavailable);
    assert.match(
      error.message,
      /^the service is unreachable, or the connection was lost during the answer: UNAVAILABLE$/,
    );
    assert.deepEqual([error.reason, error.retryAfterMs], ["", undefined]);
  }
});

test("received tokens count if the service reports none", () => {
  const [silent, reporting] = [failure(status.UNAVAILABLE, "Socket closed"), trailer("X", { delivered_tokens: "9" })];
  assert.equal((errorOf(silent, 6) as presift.PresiftError).deliveredTokens, 6);
  const error = errorOf(failure(status.UNAVAILABLE, "gone", reporting), 6) as presift.PresiftError;
  assert.deepEqual([error.deliveredTokens, error.message], [9, "gone"]);
});

test("delivered tokens that are not a number count as 0", () => {
  const error = errorOf(failure(status.UNAVAILABLE, "", trailer("", { delivered_tokens: "-1e9" })));
  assert.equal((error as presift.PresiftError).deliveredTokens, 0);
});

test("errors that are not gRPC's are unchanged", () => {
  const defect = new RangeError("ours");
  assert.equal(errorOf(defect), defect);
});
