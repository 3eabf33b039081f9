"""The TypeScript client in Node against a real orchestrator: the same answers and errors as the Python client."""

import asyncio
import re
from dataclasses import asdict, fields

import grpc
import pytest

import presift_client as pc
from presift.core.errors import Overloaded
from presift.orchestrator.api.auth.interceptor import AuthInterceptor
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import orchestrator_pb2_grpc

from ..fakes import node
from ..fakes.api_keys import ACME, key_authenticator
from ..fakes.authority import Authority
from ..fakes.clients import Asynchronous
from ..fakes.services import raises
from ..fakes.stack import ALL_ROUTES
from .test_client_retries import Flaky

LONG = list(range(100, 200))
CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"text": "d" * 1100, "document": True}, {"type": "text", "text": "why? 😀"}]},
]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
EXPLAINED = {"messages": CHAT, "route": "spec_pc", "maxPromptTokens": 80, "maxNewTokens": 5}
MS = ("tokenize_ms", "cache_ms", "draft_ms", "prefill_ms", "predicted_ttft_ms", "ttft_ms", "total_ms")


@pytest.fixture(scope="module")
def probe():
    """Runs calls of the TypeScript client."""
    node.needed()
    prober = node.Prober()
    yield prober
    prober.stop()


def camel(name):
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def as_typescript(value):
    """A value of the Python client in the form of the TypeScript client, without times."""
    if isinstance(value, dict):
        return {camel(name): as_typescript(each) for name, each in value.items() if name not in MS}
    return [as_typescript(each) for each in value] if isinstance(value, tuple | list) else value


def timeless(result):
    left_out = {*map(camel, MS), "kind"}
    if isinstance(result, dict):
        return {name: timeless(each) for name, each in result.items() if name not in left_out}
    return [timeless(each) for each in result] if isinstance(result, list) else result


SAME = {
    "token ids": {"token_ids": LONG, "max_new_tokens": 9},
    "protected": {"token_ids": LONG, "protected_spans": [[3, 5]], "max_new_tokens": 3},
    "text": {"prompt": "héllo 😀", "max_new_tokens": 20},
    "chat": {"messages": CHAT, "max_prompt_tokens": 80, "max_new_tokens": 9},
    "full": {"token_ids": LONG, "route": "full", "max_new_tokens": 50},
    "spec_kv": {"token_ids": LONG, "route": "spec_kv", "max_kv_tokens": 12, "keep_full_prefix": True},
    "spec_kv_pc": {"token_ids": LONG, "route": "spec_kv_pc", "kv_lookahead_tokens": 2},
    "adapting": {"token_ids": LONG, "route": "spec_pc", "auto_coverage": 0.125, "auto_max_tokens": 16},
    "sampled": {"token_ids": LONG, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 7, "stop": ["x"]},
    "penalties": {"token_ids": LONG, "min_p": 0.25, "presence_penalty": 0.5, "repetition_penalty": 1.5},
    "choices": {"token_ids": LONG, "choices": 3, "max_new_tokens": 4, "seed": 5},
    "log probabilities": {"token_ids": LONG, "route": "full", "top_logprobs": 2, "prompt_logprobs": True},
    "stopped by the context": {"token_ids": LONG, "route": "full", "max_new_tokens": 1000},
    "regex": {"token_ids": LONG, "regex": "a+", "min_new_tokens": 2, "keep_special_tokens": True},
    "schema": {"messages": CHAT, "json_schema": '{"type": "object"}', "max_prompt_tokens": 80},
    "named tool": {"messages": CHAT, "tools": [TOOL], "tool_choice": "add", "parallel_tool_calls": False},
    "shown tools": {"messages": CHAT, "tools": [TOOL], "tool_choice": "none"},
    "variables": {"messages": CHAT, "template_kwargs": {"thinking": False}, "continue_final_message": False},
    "reasoning": {"messages": [*CHAT, {"role": "assistant", "content": "so", "reasoning": "hm"}, *CHAT[1:]]},
}


def camel_options(options):
    return {camel(name): value for name, value in options.items()}


@pytest.mark.parametrize("options", SAME.values(), ids=SAME)
async def test_both_clients_send_and_return_the_same(probe, open_stack, options):
    abilities = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3", "grammars": True}
    stack = await open_stack(routes=ALL_ROUTES, abilities=abilities)
    python = Asynchronous(stack.address)
    try:
        await python.generate(**options)  # fills the cache for both
    except pc.InvalidRequest as refused:
        (result,) = await probe(stack.address, "generate", options=camel_options(options))
        assert (result["field"], result["value"]) == (refused.field, refused.value)
        return
    expected = asdict(await python.generate(**options))
    del expected["decision"]["kv_capacity"]  # computed by the Python client only
    sent = stack.target.calls[-1]
    (result,) = await probe(stack.address, "generate", options=camel_options(options))
    assert stack.target.calls[-1] == sent
    assert timeless(result) == as_typescript(expected)
    await python.aclose()


