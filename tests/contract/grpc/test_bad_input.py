"""Invalid requests: the right status with reason, field, value and limit; and the next request is answered."""

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2

from ..fakes.services import CONTEXT, VOCABULARY
from ..fakes.stack import ALL_ROUTES, WINDOW, Answer, Refusal, refusal_of, request, wire_prompt

LONG = list(range(100, 200))
# 100, or what --hypothesis-profile says.
EXAMPLES = settings().max_examples
INVALID = ("INVALID_ARGUMENT", "INVALID_REQUEST")
TOO_LONG = ("INVALID_ARGUMENT", "PROMPT_TOO_LONG")
UNSUPPORTED = ("FAILED_PRECONDITION", "ROUTE_UNSUPPORTED")


def chat(*roles, tools=()):
    messages = [orchestrator_pb2.Message(role=role, parts=[orchestrator_pb2.TextPart(text="hi")]) for role in roles]
    return orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=messages, tools_json=tools))


def turn(role, **given):
    return orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=[orchestrator_pb2.Message(role=role, **given)]))


CALLS = "prompt.chat.messages[0].tool_calls_json"
BAD = {
    "call without a name": (
        {"prompt": turn("assistant", tool_calls_json=["{}"])},
        INVALID,
        f"{CALLS}[0]",
        "a call without a name",
        "name",
    ),
    "call of a user": (
        {"prompt": turn("user", tool_calls_json=["{}"])},
        INVALID,
        CALLS,
        "set on role user",
        "unset unless",
    ),
    "call that the template does not write": (
        {"prompt": turn("assistant", tool_calls_json=['{"name": "f"}'])},
        INVALID,
        CALLS,
        "1 given",
        "does not support tool calls",
    ),
    "document that may not be dropped": (
        {"prompt": turn("user", parts=[orchestrator_pb2.TextPart(text="x", document=True, protected=True)])},
        INVALID,
        "prompt.chat.messages[0].parts[0]",
        "document and protected",
        "one of them",
    ),
    "no prompt": ({"prompt": orchestrator_pb2.Prompt()}, INVALID, "prompt", "unset", ""),
    "no token": ({"prompt": []}, INVALID, "prompt.token_ids", "empty", "at least one token"),
    "no text": ({"prompt": ""}, INVALID, "prompt.text", "empty", "at least one character"),
    "no message": ({"prompt": chat()}, INVALID, "prompt.chat.messages", "empty", "at least one message"),
    "unknown role": ({"prompt": chat("user", "wizard")}, INVALID, "prompt.chat.messages[1].role", "'wizard'", "system"),
    "tool no JSON": ({"prompt": chat("user", tools=["{"])}, INVALID, "prompt.chat.tools_json[0]", "not JSON", "object"),
    "tool no object": (
        {"prompt": chat("user", tools=["{}", "[]"])},
        INVALID,
        "prompt.chat.tools_json[1]",
        "",
        "object",
    ),
    "tool too deep": (
        {"prompt": chat("user", tools=["[" * 100_000])},
        INVALID,
        "prompt.chat.tools_json[0]",
        "not JSON",
        "object",
    ),
    "first id out of range": (
        {"prompt": [1, VOCABULARY, 2]},
        INVALID,
        "prompt.token_ids",
        str(VOCABULARY),
        f"< {VOCABULARY}",
    ),
    "highest id": ({"prompt": [2**32 - 1]}, INVALID, "prompt.token_ids", str(2**32 - 1), f"< {VOCABULARY}"),
    "empty span": ({"prompt": LONG, "spans": [(5, 5)]}, INVALID, "protected_spans", "[5, 5)", "start < end"),
    "reversed span": ({"prompt": LONG, "spans": [(9, 5)]}, INVALID, "protected_spans", "[9, 5)", "start < end"),
    "span past the end": ({"prompt": LONG, "spans": [(99, 101)]}, INVALID, "protected_spans", "[99, 101)", "100"),
    "spans on text": ({"prompt": "hi", "spans": [(0, 1)]}, INVALID, "prompt.protected_spans", "text", "token_ids"),
    "capacity below window": (
        {"prompt": LONG, "budget": {"max_prompt_tokens": WINDOW - 1}},
        INVALID,
        "budget",
        str(WINDOW - 1),
        f">= {WINDOW}",
    ),
    "budget of 0": (
        {"prompt": LONG, "budget": {"max_prompt_tokens": 0}},
        INVALID,
        "budget.max_prompt_tokens",
        "0",
        "1",
    ),
    "KV of 0": ({"prompt": LONG, "budget": {"max_kv_tokens": 0}}, INVALID, "budget.max_kv_tokens", "0", ">= 1"),
    "no new token": ({"prompt": LONG, "max_new_tokens": 0}, INVALID, "sampling.max_new_tokens", "0", ">= 1"),
    "an answer of at least the context": (
        {"prompt": [1], "max_new_tokens": CONTEXT, "sampling": {"min_new_tokens": CONTEXT}},
        INVALID,
        "sampling.min_new_tokens",
        str(CONTEXT),
        f"{CONTEXT - 1}",
    ),
    "prompt over the context": (
        {"prompt": [1] * CONTEXT, "route": plan_pb2.ROUTE_FULL},
        TOO_LONG,
        "prompt",
        f"{CONTEXT} tokens",
        f"<= {CONTEXT - 1} (context {CONTEXT} less 1 for the answer)",
    ),
    "no room for the window": (
        {"prompt": LONG, "max_new_tokens": CONTEXT - 3, "sampling": {"min_new_tokens": CONTEXT - 3}},
        TOO_LONG,
        "prompt",
        "100 tokens",
        "<= 3",
    ),
    "unknown route": ({"prompt": LONG, "route": 77}, INVALID, "route", "77", "ROUTE_SPEC_PC"),
    "negative route": ({"prompt": LONG, "route": -1}, INVALID, "route", "-1", "ROUTE_SPEC_PC"),
    "spec_kv": ({"prompt": LONG, "route": plan_pb2.ROUTE_SPEC_KV}, UNSUPPORTED, "route", "spec_kv", "full, spec_pc"),
    "spec_kv_pc": ({"prompt": LONG, "route": plan_pb2.ROUTE_SPEC_KV_PC}, UNSUPPORTED, "route", "spec_kv_pc", "full"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
async def test_bad_input(stack, case):
    asked, status, field, value, limit = case
    refusal = await stack.refused(**asked)
    assert (refusal.code, refusal.reason) == status
    assert refusal.field == field and value in refusal.value and limit in refusal.limit
    assert field in refusal.message or refusal.reason == "ROUTE_UNSUPPORTED"
    assert stack.target.calls == []
    assert (await stack.ask([1, 2])).token_ids == [2, 1]


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({"prompt": wire_prompt([])}, INVALID, "prompt.token_ids"),
        ({"prompt": wire_prompt(LONG), "route": 77}, INVALID, "route"),
    ],
)
async def test_explain_rejects_the_same(stack, asked, status, field):
    refusal = await refusal_of(stack.stub.Explain(orchestrator_pb2.ExplainRequest(**asked)))
    assert (refusal.code, refusal.reason, refusal.field) == (*status, field)


