"""What a request wants of its answer is refused before any work if the engine does not have it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from presift.core.answer import AnswerFormat, ToolChoice
from presift.core.errors import InvalidRequest
from presift.core.generation import Grammar, GrammarKind, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.plan import ModelInfo, Route
from presift.core.policies import SpecKv
from presift.target.admission import check_fits
from presift.target.engine import EngineInfo, GenerateRequest

MODEL = ModelInfo("m", "1", "", context_tokens=1000, layers=3, kv_heads=2, vocabulary_size=64)
NOTHING = EngineInfo("e", MODEL, tuple(Route), can_stop_at_strings=False)
ALL = EngineInfo("e", MODEL, tuple(Route), True, tool_call_parser="qwen", reasoning_parser="qwen3", grammars=True)
TOOLS = ('{"type": "function", "function": {"name": "f"}}',)
PLAN = KvPlan(SpecKv(capacity=8, window=3), lookahead_token_ids=(4, 5))


def request(wanted: AnswerFormat | None = None, plan: KvPlan | None = None, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(np.arange(20, dtype=np.uint32), Sampling(**sampling), "", plan, wanted)


def grammar(kind: GrammarKind, text: str) -> GenerateRequest:
    return request(grammar=Grammar(kind, text))


WITHOUT: dict[str, tuple[GenerateRequest, EngineInfo]] = {
    "sampling.regex": (grammar(GrammarKind.REGEX, "a"), NOTHING),
    "tool_choice": (request(AnswerFormat(TOOLS, ToolChoice.REQUIRED)), NOTHING),
    "format.tools_json": (request(AnswerFormat(TOOLS)), NOTHING),
    "format.separate_reasoning": (request(AnswerFormat(separate_reasoning=True)), NOTHING),
    "sampling.min_new_tokens": (request(min_new_tokens=2), NOTHING),
    "sampling.logit_bias": (request(logit_bias={64: 1.0}), ALL),
    "sampling.prompt_logprobs": (request(plan=PLAN, top_logprobs=1, prompt_logprobs=True), ALL),
}


@pytest.mark.parametrize("field", WITHOUT)
def test_what_the_engine_cannot_do_is_refused_by_name(field: str) -> None:
    wanted, info = WITHOUT[field]
    with pytest.raises(InvalidRequest) as refusal:
        check_fits(wanted, info)
    assert refusal.value.field == field
    assert all(refusal.value.details.values())


def test_an_engine_that_has_everything_takes_everything() -> None:
    for wanted in (AnswerFormat(TOOLS), AnswerFormat(TOOLS, ToolChoice.REQUIRED, separate_reasoning=True)):
        check_fits(request(wanted, PLAN, grammar=Grammar(GrammarKind.JSON_SCHEMA, "{}"), min_new_tokens=2), ALL)
    check_fits(request(top_logprobs=1, prompt_logprobs=True, logit_bias={63: 1.0}), ALL)


def test_a_forced_call_needs_no_parser_because_its_grammar_makes_json() -> None:
    check_fits(request(AnswerFormat(TOOLS, ToolChoice.REQUIRED)), replace(ALL, tool_call_parser=""))


@pytest.mark.parametrize(("kind", "text"), [("json_schema", "{"), ("structural_tag", "[]"), ("ebnf", " ")])
def test_a_grammar_that_cannot_be_one_is_refused_when_the_request_is_made(kind: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        grammar(GrammarKind(kind), text)
    assert refusal.value.field == f"sampling.{kind}"
