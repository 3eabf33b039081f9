"""Builds a GenerateRequest or an ExplainRequest from keyword arguments. Pure; both clients use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2
from presift_client.messages import ChatMessage, chat_of, writable
from presift_client.wire import number_of


class PromptOptions(TypedDict, total=False):
    """Options of every call, in addition to a text prompt. Omitted options take the service's defaults.

    Prompt: `messages` (rendered with the target's chat template, together with `tools`) or `token_ids` (used unchanged,
    with `protected_spans` of token positions). `template_kwargs` are further variables of the chat template, e.g.
    `{"enable_thinking": False}`; with `continue_final_message` the answer continues the last message. `route` is
    "auto", "full" or another name of Route in plan.proto.

    Limits: in tokens, except `max_ttft_ms` (compared with a predicted time) and `min_coverage` (0..1, compared with the
    coverage of the draft's mask or, if the target selects KV, with the draft's estimate; below it, a route that reaches
    it is taken, or full). `auto_coverage` (0..1) takes the smallest capacity that reaches it, between `auto_min_tokens`
    and `auto_max_tokens`. `deadline_s` is in seconds.

    KV, on routes that drop KV: `kv_selection` is "target_lookahead" or "draft_mask". `kv_lookahead` is who makes the
    lookahead: "draft", "target" (the answer itself, whose first `first_full_tokens` are generated on the full KV) or
    "auto". Every `renew_every` tokens (0: never), or sooner after a token that is rare in the prompt and new in the
    answer, the target selects anew by the newest `renew_window` tokens.
    `continue_prompt_tokens` is the `prompt_tokens` of an earlier decision whose prompt this one begins with (on "auto"
    too). If that selection is no longer known, the prompt is treated as a new one, and the decision's detail says so.
    """

    messages: Sequence[ChatMessage]
    tools: Sequence[Mapping[str, Any]]
    template_kwargs: Mapping[str, Any]
    continue_final_message: bool
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
    kv_lookahead: str
    renew_every: int
    renew_window: int
    first_full_tokens: int
    deadline_s: float | None


class Options(PromptOptions, total=False):
    """Options of `generate` and `stream`: those of the prompt, how the answer is sampled, and its form.

    `choices` answers are generated; with a `seed`, answer i uses seed + i. `json_schema` (a schema, or its text),
    `regex`, `ebnf` or `structural_tag` restricts the answer: give one of them at most. `tool_choice` is "auto",
    "required", "none" (the model sees the tools, but calls and reasoning stay in the text), or the name of a tool that
    must be called. `top_logprobs` asks for the log probability of each token and of that many others, `prompt_logprobs`
    for those of the prompt too (route full). `raw_text` leaves reasoning and tool calls in the text. `migrate` lets
    another target continue the answer if its target is lost (GenerateRequest.migrate in orchestrator.proto says when).
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    min_new_tokens: int
    json_schema: Mapping[str, Any] | str
    regex: str
    ebnf: str
    structural_tag: Mapping[str, Any] | str
    top_logprobs: int
    prompt_logprobs: bool
    keep_special_tokens: bool
    choices: int
    tool_choice: str
    parallel_tool_calls: bool
    raw_text: bool
    migrate: bool


class ExplainOptions(PromptOptions, total=False):
    """Options of `explain`: those of the prompt, and how much to explain.

    `include_kv_mask` asks the target which KV pairs it keeps, on routes that drop KV; the target reads the prompt for
    it. `span_per_token` makes every token a span, instead of runs. Nothing is generated: `max_new_tokens` is the length
    of the answer that the context check and the predictions assume.
    """

    include_kv_mask: bool
    span_per_token: bool
    max_new_tokens: int


def generate_request(prompt: str | None, options: Options) -> orchestrator_pb2.GenerateRequest:
    """Raises TypeError for an unknown option and InvalidRequest for text that is not valid Unicode.

    Raises ValueError for an unknown route, selection or lookahead, bounds without auto_coverage, several grammars, a
    malformed message, or not exactly one prompt.
    """
    _check_known(options, Options)
    return orchestrator_pb2.GenerateRequest(
        prompt=_prompt(prompt, options),
        route=_route(options),
        budget=_budget(options),
        kv=_kv_options(options),
        sampling=_sampling(options),
        choices=options.get("choices"),
        single_tool_call=options.get("parallel_tool_calls") is False,
        migrate=options.get("migrate", False),
        **_tool_choice(options),
    )


