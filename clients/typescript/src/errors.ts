/**
 * The client's errors, and the one table from gRPC statuses to them.
 *
 * PresiftError
 * ├── InvalidRequest          INVALID_ARGUMENT: `field`, `value`, `limit` say what is wrong; or too large a message
 * │   └── PromptTooLong
 * ├── BudgetExceeded          FAILED_PRECONDITION, only if strict
 * ├── RouteUnsupported        FAILED_PRECONDITION
 * ├── Overloaded              RESOURCE_EXHAUSTED: come back after `retryAfterMs`
 * ├── Unavailable             UNAVAILABLE: nobody there, or gone while answering
 * ├── DeadlineExceeded        DEADLINE_EXCEEDED
 * ├── Cancelled               CANCELLED: by us, the signal included
 * ├── Unauthenticated         UNAUTHENTICATED: no key, token or certificate, or none that holds
 * ├── PermissionDenied        PERMISSION_DENIED: known, but this is not allowed
 * └── InternalError           anything else
 */
import { fromBinary } from "@bufbuild/protobuf";
import { type ServiceError, status } from "@grpc/grpc-js";

import { type ErrorInfo, ErrorInfoSchema, RetryInfoSchema, StatusSchema } from "./gen/presift/v1/errors_pb.js";

/** A gRPC status by name. */
export type Code = keyof typeof status;

/** What a refusal carries; see PresiftError. */
export interface Details {
  readonly reason: string;
  readonly field: string;
  readonly value: string;
  readonly limit: string;
  readonly retryAfterMs: number | undefined;
  readonly deliveredTokens: number;
}

/**
 * Base of everything that a call throws. `code` is the gRPC status, `reason` an ErrorReason; both and `field`, `value`,
 * `limit` may be empty. `deliveredTokens` of an answer had come before it: 0 says that asking again costs nothing twice.
 * `retryAfterMs` is undefined where the service names no time.
 */
export class PresiftError extends Error implements Details {
  readonly reason: string;
  readonly field: string;
  readonly value: string;
  readonly limit: string;
  readonly retryAfterMs: number | undefined;
  readonly deliveredTokens: number;

  constructor(
    message: string,
    readonly code: Code,
    details: Details = NONE,
  ) {
    super(message);
    this.name = new.target.name;
    this.reason = details.reason;
    this.field = details.field;
    this.value = details.value;
    this.limit = details.limit;
    this.retryAfterMs = details.retryAfterMs;
    this.deliveredTokens = details.deliveredTokens;
  }
}

export class InvalidRequest extends PresiftError {}
export class PromptTooLong extends InvalidRequest {}
export class BudgetExceeded extends PresiftError {}
export class RouteUnsupported extends PresiftError {}
export class Overloaded extends PresiftError {}
export class Unavailable extends PresiftError {}
export class DeadlineExceeded extends PresiftError {}
export class Cancelled extends PresiftError {}
export class Unauthenticated extends PresiftError {}
export class PermissionDenied extends PresiftError {}
export class InternalError extends PresiftError {}

const NONE: Details = { reason: "", field: "", value: "", limit: "", retryAfterMs: undefined, deliveredTokens: 0 };
const GOOGLE = "type.googleapis.com/google.rpc.";
const DETAILS_KEY = "grpc-status-details-bin";
// How gRPC itself refuses a message over the size limit, on either side; it sends no reason.
const TOO_LARGE = /message larger than max|Attempted to send message with a size larger than/;

const BY_REASON = new Map<string, typeof PresiftError>([
  ["PROMPT_TOO_LONG", PromptTooLong],
  ["BUDGET_EXCEEDED", BudgetExceeded],
  ["ROUTE_UNSUPPORTED", RouteUnsupported],
]);
const BY_CODE = new Map<Code, typeof PresiftError>([
  ["INVALID_ARGUMENT", InvalidRequest],
  ["RESOURCE_EXHAUSTED", Overloaded],
  ["UNAVAILABLE", Unavailable],
  ["DEADLINE_EXCEEDED", DeadlineExceeded],
  ["CANCELLED", Cancelled],
  ["UNAUTHENTICATED", Unauthenticated],
  ["PERMISSION_DENIED", PermissionDenied],
]);

/** What the service would have said, where the message cannot even be written. */
export function invalidRequest(field: string, value: string, limit: string): InvalidRequest {
  const details = { ...NONE, reason: "INVALID_REQUEST", field, value, limit };
  return new InvalidRequest(`${field} is ${value}; it must be ${limit}`, "INVALID_ARGUMENT", details);
}

/** The typed error of a call that failed after so many tokens; what is none of gRPC's is given back as it is. */
export function errorOf(failure: unknown, receivedTokens = 0): unknown {
  if (!isServiceError(failure)) return failure;
  const code = status[failure.code] as Code;
  const told = detailsOf(failure);
  // A service that died says nothing of what it had sent.
  const details = { ...told, deliveredTokens: Math.max(told.deliveredTokens, receivedTokens) };
  let kind = BY_REASON.get(details.reason) ?? BY_CODE.get(code) ?? InternalError;
  let text = failure.details || code;
  if (kind === Unavailable && !details.reason) {
    text = `the service cannot be reached, or was lost while it answered: ${text}`; // gRPC's own words
  }
  if (kind === Overloaded && TOO_LARGE.test(text)) kind = InvalidRequest; // coming back later would not help
  return new kind(text, code, details);
}

function isServiceError(failure: unknown): failure is ServiceError {
  return failure instanceof Error && "code" in failure && "metadata" in failure && typeof failure.code === "number";
}

function detailsOf(failure: ServiceError): Details {
  const [raw] = failure.metadata.get(DETAILS_KEY);
  if (!(raw instanceof Uint8Array)) return NONE;
  try {
    return parsed(raw);
  } catch {
    return NONE; // a proxy's, or broken: the status says enough
  }
}

function parsed(raw: Uint8Array): Details {
  let [info, retryAfterMs]: [ErrorInfo | undefined, number | undefined] = [undefined, undefined];
  for (const { typeUrl, value } of fromBinary(StatusSchema, raw).details) {
    if (typeUrl === `${GOOGLE}ErrorInfo`) {
      info = fromBinary(ErrorInfoSchema, value);
    } else if (typeUrl === `${GOOGLE}RetryInfo`) {
      const delay = fromBinary(RetryInfoSchema, value).retryDelay;
      retryAfterMs = delay === undefined ? 0 : Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    }
  }
  const known = info?.metadata ?? {};
  const { field = "", value = "", limit = "", delivered_tokens: delivered = "" } = known;
  const deliveredTokens = /^\d{1,9}$/.test(delivered) ? Number(delivered) : 0;
  return { reason: info?.reason ?? "", field, value, limit, retryAfterMs, deliveredTokens };
}
