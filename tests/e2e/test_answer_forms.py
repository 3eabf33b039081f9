"""Grammars, tool calls, log probabilities and penalties on a real engine, with all KV and with a KV plan."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from presift.core.answer import AnswerDelta, AnswerFormat, Finished, ParsedText, TokenLogprob, ToolChoice
from presift.core.errors import InvalidRequest
from presift.core.generation import FinishReason, Grammar, GrammarKind, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.target.engine import GenerateRequest
from presift.target.sglang.answer_parser import joined

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang"),
]

PROMPT = [token % 90 + 5 for token in range(150)]
KEEP_ALL, DROP = 149, 64
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "new": {"type": "boolean"}},
    "required": ["size", "new"],
    "additionalProperties": False,
}
TAG = {
    "structures": [{"begin": "<f>", "schema": {"enum": ["x", "y"]}, "end": "</f>"}],
    "triggers": ["<f>"],
    "type": "structural_tag",
    "at_least_one": True,
}
GRAMMARS = {
    GrammarKind.JSON_SCHEMA: (json.dumps(SCHEMA), r'\{"size":"(small|large)","new":(true|false)\}'),
    GrammarKind.REGEX: ("(ab|cd){3}", "(ab|cd){3}"),
    GrammarKind.EBNF: ('root ::= "yes" | "no"', "yes|no"),
    GrammarKind.STRUCTURAL_TAG: (json.dumps(TAG), '(?s)<f>"[xy]"</f>.*'),
}
BROKEN = {
    GrammarKind.JSON_SCHEMA: '{"type": 5}',
    GrammarKind.REGEX: "(",
    GrammarKind.EBNF: "root ::= other",
    GrammarKind.STRUCTURAL_TAG: "{}",
}


def tool(name: str, **others: Any) -> str:
    schema = {"properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
    function = {"name": name, "parameters": {"type": "object", **schema}, "strict": True} | others
    return json.dumps({"type": "function", "function": function})


TOOLS = (tool("weather"), tool("time"))


@dataclass
class Answer:
    tokens: list[int]
    logprobs: list[TokenLogprob]
    parsed: ParsedText
    end: Finished

    @property
    def calls(self) -> list[tuple[str, Any]]:
        names = {delta.index: delta.name for delta in self.parsed.tool_calls if delta.id}
        texts = dict.fromkeys(names, "")
        for delta in self.parsed.tool_calls:
            texts[delta.index] += delta.arguments
        return [(names[index], json.loads(texts[index])) for index in names]


@dataclass
class Model:
    driver: Any
    spaces: dict[int, float]

    async def answer(self, capacity: int | None = None, wanted: AnswerFormat | None = None, **sampling: Any) -> Answer:
        plan = None if capacity is None else KvPlan(SpecKv(capacity=capacity, window=16), lookahead_token_ids=(3, 1))
        # Without it a random model fills JSON with white space.
        values = {"max_new_tokens": 96, "logit_bias": self.spaces} | sampling
        request = GenerateRequest(np.array(PROMPT, dtype=np.uint32), Sampling(**values), "", plan, wanted)
        deltas: list[AnswerDelta] = []
        async with aclosing(self.driver.engine.generate(request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    return Answer(
                        [token for delta in deltas for token in delta.token_ids],
                        [each for delta in deltas for each in delta.logprobs],
                        joined(delta.parsed for delta in deltas if delta.parsed is not None),
                        event,
                    )
                deltas.append(event)
        raise AssertionError("the stream has no end")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def model(start: Any) -> AsyncIterator[Model]:
    driver = await start("tinyc")
    encode = driver.engine._parsers.tokenizer.encode
    yield Model(driver, {encode(space)[0]: -100.0 for space in " \n\t\r"})
    await driver.empty()


ROUTES = pytest.mark.parametrize("capacity", [None, DROP], ids=["full", "spec_kv"])


async def test_the_engine_says_what_it_can_do(model: Model) -> None:
    info = model.driver.engine.info
    # SGLang does not know the template; a call that it renders is read by the parser of Qwen's models.
    assert (info.tool_call_parser, info.reasoning_parser, info.grammars) == ("qwen", "", True)
    assert info.max_running == 16


@ROUTES
@pytest.mark.parametrize("kind", GRAMMARS)
async def test_an_answer_follows_its_grammar(model: Model, capacity: int | None, kind: GrammarKind) -> None:
    import re

    text, pattern = GRAMMARS[kind]
    answer = await model.answer(capacity, AnswerFormat(TOOLS), grammar=Grammar(kind, text))
    assert re.fullmatch(pattern, answer.parsed.content)
    assert answer.end.kv_tokens == (len(PROMPT) if capacity is None else DROP + 1)


@ROUTES
@pytest.mark.parametrize("kind", BROKEN)
async def test_a_grammar_that_cannot_be_compiled_is_refused(
    model: Model, capacity: int | None, kind: GrammarKind
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await model.answer(capacity, grammar=Grammar(kind, BROKEN[kind]))
    assert refusal.value.field == f"sampling.{kind}"
    await model.driver.idle()


@ROUTES
@pytest.mark.parametrize("single", [True, False])
async def test_a_forced_call_is_made(model: Model, capacity: int | None, single: bool) -> None:
    wanted = AnswerFormat(TOOLS, ToolChoice.REQUIRED, single_call=single)
    answer = await model.answer(capacity, wanted, max_new_tokens=96)
    name, arguments = answer.calls[0]
    assert name in {"weather", "time"}
    assert arguments["city"] in {"Paris", "Rome"}
    if single:
        assert (len(answer.calls), answer.end.finish_reason) == (1, FinishReason.TOOL_CALLS)


@ROUTES
async def test_a_named_function_is_called(model: Model, capacity: int | None) -> None:
    wanted = AnswerFormat(TOOLS, ToolChoice.FUNCTION, "time", single_call=True)
    answer = await model.answer(capacity, wanted)
    assert [name for name, _ in answer.calls] == ["time"]
    assert (answer.parsed.content.strip(), answer.end.finish_reason) == ("", FinishReason.TOOL_CALLS)


async def test_a_forced_call_and_a_grammar_exclude_each_other(model: Model) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        wanted = AnswerFormat(TOOLS, ToolChoice.REQUIRED)
        await model.answer(None, wanted, grammar=Grammar(GrammarKind.REGEX, "a"))
    assert refusal.value.field == "tool_choice"


@ROUTES
async def test_each_token_has_its_log_probability(model: Model, capacity: int | None) -> None:
    answer = await model.answer(capacity, max_new_tokens=6, ignore_eos=True, top_logprobs=3)
    assert [each.token_id for each in answer.logprobs] == answer.tokens
    for each in answer.logprobs:
        assert each.top[0] == (each.token_id, each.logprob)
        assert len(each.top) == 3
    assert (await model.answer(capacity, max_new_tokens=6, ignore_eos=True)).logprobs == []


async def test_the_prompt_has_log_probabilities(model: Model) -> None:
    answer = await model.answer(max_new_tokens=1, top_logprobs=1, prompt_logprobs=True)
    found = answer.end.prompt_logprobs
    assert [each.token_id for each in found] == PROMPT
    assert found[0].logprob is None
    assert all(each.logprob is not None and each.logprob < 0 for each in found[1:])


SAMPLING: dict[str, dict[str, Any]] = {
    "presence_penalty": {"presence_penalty": 2.0},
    "frequency_penalty": {"frequency_penalty": 2.0},
    "repetition_penalty": {"repetition_penalty": 2.0},
    "logit_bias": {"logit_bias": {70: 4.0}},
    "min_new_tokens": {"min_new_tokens": 40, "ignore_eos": False},
    "all": {
        "presence_penalty": 1.0,
        "frequency_penalty": 1.0,
        "repetition_penalty": 1.2,
        "min_new_tokens": 40,
        "min_p": 0.05,
        "temperature": 1.0,
        "seed": 7,
        "top_k": 50,
        "logit_bias": {70: 2.0},
    },
}


@pytest.mark.parametrize("name", SAMPLING)
async def test_what_changes_an_answer_changes_it_alike_with_a_plan(model: Model, name: str) -> None:
    common: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "logit_bias": {}}
    plain = await model.answer(**common)
    # The second one reads its last token on cached KV, as a request with a plan does: the same arithmetic.
    await model.answer(**common | SAMPLING[name])
    changed = await model.answer(**common | SAMPLING[name])
    planned = await model.answer(KEEP_ALL, **common | SAMPLING[name])
    assert planned.tokens == changed.tokens
    assert len(planned.tokens) == 40
    assert name == "min_new_tokens" or changed.tokens != plain.tokens
