"""What a request asks that not every target, or not every route, can do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from presift.core.answer import AnswerFormat
from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.core.plan import Route
from presift.core.policies import POLICIES
from presift.orchestrator.domain.ports import TargetInfo
from presift.orchestrator.domain.request import Chat, Request
from presift.orchestrator.planning.answer_length import cut_to_context
from presift.orchestrator.prompt.chat_tools import tool_names


def narrowed_to_target(request: Request, target: TargetInfo) -> Request:
    """The request, with only that separated from its answer which the target has a parser for, and with no longer an
    answer than its context holds. Raises InvalidRequest for what this target cannot do."""
    wanted, grammar = request.answer_format or AnswerFormat(), request.sampling.grammar
    is_forced = wanted.forces_call
    if is_forced and not target.grammars:
        raise InvalidRequest("tool_choice", wanted.tool_choice, "auto: the target has no grammars")
    if grammar is not None and not target.grammars:
        raise InvalidRequest(f"sampling.{grammar.kind}", "set", "unset: the target has no grammars")
    if grammar is not None and is_forced:
        raise InvalidRequest(f"sampling.{grammar.kind}", "set", f"unset with tool_choice {wanted.tool_choice}")
    if wanted.function:
        _check_tool(request, wanted.function)
    highest, size = max(request.sampling.logit_bias, default=0), target.model.vocabulary_size
    if highest >= size:
        raise InvalidRequest("sampling.logit_bias", highest, f"token ids < {size} (the vocabulary)")
    # A forced call needs no parser: its grammar makes JSON.
    tools = wanted.tools_json if is_forced or target.tool_call_parser else ()
    # The target needs the variables of a chat even if the reasoning stays in the text: a grammar begins after it.
    chat = request.prompt if target.reasoning_parser and isinstance(request.prompt, Chat) else None
    narrowed = replace(
        wanted,
        tools_json=tools,
        separate_reasoning=wanted.separate_reasoning and bool(target.reasoning_parser),
        template_kwargs_json="" if chat is None else chat.template_kwargs_json,
    )
    request = replace(request, answer_format=narrowed if tools or chat is not None else None)
    return cut_to_context(request, 1, target.model.context_tokens)


def _check_tool(request: Request, function: str) -> None:
    """Raises InvalidRequest unless the chat has this tool."""
    assert isinstance(request.prompt, Chat), "only a chat has tools"
    if function not in tool_names(request.prompt):
        raise InvalidRequest("tool_function", function[:64], "the name of one of the tools")


def beyond_routes(request: Request) -> Mapping[Route, InvalidRequest]:
    """The routes that cannot do what the request asks, each with the error for a caller who names it."""
    if not request.sampling.prompt_logprobs:
        return {}
    limit = f"unset unless the route is {Route.FULL} or auto: other routes drop tokens of the prompt"
    return dict.fromkeys(map(Route, POLICIES), InvalidRequest("sampling.prompt_logprobs", True, limit))


def sampling_of(sampling: Sampling, choice: int) -> Sampling:
    """The sampling of one of several choices: with another seed, and without what is the same for all."""
    if choice == 0:
        return sampling
    seed = None if sampling.seed is None else (sampling.seed + choice) % 2**64
    return replace(sampling, seed=seed, prompt_logprobs=False)