async def test_a_stream_is_decision_deltas_usage(probe, stack):
    *events, left = await probe(stack.address, options={"tokenIds": [97, 98, 99], "maxNewTokens": 3})
    decision, *deltas, usage = events
    assert (decision["kind"], usage["kind"], left) == ("decision", "usage", "left")
    assert {event["kind"] for event in deltas} == {"delta"}
    assert [token_id for event in deltas for token_id in event["tokenIds"]] == [99, 98, 97]


async def test_tools_and_their_calls_arrive(probe, stack):
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
    messages = [
        {"role": "user", "content": "what is there?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "name": "look", "content": "a cat"},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    python = Asynchronous(stack.address)
    outcomes = []
    for ask in (python.generate(messages=messages, tools=tools), by_probe(probe, stack, messages, tools)):
        try:
            await ask
            outcomes.append(stack.target.calls[-1].token_ids)
        except (pc.InvalidRequest, Refused) as refused:
            outcomes.append(str(refused))
    assert outcomes[0] == outcomes[1]
    await python.aclose()


class Refused(Exception):
    """An error that the probe reported."""


async def by_probe(probe, stack, messages, tools):
    (result,) = await probe(stack.address, "generate", options={"messages": messages, "tools": tools})
    if "error" in result:
        raise Refused(result["message"])


async def test_explain(probe, stack):
    (result,) = await probe(stack.address, "explain", options=EXPLAINED)
    python = Asynchronous(stack.address)
    expected = await python.explain(messages=CHAT, route="spec_pc", max_prompt_tokens=80, max_new_tokens=5)
    assert result["text"] == expected.text and result["decision"]["route"] == expected.decision.route == "spec_pc"
    names = [field.name for field in fields(expected.spans[0]) if field.name != "kept_share"]
    assert result["spans"] == [as_typescript({name: getattr(span, name) for name in names}) for span in expected.spans]
    await python.aclose()


async def test_info(probe, stack):
    (result,) = await probe(stack.address, "info")
    assert result["target"]["id"] == "target" and "spec_pc" in result["supportedRoutes"]
    assert [replica["role"] for replica in result["replicas"]] == ["draft", "target"]


@pytest.mark.parametrize("by", ["break", "abort"])
async def test_leaving_a_stream_cancels_it_at_every_service(probe, stack, by):
    stack.target.pause_after = 1
    options = {"tokenIds": [1, 2, 3], "maxNewTokens": 3}
    task = asyncio.create_task(probe(stack.address, options=options, leaveAfter=2, leaveBy=by))
    await stack.settle(lambda: stack.target.cancelled == 1)
    result = await task
    assert [event["kind"] for event in result[:2]] == ["decision", "delta"]
    assert result[2:] == ["left"] if by == "break" else [event["error"] for event in result[2:]] == ["Cancelled"]
    assert stack.target.running == 0


async def test_a_deadline_is_kept(probe, stack):
    stack.target.pause_after = 1
    *_, result = await probe(stack.address, options={"tokenIds": [1, 2], "deadlineMs": 400})
    assert (result["error"], result["code"]) == ("DeadlineExceeded", "DEADLINE_EXCEEDED")
    await stack.settle(lambda: stack.target.running == 0)


async def test_a_refusal_names_field_value_and_limit(probe, stack):
    (result,) = await probe(stack.address, options={"tokenIds": LONG * 5, "route": "full"})
    assert (result["error"], result["code"], result["reason"]) == (
        "PromptTooLong",
        "INVALID_ARGUMENT",
        "PROMPT_TOO_LONG",
    )
    assert result["field"] == "prompt" and result["value"] == "500 tokens" and "400" in result["limit"]


async def test_overloaded_says_when_to_retry(probe, stack):
    stack.target.faults.append(raises(Overloaded("max_waiting", "64", "64", 2.5)))
    (*_, result) = await probe(stack.address, options={"tokenIds": [1]})
    assert (result["error"], result["field"], result["retryAfterMs"]) == ("Overloaded", "max_waiting", 2500)


async def test_an_error_after_the_first_token_counts_the_delivered_tokens(probe, stack):
    stack.target.die_after = 2
    *_, result = await probe(stack.address, options={"tokenIds": [1, 2, 3]})
    assert (result["error"], result["deliveredTokens"]) == ("Unavailable", 2)


@pytest.mark.parametrize("number", [-1, 1.5, 2**32])
async def test_a_number_out_of_range_is_refused_before_anything_is_sent(probe, stack, number):
    (result,) = await probe(stack.address, options={"tokenIds": [1], "maxPromptTokens": number})
    assert "max_prompt_tokens" in result["error"] and not stack.target.calls


async def test_an_unreachable_service_is_unavailable(probe, stack):
    await stack.server.grpc.stop(0)
    (result,) = await probe(stack.address, options={"tokenIds": [1]})
    assert (result["error"], result["code"]) == ("Unavailable", "UNAVAILABLE")


async def test_a_message_over_the_size_limit_is_an_invalid_request(probe, open_stack):
    stack = await open_stack(message_bytes=4096)
    (result,) = await probe(stack.address, options={"prompt": "x" * 5000})
    assert result["error"] == "InvalidRequest"


async def test_api_key_and_tenant(probe, open_stack):
    stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator()),), salt="deployment")
    (result,) = await probe(stack.address, options={"tokenIds": [1]})
    assert result["error"] == "Unauthenticated"
    result = await probe(stack.address, client={"apiKey": ACME}, options={"tokenIds": [1]})
    assert result[0]["kind"] == "decision" and result[-2]["kind"] == "usage"
    (result,) = await probe(stack.address, client={"apiKey": ACME, "tenant": "other"}, options={"tokenIds": [1]})
    assert result["error"] == "PermissionDenied" and ACME not in str(result)


