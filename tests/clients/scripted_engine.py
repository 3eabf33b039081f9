"""An engine that answers as a well-behaved model would, from what it reads: for tests of real client libraries."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from presift.core.answer import AnswerDelta, AnswerFormat, Finished, ParsedText, TokenLogprob, ToolChoice
from presift.core.generation import FinishReason, GrammarKind, Sampling
from presift.core.plan import ModelInfo
from presift.core.stop_strings import StopStrings
from presift.target.engine import Event, GenerateRequest
from presift.target.sglang.answer_parser import AnswerParser, ParserNames, joined
from presift.target.sglang.tools import tools_of

from ..echo_engine import EchoEngine

# A prompt that holds SAY followed by a JSON string is answered with that string.
SAY = "Reply with exactly "
NAMES = ParserNames(tool_calls="qwen25", reasoning="qwen3")
# What a property of this name gets, in the arguments of a call and in a JSON answer.
VALUES: dict[str, Any] = {"a": 2, "b": 3, "city": "Paris", "name": "Ada", "age": 36}
_TURN = "<|im_start|>"
_NO_TOOL = '{"type": "function", "function": {"name": "none"}}'
# Some agents send results as text of the user.
_RESULT = re.compile(
    r"<tool_response>\n?(.*?)\n?</tool_response>|^Observation:\n?(.*?)<\|im_end\|>", re.DOTALL | re.MULTILINE
)
_FINAL = re.compile(r"final|response|output|answer", re.IGNORECASE)
_THINKING = "<think>\nIt is simple.\n</think>\n\n"


class ScriptedEngine(EchoEngine):
    """Reads a prompt in Qwen's chat format, and answers with the first of these that applies:

    - the text that the prompt dictates with SAY;
    - a call of a tool, if tools are offered and no result has come yet or a call is forced: of the named one, else of
      the first that is no "final answer" until a result has come, then of one that is;
    - a JSON value that the schema allows (`instance_of`), if there is one;
    - "The tool said RESULT.", if the last message is a tool's result;
    - "Hello there."

    Tokens are those of a real tokenizer; calls and reasoning are separated by SGLang's parsers, as the target does it.
    A prompt with the word THINK is answered with reasoning first. The KV that it holds is counted as EchoEngine does.
    """

    def __init__(self, tokenizer: Tokenizer, model: ModelInfo, eos_token_id: int) -> None:
        super().__init__(model=model, eos_token_id=eos_token_id)
        self._tokenizer = tokenizer
        parsers = {"tool_call_parser": NAMES.tool_calls, "reasoning_parser": NAMES.reasoning}
        self._info = replace(self._info, name="scripted 1", grammars=True, **parsers)
        # SGLang's parsers are loaded with the first request that needs them, which takes seconds.
        wanted = AnswerFormat((_NO_TOOL,), separate_reasoning=True)
        AnswerParser(wanted, NAMES, tools=tools_of(wanted))

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        sampling, prompt = request.sampling, request.token_ids.tolist()
        read = self._read(request, prompt)
        text = self._text(self._tokenizer.decode(prompt, skip_special_tokens=False), request)
        parts = None if request.format is None else _Parts(request.format, sampling.stop)
        answer: list[int] = []
        before, reason = "", None
        for token_id in self._tokens(text, sampling):
            await self._wait()
            answer.append(token_id)
            is_stop = self._is_stop_token(token_id, sampling)
            after = before if is_stop else self._tokenizer.decode(answer)
            matched = next((stop for stop in sampling.stop if stop in after), None)
            reason = _reason(is_stop or matched is not None, len(answer), sampling)
            parsed = parts and parts.read(after[len(before) :], is_last=reason is not None)
            if not is_stop:
                yield AnswerDelta((token_id,), _logprobs(token_id, sampling), parsed)
            elif parsed is not None:
                yield AnswerDelta((), (), parsed)
            if reason is not None:
                break
            before = after
        if parts is not None and parts.has_calls and reason is FinishReason.STOP:
            reason = FinishReason.TOOL_CALLS
        logprobs = _prompt_logprobs(prompt, sampling)
        reason = reason or FinishReason.STOP
        yield Finished(
            len(prompt), completion_tokens=len(answer), finish_reason=reason, prompt_logprobs=logprobs, **read
        )

    def _tokens(self, text: str, sampling: Sampling) -> Iterator[int]:
        """The text and the end of the answer, again and again if that must not end it."""
        ids = [*self._tokenizer.encode(text, add_special_tokens=False).ids, self._eos_token_id]
        yield from ids
        while sampling.ignore_eos:
            yield from ids

    def _text(self, prompt: str, request: GenerateRequest) -> str:
        thinking = _THINKING if "THINK" in prompt else ""
        return thinking + _answer_to(prompt, request.format, request.sampling)


class _Parts:
    """The parts of an answer, up to the stop string that ends it."""

    def __init__(self, wanted: AnswerFormat, stop: tuple[str, ...]) -> None:
        self._parser, self._stop = AnswerParser(wanted, NAMES, tools=tools_of(wanted)), StopStrings(stop)

    @property
    def has_calls(self) -> bool:
        return self._parser.has_calls

    def read(self, piece: str, *, is_last: bool) -> ParsedText:
        """What a piece of text adds."""
        if not is_last:
            return self._parser.push(self._stop.push(piece))
        return joined([self._parser.push(self._stop.push(piece) + self._stop.finish()), self._parser.finish()])


def _reason(stops: bool, tokens: int, sampling: Sampling) -> FinishReason | None:
    if stops:
        return FinishReason.STOP
    return FinishReason.LENGTH if tokens == sampling.max_new_tokens else None


def _answer_to(prompt: str, wanted: AnswerFormat | None, sampling: Sampling) -> str:
    if SAY in prompt:
        text, _ = json.JSONDecoder().raw_decode(prompt.rpartition(SAY)[2])
        return str(text)
    results = _results(prompt)
    tools = [_function(json.loads(text)) for text in wanted.tools_json] if wanted is not None else []
    tool = _tool(tools, wanted, has_result=bool(results))
    if tool is not None and wanted is not None:
        call = {"name": tool["name"], "arguments": instance_of(tool.get("parameters") or {}, results)}
        return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
    if sampling.grammar is not None:
        return _in_grammar(sampling.grammar.kind, sampling.grammar.text, results)
    return f"The tool said {results[-1]}." if results else "Hello there."


def _results(prompt: str) -> list[str]:
    """The results of tools in the messages since the last answer."""
    *earlier, since, _ = ["", *prompt.split(f"{_TURN}assistant\n")]
    return [one or other for one, other in _RESULT.findall(since)] if earlier[1:] else []


def _function(definition: dict[str, Any]) -> dict[str, Any]:
    function: dict[str, Any] = definition.get("function", definition)
    return function


def _tool(tools: list[dict[str, Any]], wanted: AnswerFormat | None, *, has_result: bool) -> dict[str, Any] | None:
    if not tools or wanted is None:
        return None
    if wanted.tool_choice is ToolChoice.FUNCTION:
        return next(tool for tool in tools if tool["name"] == wanted.function)
    final = [tool for tool in tools if _FINAL.search(tool["name"])]
    others = [tool for tool in tools if tool not in final]
    if not has_result:
        return (others or final)[0]
    if final:
        return final[0]
    return tools[0] if wanted.forces_call else None


def _in_grammar(kind: GrammarKind, grammar: str, results: list[str]) -> str:
    if kind is GrammarKind.JSON_SCHEMA:
        return json.dumps(instance_of(json.loads(grammar), results))
    return "yes" if kind is GrammarKind.REGEX else "[]"


def instance_of(schema: dict[str, Any], results: Sequence[str] = (), root: dict[str, Any] | None = None) -> Any:
    """A value that a schema allows: VALUES by the name of the property, else the simplest.

    A text without a value of its own is the last of `results`.
    """
    root = schema if root is None else root
    schema = _simplified(schema, root)
    for exact in ("const", "default"):
        if exact in schema:
            return schema[exact]
    if "enum" in schema:
        return schema["enum"][0]
    if "properties" in schema:
        return {name: _property(name, each, results, root) for name, each in schema["properties"].items()}
    if schema.get("type") == "array":
        return [instance_of(schema.get("items", {}), results, root)] * schema.get("minItems", 1)
    simple = {"object": {}, "integer": 1, "number": 1.5, "boolean": True, "null": None}
    return simple.get(str(schema.get("type")), results[-1] if results else "text")


def _simplified(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Without references and alternatives: the first of each."""
    if "$ref" in schema:
        return _simplified(_resolved(schema["$ref"], root), root)
    several = next((schema[name] for name in ("anyOf", "oneOf", "allOf") if name in schema), None)
    if several is not None:
        return _simplified(several[0], root)
    kind = schema.get("type")
    return schema | {"type": kind[0]} if isinstance(kind, list) else schema


def _property(name: str, schema: dict[str, Any], results: Sequence[str], root: dict[str, Any]) -> Any:
    value = VALUES.get(name)
    kinds = {"string": str, "integer": int, "number": int}
    fits = isinstance(value, kinds.get(str(schema.get("type")), ())) and "enum" not in schema
    return value if fits else instance_of(schema, results, root)


def _resolved(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/") if reference != "#" else []:
        found = found[step]
    return dict(found)


def _logprobs(token_id: int, sampling: Sampling) -> tuple[TokenLogprob, ...]:
    """Token t has the log probability -0.25; the others at its place are the tokens after it."""
    count = sampling.top_logprobs
    if count is None:
        return ()
    top = tuple((token_id + place, -0.25 - place) for place in range(count))
    return (TokenLogprob(token_id, -0.25, top),)


def _prompt_logprobs(prompt: list[int], sampling: Sampling) -> tuple[TokenLogprob, ...]:
    if not sampling.prompt_logprobs:
        return ()
    return (TokenLogprob(prompt[0], None), *(each for token in prompt[1:] for each in _logprobs(token, sampling)))
