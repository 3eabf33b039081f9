"""The tables of limits: every row rejects one more than its number, names its field, and is in the protos' comments."""

import re
from pathlib import Path

import pytest

from presift.core import limits
from presift.core.errors import InvalidRequest, PromptTooLong
from presift.core.limits import SAMPLING, check_limits
from presift.core.plan import ModelInfo
from presift.draft import limits as draft_limits
from presift.draft import request as draft_request
from presift.orchestrator.api.grpc.requests import explain_request_from_wire, request_from_wire
from presift.orchestrator.domain import limits as orchestrator_limits
from presift.orchestrator.domain.caller import Caller
from presift.rpc.limits import MAX_METADATA_BYTES
from presift.target import limits as target_limits
from presift.target.servicer import request_from_wire as target_request_from_wire
from presift.v1 import draft_pb2, orchestrator_pb2, plan_pb2, target_pb2

PROMPT = (
    *orchestrator_limits.TOKEN_IDS,
    *orchestrator_limits.SPANS,
    *orchestrator_limits.TEXT,
    *orchestrator_limits.CHAT,
)
PROTOS = Path(__file__).parents[3] / "protos" / "presift" / "v1"
DRAFT = draft_request.RequestLimits(
    ModelInfo("m", "r", "", context_tokens=100, layers=4, kv_heads=2, vocabulary_size=512), 16
)


def spans(count):
    return [plan_pb2.Span(start=0, end=1)] * count


def prompt(**values):
    return {"prompt": orchestrator_pb2.Prompt(**values)}


def chat(**values):
    return prompt(chat=orchestrator_pb2.Chat(**values))


def message(parts, text=""):
    return orchestrator_pb2.Message(role="user", parts=[orchestrator_pb2.TextPart(text=text)] * parts)


CALLS = "prompt.chat.messages.tool_calls_json"


def called(**values):
    return orchestrator_pb2.Message(role="assistant", **values)


def sampling(**values):
    return {"sampling": target_pb2.Sampling(**values)}


def answer_format(**values):
    return {"format": target_pb2.AnswerFormat(**values)}


def kv_plan(**values):
    return {"kv_plan": target_pb2.KvPlan(policy=plan_pb2.SpecKv(capacity=99), **values)}


