"""What presift knows of a model's format: its parsers, whether it thinks, and the grammars of forced calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presift.core.answer import AnswerFormat
from presift.core.errors import InvalidRequest
from presift.target.engine import GenerateRequest
from presift.target.sglang.answer_parser import NO_NAMES, AnswerParser, ParserNames
from presift.target.sglang.tools import bound_to_schema, choice_of, tools_of

# SGLang's modules are heavy, and loaded by the time that a request arrives.
# ruff: noqa: PLC0415

# A generation prompt that opens or closes the thinking does so in its last few tokens.
_TAIL_TOKENS = 32
# SGLang's server leaves special tokens in the text for these, because their parsers read them.
_READ_SPECIAL_TOKENS = frozenset({"apertus2509", "kimi_k3", "inkling", "muse", "gpt-oss", "gemma4", "mistral"})
# This end of gpt-oss's turn is part of its format.
_CALL_END = "<|call|>"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What both the request to SGLang and the reading of its answer need, once for each request.

    `tools`: SGLang's, checked. `variables`: those of the chat's template. `is_thinking`: whether the answer begins with
    reasoning.
    """

    tools: Sequence[Any] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    is_thinking: bool = False


def _never(_: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False)
class Parsers:
    """The parsers of one model. `thinks`: whether it begins an answer with reasoning if the prompt does not say, by the
    variables of the chat's template."""

    names: ParserNames = NO_NAMES
    tokenizer: Any = None
    thinks: Callable[[Mapping[str, Any]], bool] = _never

    def prepared(self, request: GenerateRequest) -> Prepared:
        """Raises InvalidRequest for malformed tools or variables."""
        wanted = request.format
        if wanted is None:
            return Prepared(is_thinking=self.is_thinking(None, request.token_ids))
        tools, variables = tools_of(wanted) if wanted.tools_json else (), _variables(wanted.template_kwargs_json)
        return Prepared(tools, variables, self.is_thinking(variables, request.token_ids))

    def answer_parser(self, request: GenerateRequest, prepared: Prepared) -> AnswerParser | None:
        """A parser for the answer; None for an answer without a format."""
        if request.format is None:
            return None
        return AnswerParser(
            request.format,
            self.names,
            self.tokenizer,
            tools=prepared.tools,
            variables=prepared.variables,
            is_thinking=prepared.is_thinking,
            earlier_calls=self._calls_in(request.token_ids),
        )

    def is_thinking(self, variables: Mapping[str, Any] | None, token_ids: NDArray[np.uint32]) -> bool:
        """Whether the answer to a prompt begins with reasoning: the prompt's end says so, else the model's default for
        these `variables` of the chat's template. None: the prompt is no chat."""
        if not self.names.reasoning:
            return False
        detector = self._detector()
        tail = self.tokenizer.decode(token_ids[-_TAIL_TOKENS:].tolist(), skip_special_tokens=False)
        for mark, thinks in ((detector.think_end_token, False), (detector.think_start_token, True)):
            _, found, after = tail.rpartition(mark)
            if found and not after.strip():
                return thinks
        return variables is not None and self.thinks(variables)

    def keeps_special_tokens(self, wanted: AnswerFormat | None) -> bool:
        """Whether special tokens stay in the text: for the parsers, or for a caller who parses the text of a reasoning
        model."""
        if wanted is None:
            return False
        return bool(wanted.tools_json) or self.names.reasoning in _READ_SPECIAL_TOKENS

    def without_end(self, text: str, token_id: int) -> str:
        """`text`, the end of an answer, without the token that ended it. The token stays if a parser reads it."""
        end: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text if end == _CALL_END and self.names.tool_calls == "gpt-oss" else text.removesuffix(end)

    def constraint(self, request: GenerateRequest, prepared: Prepared) -> dict[str, Any]:
        """SGLang's sampling parameters that make the answer call tools as wanted.

        Raises InvalidRequest if a forced call has no grammar, or the request brings a grammar of its own.
        """
        wanted, grammar = request.format, request.sampling.grammar
        if wanted is None or not wanted.tools_json:
            return {}
        if grammar is not None:
            if wanted.forces_call:
                limit = f"auto together with sampling.{grammar.kind}: one answer has one grammar"
                raise InvalidRequest("tool_choice", wanted.tool_choice, limit)
            return {}
        found = self._tool_grammar(wanted, prepared)
        if found is None and wanted.forces_call:
            raise InvalidRequest("tool_choice", wanted.tool_choice, f"auto: {self.names.tool_calls} has no grammar")
        if found is None:
            return {}
        kind, value = found
        if wanted.single_call and hasattr(value, "structures"):
            value = _one_call(value)
        elif wanted.forces_call and hasattr(value, "format"):
            value = _with_a_call(value)
        return _as_parameters(kind, value)

    def _tool_grammar(self, wanted: AnswerFormat, prepared: Prepared) -> tuple[str, Any] | None:
        from sglang.srt.function_call.function_call_parser import FunctionCallParser
        from sglang.srt.function_call.utils import get_json_schema_constraint, strip_structural_tag_excludes

        # SGLang's grammar of a named function is often that of any of the tools.
        named = wanted.function
        tools = [tool for tool in prepared.tools if named in ("", tool.function.name)]
        if wanted.forces_call and self.names.tool_calls != "glm47":  # whose grammar bounds every argument
            tools = [bound_to_schema(tool) for tool in tools]
        choice = choice_of(wanted)
        found, is_native = None, False
        if self.names.tool_calls:
            parser = FunctionCallParser(tools, self.names.tool_calls, tokenizer=self.tokenizer)
            # SGLang's grammar starts after the reasoning by itself, except where it covers the whole turn.
            covers_turn = self.names.tool_calls == "glm47" and not any(tool.function.strict for tool in tools)
            found = parser.get_structure_constraint(
                choice, parallel_tool_calls=not wanted.single_call, thinking_mode=covers_turn and prepared.is_thinking
            )
            is_native = parser.detector.parses_required_natively()
            if found is not None and found[0] == "structural_tag" and self.names.reasoning:
                detector = self._detector()
                strip_structural_tag_excludes(found[1], (detector.think_start_token, detector.think_end_token))
        if found is None and wanted.forces_call and not is_native:
            try:
                schema = get_json_schema_constraint(tools, choice, parallel_tool_calls=not wanted.single_call)
            except ValueError as error:
                raise InvalidRequest("format.tools_json", str(error)[:200], "tools with one grammar") from error
            found = ("json_schema", schema)
        return found

    def _detector(self) -> Any:
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        return ReasoningParser(self.names.reasoning, tokenizer=self.tokenizer).detector

    def _calls_in(self, token_ids: NDArray[np.uint32]) -> int:
        """The number of calls in the prompt, if the format numbers its calls."""
        if self.names.tool_calls != "kimi_k2":
            return 0
        return int(np.count_nonzero(token_ids == self.tokenizer.convert_tokens_to_ids("<|tool_call_begin|>")))


