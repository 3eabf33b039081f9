/** The TypeScript client of presift, for Node 20 or newer. */
export type { Delta, TokenLogprob, ToolCall } from "./answers.js";
export type { TlsOptions } from "./channel.js";
export { Client, type ClientOptions } from "./client.js";
export {
  BudgetExceeded,
  Cancelled,
  type Code,
  DeadlineExceeded,
  InternalError,
  InvalidRequest,
  Overloaded,
  PermissionDenied,
  PresiftError,
  PromptTooLong,
  RouteUnsupported,
  Unauthenticated,
  Unavailable,
} from "./errors.js";
export type { ChatMessage, TextPart } from "./messages.js";
export type { ExplainOptions, Options, PromptOptions, RouteName } from "./requests.js";
export type {
  Choice,
  Decision,
  Event,
  ExplainedSpan,
  Explanation,
  Generation,
  Info,
  Model,
  Replica,
  RouteQuality,
  Usage,
} from "./results.js";
