/** The generated contract `presift.v1`, for the parts that the client does not wrap. */
export * from "./gen/presift/v1/errors_pb.js";
export * from "./gen/presift/v1/orchestrator_pb.js";
export * from "./gen/presift/v1/plan_pb.js";
export { FinishReason, type Sampling, SamplingSchema } from "./gen/presift/v1/target_pb.js";