def _variables(text: str) -> dict[str, Any]:
    try:
        variables = json.loads(text or "{}")
    except (ValueError, RecursionError):
        variables = None
    if not isinstance(variables, dict):
        raise InvalidRequest("format.template_kwargs_json", text[:64], "a JSON object")
    return variables


def _as_parameters(kind: str, value: Any) -> dict[str, Any]:
    if kind == "full_assistant_ebnf":
        return {"ebnf": value, "ebnf_full_assistant": True}
    return {kind: json.dumps(value.model_dump(by_alias=True) if hasattr(value, "model_dump") else value)}


def _one_call(tag: Any) -> dict[str, Any]:
    """A legacy structural tag of SGLang as one that ends after the first call, which SGLang's cannot say."""
    tags = [
        {
            "type": "tag",
            "begin": each.begin,
            "content": {"type": "json_schema", "json_schema": each.schema_ or {}},
            "end": each.end,
        }
        for each in tag.structures
    ]
    ends = {"at_least_one": tag.at_least_one, "stop_after_first": True}
    form = {"type": "triggered_tags", "triggers": tag.triggers, "tags": tags, **ends}
    return {"type": "structural_tag", "format": form}


def _with_a_call(tag: Any) -> Any:
    """A structural tag that allows no answer without a call, as SGLang's for gpt-oss does."""
    form = tag.format.content if tag.format.type == "optional" else tag.format
    if form.type == "tags_with_separator":
        form = form.model_copy(update={"at_least_one": True})
    return tag.model_copy(update={"format": form})


NO_PARSERS = Parsers()
