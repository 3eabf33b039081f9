"""From keyword arguments to a GenerateRequest or an ExplainRequest. Pure; both clients use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2
from presift_client.messages import ChatMessage, chat_of, writable


class PromptOptions(TypedDict, total=False):
    """What every call takes beside a text prompt. What is left out takes the service's default.

    Prompts: `messages` (rendered with the target's chat template, `tools` with them) or `token_ids` (read as they are,
    with `protected_spans` of token positions). `route` is "auto", "full" or another name of Route in plan.proto. Limits
    are in tokens; `max_ttft_ms` is held against a predicted time, `min_coverage` (0..1) against the
    draft's mask or, where the target chooses KV, its estimate: below it a route that reaches it, or full, is taken;
    `auto_coverage` (0..1) takes the smallest capacity that reaches it, between `auto_min_tokens` and `auto_max_tokens`;
    `deadline_s` is in seconds. On routes that drop KV: `kv_selection` is "target_lookahead" or
    "draft_mask"; `continue_prompt_tokens` is the `prompt_tokens` of an earlier decision with whose prompt this one
    begins (on "auto" too; where there is no such selection, the prompt is a new one and the decision's detail says so).
    """

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]]
    token_ids: Sequence[int]
    protected_spans: Sequence[tuple[int, int]]
    route: str
    max_prompt_tokens: int
    max_kv_tokens: int
    strict: bool
    compress_above_tokens: int
    max_ttft_ms: int
    min_coverage: float
    auto_coverage: float
    auto_min_tokens: int
    auto_max_tokens: int
    kv_selection: str
    keep_full_prefix: bool
    kv_lookahead_tokens: int
    continue_prompt_tokens: int
    deadline_s: float | None


class Options(PromptOptions, total=False):
    """What `generate` and `stream` take: the prompt's options, and how the answer is chosen."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool


class ExplainOptions(PromptOptions, total=False):
    """What `explain` takes: the prompt's options, and how much to explain.

    `include_kv_mask` asks the target which KV pairs it keeps, on routes that drop KV: it reads the prompt for that.
    `span_per_token` makes a span of every token instead of runs with one fate. Nothing is generated: room is left and
    time predicted for `max_new_tokens`.
    """

    include_kv_mask: bool
    span_per_token: bool
    max_new_tokens: int


def generate_request(prompt: str | None, options: Options) -> orchestrator_pb2.GenerateRequest:
    """Raises TypeError for an unknown option, ValueError for an unknown route or selection, for bounds without
    auto_coverage, for a message that is none, or unless there is exactly one prompt; InvalidRequest for text that has
    no UTF-8."""
    _check_known(options, Options)
    return orchestrator_pb2.GenerateRequest(
        prompt=_prompt(prompt, options),
        route=route_of(options.get("route", "auto")),
        budget=_budget(options),
        kv=_kv_options(options),
        sampling=target_pb2.Sampling(
            max_new_tokens=options.get("max_new_tokens"),
            temperature=options.get("temperature"),
            top_p=options.get("top_p"),
            top_k=options.get("top_k"),
            seed=options.get("seed"),
            stop=[writable("stop", text) for text in options.get("stop", ())],
            stop_token_ids=options.get("stop_token_ids", ()),
            ignore_eos=options.get("ignore_eos", False),
        ),
    )


def explain_request(prompt: str | None, options: ExplainOptions) -> orchestrator_pb2.ExplainRequest:
    """Raises as `generate_request`."""
    _check_known(options, ExplainOptions)
    return orchestrator_pb2.ExplainRequest(
        prompt=_prompt(prompt, options),
        route=route_of(options.get("route", "auto")),
        budget=_budget(options),
        kv=_kv_options(options),
        include_kv_mask=options.get("include_kv_mask", False),
        span_per_token=options.get("span_per_token", False),
        max_new_tokens=options.get("max_new_tokens"),
    )


def _check_known(options: PromptOptions, kind: type) -> None:
    unknown = set(options) - kind.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown option {', '.join(sorted(unknown))}")


def _budget(options: PromptOptions) -> orchestrator_pb2.Budget:
    return orchestrator_pb2.Budget(
        max_prompt_tokens=options.get("max_prompt_tokens"),
        max_kv_tokens=options.get("max_kv_tokens"),
        strict=options.get("strict", False),
        compress_above_tokens=options.get("compress_above_tokens"),
        max_ttft_ms=options.get("max_ttft_ms"),
        min_coverage=options.get("min_coverage"),
        auto_capacity=_auto_capacity(options),
    )


def _auto_capacity(options: PromptOptions) -> orchestrator_pb2.AutoCapacity | None:
    bounds = {name: options.get(f"auto_{name}") for name in ("min_tokens", "max_tokens")}
    if "auto_coverage" in options:
        return orchestrator_pb2.AutoCapacity(coverage=options["auto_coverage"], **bounds)  # type: ignore[arg-type]
    if any(bound is not None for bound in bounds.values()):
        raise ValueError("auto_min_tokens and auto_max_tokens go with auto_coverage")
    return None


def route_of(name: str) -> plan_pb2.Route:
    """Raises ValueError, listing the names that are known."""
    return cast(plan_pb2.Route, _number("route", name, plan_pb2.Route, "ROUTE_"))


def _kv_options(options: PromptOptions) -> orchestrator_pb2.KvOptions | None:
    names = {"keep_full_prefix", "kv_lookahead_tokens", "continue_prompt_tokens"}
    values: dict[str, Any] = {name.removeprefix("kv_"): options[name] for name in names & options.keys()}  # type: ignore[literal-required]
    if "kv_selection" in options:
        values["selection"] = _number("kv_selection", options["kv_selection"], plan_pb2.KvSelection, "KV_SELECTION_")
    return orchestrator_pb2.KvOptions(**values) if values else None


def _number(option: str, name: str, enum: Any, prefix: str) -> int:
    """The enum's number. Raises ValueError, listing the names that are known."""
    names = {key.removeprefix(prefix).lower(): key for key in enum.keys()[1:]}
    if name not in names:
        raise ValueError(f"{option} is {name!r}; it must be one of {', '.join(names)}")
    return int(enum.Value(names[name]))


def _prompt(prompt: str | None, options: PromptOptions) -> orchestrator_pb2.Prompt:
    messages, token_ids, tools = options.get("messages"), options.get("token_ids"), options.get("tools", ())
    if sum(given is not None for given in (prompt, messages, token_ids)) != 1:
        raise ValueError("give exactly one of prompt, messages and token_ids")
    if tools and messages is None:
        raise ValueError("tools go with messages: prompt and token_ids are read as they are")
    spans = [plan_pb2.Span(start=start, end=end) for start, end in options.get("protected_spans", ())]
    if token_ids is not None:
        return orchestrator_pb2.Prompt(token_ids=orchestrator_pb2.TokenIds(ids=token_ids), protected_spans=spans)
    if prompt is not None:
        return orchestrator_pb2.Prompt(text=writable("prompt", prompt), protected_spans=spans)
    return orchestrator_pb2.Prompt(chat=chat_of(messages or (), tools), protected_spans=spans)