# (field, unit) -> the fields of a message that holds so many
PROMPTS = {
    ("prompt.token_ids", "tokens"): lambda n: prompt(token_ids=orchestrator_pb2.TokenIds(ids=[1] * n)),
    ("prompt.protected_spans", "spans"): lambda n: prompt(
        token_ids=orchestrator_pb2.TokenIds(ids=[1]), protected_spans=spans(n)
    ),
    ("prompt.text", "characters"): lambda n: prompt(text="x" * n),
    ("prompt.chat.messages", "messages"): lambda n: chat(messages=[message(1)] * n),
    ("prompt.chat.messages.parts", "parts"): lambda n: chat(messages=[message(n - 1), message(1)]),
    ("prompt.chat", "characters"): lambda n: chat(messages=[message(1, "x" * (n - 4))]),
    ("prompt.chat.tools_json", "tools"): lambda n: chat(messages=[message(1)], tools_json=["{}"] * n),
    ("prompt.chat.tools_json", "characters"): lambda n: chat(messages=[message(1)], tools_json=["x" * n]),
    ("prompt.chat.template_kwargs_json", "characters"): lambda n: chat(
        messages=[message(1)], template_kwargs_json="x" * n
    ),
    (CALLS, "calls"): lambda n: chat(messages=[called(tool_calls_json=["{}"] * n)]),
    (CALLS, "characters"): lambda n: chat(messages=[called(tool_calls_json=["x" * (n // 2), "x" * (n - n // 2)])]),
}
SAMPLINGS = {
    ("sampling.stop", "strings"): lambda n: sampling(stop=["x"] * n),
    ("sampling.stop", "characters"): lambda n: sampling(stop=["a", "x" * n]),
    ("sampling.stop_token_ids", "token ids"): lambda n: sampling(stop_token_ids=[1] * n),
    ("sampling.logit_bias", "token ids"): lambda n: sampling(logit_bias=dict.fromkeys(range(n), 1.0)),
}
PREFILLS = {
    ("token_ids", "tokens"): lambda n: {"token_ids": [1] * n},
    ("cache_salt", "characters"): lambda n: {"cache_salt": "x" * n},
}
FORMATS = {
    ("format.tools_json", "tools"): lambda n: answer_format(tools_json=["{}"] * n),
    ("format.tools_json", "characters"): lambda n: answer_format(tools_json=["x" * n]),
    ("format.template_kwargs_json", "characters"): lambda n: answer_format(template_kwargs_json="x" * n),
}
PLANS = {
    ("kv_plan.protected_spans", "spans"): lambda n: kv_plan(protected_spans=spans(n)),
    ("kv_plan.lookahead_token_ids", "token ids"): lambda n: kv_plan(lookahead_token_ids=[1] * n),
    ("kv_plan.kv_mask.kept", "bytes"): lambda n: kv_plan(
        kv_mask=plan_pb2.KvMask(layers=1, kv_heads=1, prompt_tokens=8 * n, kept=bytes(n))
    ),
}
SCORES = {
    ("token_ids", "tokens"): lambda n: {"token_ids": [1] * n},
    ("protected_spans", "spans"): lambda n: {"protected_spans": spans(n)},
    ("cache_salt", "characters"): lambda n: {"cache_salt": "x" * n},
}
METHODS = {
    "Generate": (
        (*PROMPT, *SAMPLING),
        PROMPTS | SAMPLINGS,
        lambda values: request_from_wire(orchestrator_pb2.GenerateRequest(**prompt(text="x") | values), Caller(), ""),
    ),
    "Explain": (
        PROMPT,
        PROMPTS,
        lambda values: explain_request_from_wire(
            orchestrator_pb2.ExplainRequest(**prompt(text="x") | values), Caller(), ""
        ),
    ),
    "Score": (
        draft_limits.SCORE,
        SCORES,
        lambda values: draft_request.parse(draft_pb2.ScoreRequest(**{"token_ids": [1]} | values), DRAFT),
    ),
    "target's Generate": (
        target_limits.GENERATE,
        PREFILLS | SAMPLINGS | PLANS | FORMATS,
        lambda values: target_request_from_wire(target_pb2.TargetServiceGenerateRequest(**{"token_ids": [1]} | values)),
    ),
    "target's Prefill": (
        target_limits.PREFILL,
        PREFILLS,
        lambda values: check_limits(target_pb2.PrefillRequest(**values), target_limits.PREFILL),
    ),
}
ROWS = [(method, row) for method, (table, _, _) in METHODS.items() for row in table]


@pytest.mark.parametrize(("method", "row"), ROWS, ids=[f"{method} {row.field} {row.unit}" for method, row in ROWS])
def test_one_more_than_the_limit_is_rejected_by_name(method, row):
    _, makers, read = METHODS[method]
    make = makers[row.field, row.unit]
    with pytest.raises(InvalidRequest) as refused:
        read(make(row.most + 1))
    assert (refused.value.field, refused.value.limit) == (row.field, f"at most {row.most}")
    assert refused.value.value == f"{row.most + 1} {row.unit}"


@pytest.mark.parametrize("method", METHODS)
def test_every_row_has_a_case_and_every_case_a_row(method):
    table, makers, _ = METHODS[method]
    assert {(row.field, row.unit) for row in table} == makers.keys()


# The others need much memory for the same comparison.
SMALL = [(method, row) for method, row in ROWS if row.field != "kv_plan.kv_mask.kept" and row.most <= 2**20]


@pytest.mark.parametrize(("method", "row"), SMALL, ids=[f"{method} {row.field} {row.unit}" for method, row in SMALL])
def test_the_limit_itself_is_accepted(method, row):
    _, makers, read = METHODS[method]
    try:
        read(makers[row.field, row.unit](row.most))
    except InvalidRequest as error:  # of another check, such as the model's context
        assert error.field != row.field or error.limit != f"at most {row.most}"


@pytest.mark.parametrize("kind", ["json_schema", "regex", "ebnf", "structural_tag"])
def test_the_length_of_a_grammar(kind):
    most = limits.MAX_GRAMMAR_CHARACTERS
    longest = '{"x": "%s"}' % ("x" * (most - 9))
    for _, _, read in (METHODS["Generate"], METHODS["target's Generate"]):
        read(sampling(**{kind: longest}))
        with pytest.raises(InvalidRequest) as refused:
            read(sampling(**{kind: f"{longest} "}))
        assert (refused.value.field, refused.value.limit) == (f"sampling.{kind}", f"at most {most}")


def test_a_text_of_too_many_tokens():
    orchestrator_limits.check_tokens(limits.MAX_PROMPT_TOKENS)
    with pytest.raises(PromptTooLong, match="prompt is"):
        orchestrator_limits.check_tokens(limits.MAX_PROMPT_TOKENS + 1)


DOCUMENTED = {
    "orchestrator.proto": (*PROMPT, orchestrator_limits.MAX_EXPLAINED_SPANS, MAX_METADATA_BYTES),
    "draft.proto": draft_limits.SCORE,
    "target.proto": (*target_limits.GENERATE, limits.MAX_GRAMMAR_CHARACTERS),
    "plan.proto": (draft_limits.MAX_WIDTH_TOKENS,),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_protos_document_the_limits(name):
    comments = " ".join(re.findall(r"//(.*)", (PROTOS / name).read_text()))
    for row in DOCUMENTED[name]:
        most = row if isinstance(row, int) else row.most
        assert re.search(rf"\b{most:,}\b", comments), f"{name} does not document {row}"
