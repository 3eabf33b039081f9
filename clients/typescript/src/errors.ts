/**
 * The client's errors, and the table that maps gRPC statuses to them.
 *
 * PresiftError
 * ├── InvalidRequest          INVALID_ARGUMENT: `field`, `value` and `limit` say why; or a message too large
 * │   └── PromptTooLong
 * ├── BudgetExceeded          FAILED_PRECONDITION, only if strict
 * ├── RouteUnsupported        FAILED_PRECONDITION
 * ├── Overloaded              RESOURCE_EXHAUSTED: retry after `retryAfterMs`
 * ├── Unavailable             UNAVAILABLE: the service is unreachable, or failed during the answer
 * ├── DeadlineExceeded        DEADLINE_EXCEEDED
 * ├── Cancelled               CANCELLED: by this client, for example by `signal`
 * ├── Unauthenticated         UNAUTHENTICATED: missing or invalid key, token or certificate
 * ├── PermissionDenied        PERMISSION_DENIED: the caller is known but not allowed to do this
 * └── InternalError           anything else
 */
import { fromBinary } from "@bufbuild/protobuf";
import { type ServiceError, status } from "@grpc/grpc-js";

import { type ErrorInfo, ErrorInfoSchema, RetryInfoSchema, StatusSchema } from "./gen/presift/v1/errors_pb.js";

/** A gRPC status by name. */
export type Code = keyof typeof status;

/** Details of an error; see PresiftError. */
export interface Details {
  readonly reason: string;
  readonly field: string;
  readonly value: string;
  readonly limit: string;
  readonly retryAfterMs: number | undefined;
  readonly deliveredTokens: number;
}

/**
 * Base class of all errors that a call throws. `code` is the gRPC status, `reason` an ErrorReason; `reason`, `field`,
 * `value` and `limit` may be empty. `deliveredTokens` is the number of tokens that were received before the error; 0
 * means that a retry repeats no text. `retryAfterMs` is undefined if the service gives no time.
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
// gRPC's own errors for a message over the size limit, from either side; they carry no reason.
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

/** The error that the service would return, for a value that cannot be encoded. */
export function invalidRequest(field: string, value: string, limit: string): InvalidRequest {
  const details = { ...NONE, reason: "INVALID_REQUEST", field, value, limit };
  return new InvalidRequest(`${field} is ${value}; it must be ${limit}`, "INVALID_ARGUMENT", details);
}

/** The typed error of a call that failed after this many received tokens. Errors that are not gRPC's are unchanged. */
export function errorOf(failure: unknown, receivedTokens = 0): unknown {
  if (!isServiceError(failure)) return failure;
  const code = status[failure.code] as Code;
  const sent = detailsOf(failure);
  // A service that died does not report what it had sent.
  const details = { ...sent, deliveredTokens: Math.max(sent.deliveredTokens, receivedTokens) };
  let kind = BY_REASON.get(details.reason) ?? BY_CODE.get(code) ?? InternalError;
  let text = failure.details || code;
  if (kind === Unavailable && !details.reason) {
    text = `the service is unreachable, or the connection was lost during the answer: ${text}`; // gRPC's own message
  }
  if (kind === Overloaded && TOO_LARGE.test(text)) kind = InvalidRequest; // a retry would not help
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
    return NONE; // from a proxy, or malformed: the status is enough
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