async def test_route_that_the_engine_does_not_serve(open_stack):
    stack = await open_stack(routes=(plan_pb2.ROUTE_FULL,))
    refusal = await stack.refused(LONG, route=plan_pb2.ROUTE_SPEC_PC)
    assert (refusal.code, refusal.reason, refusal.limit) == (*UNSUPPORTED, "one of full")
    answer = await stack.ask(LONG)
    assert (answer.route, answer.reason) == ("FULL", "WITHIN_BUDGET")


async def test_message_over_the_limit(open_stack):
    stack = await open_stack(message_bytes=100_000)
    refusal = await stack.refused("x" * 200_000)
    assert refusal.code == "RESOURCE_EXHAUSTED" and "100000" in refusal.message
    assert (await stack.ask([1, 2])).token_ids == [2, 1]


async def send(stack, raw, method="Generate"):
    """The service's answer to exactly these bytes, or its error."""
    call = stack.channel.unary_stream(
        f"/presift.v1.OrchestratorService/{method}",
        request_serializer=bytes,
        response_deserializer=orchestrator_pb2.GenerateResponse.FromString,
    )
    try:
        return Answer.of([event async for event in call(raw)])
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)


def field(number, payload):
    return bytes([number << 3 | 2, len(payload)]) + payload


NOT_UTF8 = {
    "text": field(1, field(1, b"caf\xe9")),
    "role": field(1, field(2, field(1, field(1, b"\xff")))),
    "part": field(1, field(2, field(1, field(2, field(1, b"\xc3"))))),
    "stop string": field(1, field(1, b"hi")) + field(2, field(6, b"\xed\xa0\x80")),
}


