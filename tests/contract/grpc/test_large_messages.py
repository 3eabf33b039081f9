"""Large gRPC messages are read and made outside the event loop, by every service."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from presift.core.answer import Finished, TokenLogprob
from presift.core.errors import InvalidRequest
from presift.core.generation import FinishReason
from presift.core.masks import KvMask
from presift.draft import servicer as draft_servicer
from presift.orchestrator.api.grpc import servicer
from presift.orchestrator.backends import target_client, target_codec
from presift.rpc.large_input import received_bytes
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target import servicer as target_servicer
from presift.target.admission import Admission
from presift.target.request_metrics import RequestMetrics
from presift.v1 import draft_pb2, plan_pb2, target_pb2, target_pb2_grpc

from ...echo_engine import EchoEngine
from ..fakes.services import model
from ..fakes.stack import refusal_of

SHORT, LONG = [200] * 100, [200] * 20_000
SIZES = pytest.mark.parametrize(("ids", "in_loop"), [(SHORT, True), (LONG, False)], ids=["short", "long"])


@pytest.fixture
def noted(monkeypatch):
    """place, name -> the function there notes whether it runs in the thread of the event loop, under its name."""
    seen = {}

    def note(place, name):
        work = getattr(place, name)

        def noting(*arguments):
            seen[name] = threading.current_thread() is threading.main_thread()
            return work(*arguments)

        monkeypatch.setattr(place, name, noting)

    note.seen = seen
    return note


@SIZES
async def test_an_orchestrator_reads_and_sends(open_stack, noted, ids, in_loop):
    noted(servicer, "request_from_wire")
    noted(target_codec, "generate_to_wire")
    stack = await open_stack(target=model("target", context_tokens=2**20))
    assert (await stack.ask(ids, route=plan_pb2.ROUTE_FULL)).usage.prompt_tokens == len(ids)
    assert noted.seen == {"request_from_wire": in_loop, "generate_to_wire": in_loop}


@SIZES
async def test_a_draft_reads(noted, ids, in_loop):
    noted(draft_servicer, "parse")
    drafts = draft_servicer.DraftServicer(None, 0)
    drafts.use(SimpleNamespace(info=None))
    asked = draft_pb2.ScoreRequest(token_ids=ids)
    received_bytes.set(asked.ByteSize())
    with pytest.raises(InvalidRequest, match="policy"):  # before it asks the scorer for anything
        await drafts.Score(asked, SimpleNamespace(time_remaining=lambda: None))
    assert noted.seen == {"parse": in_loop}


@SIZES
async def test_a_target_reads(noted, ids, in_loop):
    noted(target_servicer, "check_fits")
    servicer, server = target_servicer.TargetServicer(Admission(4, 4)), GrpcServer(ServerOptions("127.0.0.1:0"), [])
    servicer.use(EchoEngine())
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        stub = target_pb2_grpc.TargetServiceStub(channel)
        asked = stub.Prefill(target_pb2.PrefillRequest(token_ids=ids))
        if in_loop:
            await asked
        else:  # the echo's context is shorter
            assert (await refusal_of(asked)).reason == "PROMPT_TOO_LONG"
    await server.grpc.stop(0)
    assert noted.seen == {"check_fits": in_loop}


@pytest.mark.parametrize(("tokens", "in_loop"), [(4, True), (1000, False)], ids=["few", "many"])
async def test_an_orchestrator_reads_and_sends_log_probabilities_of_the_prompt(open_stack, noted, tokens, in_loop):
    noted(target_client, "usage_from_wire")
    noted(servicer, "event_to_wire")
    stack = await open_stack()

    def spoil(usage):
        usage.prompt_logprobs.extend(target_pb2.TokenLogprob(token_id=each) for each in range(tokens))

    stack.target.spoil = spoil
    sampling = {"top_logprobs": 0, "prompt_logprobs": True}
    answer = await stack.ask([200] * 4, route=plan_pb2.ROUTE_FULL, sampling=sampling)
    assert len(answer.usage.prompt_logprobs) == tokens
    assert noted.seen == {"usage_from_wire": in_loop, "event_to_wire": in_loop}


FINISHED = Finished(4, 0, 1, FinishReason.STOP, kv_tokens=4)
USAGES = {
    "small": (replace(FINISHED, prompt_logprobs=(TokenLogprob(1, None),)), True),
    "logprobs": (replace(FINISHED, prompt_logprobs=(TokenLogprob(1, -1.0),) * 1000), False),
    "mask": (replace(FINISHED, kv_mask=KvMask(np.ones((4, 4, 2**16), dtype=np.bool_))), False),
}


@pytest.mark.parametrize(("finished", "in_loop"), USAGES.values(), ids=USAGES)
async def test_a_target_sends_usage(noted, finished, in_loop):
    noted(target_servicer, "_usage")
    sent = await target_servicer.TargetServicer(Admission(4, 4))._response(finished, RequestMetrics(), EchoEngine())
    assert len(sent.usage.prompt_logprobs) == len(finished.prompt_logprobs)
    assert noted.seen == {"_usage": in_loop}