# Fields of Sampling that are sent as they are given.
_SAMPLING = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids", "ignore_eos", "min_p"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "min_new_tokens", "top_logprobs"),
    *("prompt_logprobs", "keep_special_tokens"),
)
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


def _sampling(options: Options) -> target_pb2.Sampling:
    values: dict[str, Any] = {name: options[name] for name in _SAMPLING if name in options}  # type: ignore[literal-required]
    grammars: dict[str, Any] = {name: options[name] for name in _GRAMMARS if name in options}  # type: ignore[literal-required]
    if len(grammars) > 1:
        raise ValueError(f"give one of {' and '.join(grammars)}")
    for name, grammar in grammars.items():
        values[name] = writable(name, grammar if isinstance(grammar, str) else json.dumps(grammar))
    return target_pb2.Sampling(stop=[writable("stop", text) for text in options.get("stop", ())], **values)


def _tool_choice(options: Options) -> dict[str, Any]:
    choice, raw_text = options.get("tool_choice", "auto"), options.get("raw_text", False)
    if choice in ("auto", "none"):
        return {"raw_text": raw_text or choice == "none"}
    if choice == "required":
        return {"tool_choice": target_pb2.TOOL_CHOICE_REQUIRED, "raw_text": raw_text}
    function = writable("tool_choice", choice)
    return {"tool_choice": target_pb2.TOOL_CHOICE_FUNCTION, "tool_function": function, "raw_text": raw_text}


def explain_request(prompt: str | None, options: ExplainOptions) -> orchestrator_pb2.ExplainRequest:
    """Raises as `generate_request` does."""
    _check_known(options, ExplainOptions)
    return orchestrator_pb2.ExplainRequest(
        prompt=_prompt(prompt, options),
        route=_route(options),
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
        raise ValueError("auto_min_tokens and auto_max_tokens require auto_coverage")
    return None


def _route(options: PromptOptions) -> plan_pb2.Route:
    return cast(plan_pb2.Route, number_of("route", options.get("route", "auto"), plan_pb2.Route.DESCRIPTOR))


_RENEWAL = ("renew_every", "renew_window", "first_full_tokens")


def _kv_options(options: PromptOptions) -> orchestrator_pb2.KvOptions | None:
    names = {"keep_full_prefix", "kv_lookahead_tokens", "continue_prompt_tokens", *_RENEWAL}
    values: dict[str, Any] = {name.removeprefix("kv_"): options[name] for name in names & options.keys()}  # type: ignore[literal-required]
    if "kv_selection" in options:
        values["selection"] = number_of("kv_selection", options["kv_selection"], plan_pb2.KvSelection.DESCRIPTOR)
    if "kv_lookahead" in options:
        enum = orchestrator_pb2.KvLookahead.DESCRIPTOR
        values["lookahead"] = number_of("kv_lookahead", options["kv_lookahead"], enum)
    return orchestrator_pb2.KvOptions(**values) if values else None


def _prompt(prompt: str | None, options: PromptOptions) -> orchestrator_pb2.Prompt:
    messages, token_ids, tools = options.get("messages"), options.get("token_ids"), options.get("tools", ())
    if sum(each is not None for each in (prompt, messages, token_ids)) != 1:
        raise ValueError("give exactly one of prompt, messages and token_ids")
    variables, continues = options.get("template_kwargs"), options.get("continue_final_message", False)
    if (tools or variables or continues) and messages is None:
        raise ValueError(
            "tools, template_kwargs and continue_final_message require messages: "
            "prompt and token_ids are not rendered with the chat template"
        )
    spans = [plan_pb2.Span(start=start, end=end) for start, end in options.get("protected_spans", ())]
    if token_ids is not None:
        return orchestrator_pb2.Prompt(token_ids=orchestrator_pb2.TokenIds(ids=token_ids), protected_spans=spans)
    if prompt is not None:
        return orchestrator_pb2.Prompt(text=writable("prompt", prompt), protected_spans=spans)
    chat = chat_of(messages or (), tools)
    if variables:
        chat.template_kwargs_json = json.dumps(variables)
    chat.continue_final_message = continues
    return orchestrator_pb2.Prompt(chat=chat, protected_spans=spans)