@pytest.mark.parametrize("raw", NOT_UTF8.values(), ids=NOT_UTF8)
async def test_invalid_utf8(stack, raw):
    refusal = await send(stack, raw)
    assert (refusal.code, refusal.reason, refusal.field) == (*INVALID, "request")
    assert "UTF-8" in refusal.limit
    assert (await stack.ask([1, 2])).token_ids == [2, 1]


@pytest.mark.parametrize("raw", [b"\xff", b"\x0a\x7f", field(1, field(3, b"\x0a\x09\x80"))])
async def test_bytes_that_are_not_protobuf(stack, raw):
    refusal = await send(stack, raw)
    assert (refusal.code, refusal.reason, refusal.field) == (*INVALID, "request")


async def test_unknown_method(stack):
    assert (await send(stack, b"", "Teleport")).code == "UNIMPLEMENTED"


VALID = request(LONG, budget={"max_prompt_tokens": 20}, sampling={"stop": ["x"], "top_p": 0.5}).SerializeToString()


@st.composite
def mutations(draw):
    """A valid request with some bytes replaced, removed or inserted."""
    raw = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(raw) - 1))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


@settings(max_examples=EXAMPLES * 3 // 2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200) | mutations())
@example(raw=b"")
@example(raw=VALID)
async def test_any_bytes_are_answered_or_rejected(stack, raw):
    outcome = await send(stack, raw)
    if isinstance(outcome, Refusal):
        assert outcome.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), outcome
        assert outcome.reason and outcome.field and outcome.limit
    assert (await stack.ask([1, 2])).token_ids == [2, 1]


SAMPLING = st.builds(
    target_pb2.Sampling,
    max_new_tokens=st.none() | st.integers(0, 2**32 - 1),
    stop=st.lists(st.text(max_size=3), max_size=3),
)
BUDGET = st.builds(
    orchestrator_pb2.Budget,
    max_prompt_tokens=st.none() | st.integers(0, 2**32 - 1) | st.integers(0, 120),
    max_kv_tokens=st.none() | st.integers(0, 120),
    compress_above_tokens=st.none() | st.integers(0, 120),
    strict=st.booleans(),
)
PROMPT = st.builds(
    wire_prompt,
    st.lists(st.integers(0, VOCABULARY), max_size=120) | st.integers(0, 500).map(lambda size: [7] * size),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), max_size=2),
) | st.builds(
    lambda messages, tools: orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=messages, tools_json=tools)),
    st.lists(
        st.builds(
            orchestrator_pb2.Message,
            role=st.sampled_from(["system", "user", "assistant", "tool"]) | st.text(max_size=5),
            parts=st.lists(st.builds(orchestrator_pb2.TextPart, text=st.text(max_size=40), protected=st.booleans())),
            protected=st.booleans(),
        ),
        max_size=4,
    ),
    st.lists(st.sampled_from(["{}", '{"a": 1}', "{", "null"]), max_size=1),
)