@pytest.fixture
async def meet():
    """Starts a servicer, with TLS if `tls` files are given, and returns its address."""
    servers = []

    async def meet(servicer, tls=None):
        servers.append(GrpcServer(ServerOptions("127.0.0.1:0", tls=tls), []))
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(servicer, servers[-1].grpc)
        return f"127.0.0.1:{await servers[-1].start()}"

    yield meet
    for server in servers:
        await server.grpc.stop(0)


async def test_mutual_tls(probe, meet, tmp_path):
    ours, theirs = Authority(tmp_path / "ours"), Authority(tmp_path / "theirs")
    served, caller, stranger = ours.pair("presift.test"), ours.pair("caller"), theirs.pair("caller")
    address = await meet(Flaky(failures=0), served.files())
    tls = {"ca": str(ours.ca), "cert": str(caller.cert), "key": str(caller.key), "nameOverride": "presift.test"}
    changes = {
        "valid": {},
        "another authority's service": {"ca": str(theirs.ca)},
        "another name": {"nameOverride": "presift.example"},
        "another authority's caller": {"cert": str(stranger.cert), "key": str(stranger.key)},
    }
    outcomes = {}
    for name, change in changes.items():
        result = await probe(address, client={"tls": tls | change}, options={"prompt": "x", "deadlineMs": 8000})
        outcomes[name] = result[0].get("kind") or result[0]["error"]
    assert outcomes.pop("valid") == "decision"
    assert set(outcomes.values()) <= {"Unavailable", "DeadlineExceeded"}


@pytest.mark.parametrize("prompt", ["x", "x" * 3_000_000], ids=["short", "3 MB"])
async def test_unavailable_before_any_message_is_retried(probe, meet, prompt):
    """Long prompts too: they exceed gRPC's default retry buffer."""
    servicer = Flaky(failures=1)
    address = await meet(servicer)
    (result,) = await probe(address, "generate", options={"prompt": prompt})
    assert result["usage"]["completionTokens"] == 1 and servicer.calls == 2


async def test_what_a_stopping_service_cancels_is_retried(probe, meet):
    servicer = Flaky(failures=1, code=grpc.StatusCode.CANCELLED)
    (result,) = await probe(await meet(servicer), "generate", options={"prompt": "x"})
    assert result["usage"]["completionTokens"] == 1 and servicer.calls == 2


async def test_no_retry_after_a_message(probe, meet):
    servicer = Flaky(failures=1, messages=1)
    (result,) = await probe(await meet(servicer), "generate", options={"prompt": "x"})
    assert result["error"] == "Unavailable" and servicer.calls == 1


async def test_received_tokens_count_if_the_service_reports_none(probe, meet):
    (result,) = await probe(await meet(Flaky(failures=1, messages=3)), "generate", options={"prompt": "x"})
    assert (result["error"], result["deliveredTokens"]) == ("Unavailable", 6)


@pytest.mark.parametrize("code", ["INTERNAL", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"])
async def test_no_other_status_is_retried(probe, meet, code):
    servicer = Flaky(failures=1, code=grpc.StatusCode[code])
    (result,) = await probe(await meet(servicer), "generate", options={"prompt": "x"})
    assert result["code"] == code and servicer.calls == 1