@settings(
    max_examples=EXAMPLES * 3 // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(prompt=PROMPT, sampling=SAMPLING, budget=BUDGET, route=st.integers(-1, 7))
async def test_any_request_is_answered_within_its_budget_or_rejected(stack, prompt, sampling, budget, route):
    message = orchestrator_pb2.GenerateRequest(prompt=prompt, sampling=sampling, budget=budget, route=route)
    outcome = await send(stack, message.SerializeToString())
    if isinstance(outcome, Refusal):
        assert outcome.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), outcome
        assert outcome.reason and outcome.field and outcome.limit
        return
    decision = outcome.decision
    assert 0 < decision.kept_tokens <= decision.prompt_tokens
    if budget.strict and budget.HasField("max_prompt_tokens"):
        assert decision.kept_tokens <= budget.max_prompt_tokens
    if outcome.route == "FULL":
        assert decision.kept_tokens == decision.prompt_tokens


# Mostly valid, so that most are answered; the strategies above are mostly invalid.
KV = st.builds(
    orchestrator_pb2.KvOptions,
    selection=st.integers(0, 2),
    keep_full_prefix=st.none() | st.booleans(),
    lookahead_tokens=st.none() | st.integers(0, 8) | st.just(257),
    continue_prompt_tokens=st.none() | st.none() | st.integers(40, 120),
    lookahead=st.integers(0, 3),
    renew_every=st.none() | st.integers(0, 4),
    renew_window=st.none() | st.integers(1, 40),
    first_full_tokens=st.none() | st.none() | st.integers(1, 4),
)
KV_PROMPT = st.integers(30, 130).flatmap(
    lambda size: st.builds(
        wire_prompt,
        st.just([7] * size),
        st.lists(st.integers(0, size - 1).map(lambda start: (start, min(start + 4, size))), max_size=3),
    )
)
KV_BUDGET = st.builds(
    orchestrator_pb2.Budget,
    max_prompt_tokens=st.none() | st.integers(4, 140),
    max_kv_tokens=st.none() | st.integers(4, 60),
    compress_above_tokens=st.none() | st.integers(0, 40),
    strict=st.booleans(),
)


@pytest.fixture(params=[4, 1], ids="pages of {}".format)
async def kv_stack(open_stack, request):
    return await open_stack(routes=ALL_ROUTES, kv_page_tokens=request.param)


@settings(
    max_examples=EXAMPLES * 5 // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    prompt=KV_PROMPT,
    sampling=st.builds(target_pb2.Sampling, max_new_tokens=st.integers(1, 370)),
    budget=KV_BUDGET,
    asked=st.tuples(st.sampled_from([plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC]), st.none() | KV),
)
async def test_any_request_to_drop_kv_is_answered_within_its_budget_or_rejected(
    kv_stack, prompt, sampling, budget, asked
):
    route, kv = asked
    message = orchestrator_pb2.GenerateRequest(prompt=prompt, sampling=sampling, budget=budget, route=route, kv=kv)
    outcome = await send(kv_stack, message.SerializeToString())
    if isinstance(outcome, Refusal):
        assert outcome.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION"), outcome
        # The fake target checks each plan against the contract: none may be rejected for it.
        assert outcome.reason and outcome.field and outcome.limit and "kv_plan" not in outcome.field, outcome
        return
    decision, usage = outcome.decision, outcome.usage
    assert decision.kv_tokens == usage.kv_tokens <= decision.kept_tokens <= decision.prompt_tokens
    assert outcome.reason in (
        "REQUESTED",
        "BELOW_THRESHOLD",
        "WITHIN_BUDGET",
        "PROTECTED_OVER_BUDGET",
        "ONLY_PROTECTED_KEPT",
    )
    if budget.HasField("max_kv_tokens") and (budget.strict or (outcome.route != "FULL" and not decision.continued)):
        assert usage.kv_tokens <= budget.max_kv_tokens
    if budget.strict and budget.HasField("max_prompt_tokens"):
        assert decision.kept_tokens <= budget.max_prompt_tokens
