"""Draft and target that speak presift.v1 and whose every answer can be computed by hand; both do harm on request."""

import asyncio
from collections import deque

import numpy as np

from presift.v1 import draft_pb2, draft_pb2_grpc, plan_pb2, target_pb2, target_pb2_grpc

VOCABULARY, CONTEXT = 1000, 400


def model(name, **changes):
    values = {
        "id": name,
        "revision": "r1",
        "tokenizer_fingerprint": "f1",
        "context_tokens": CONTEXT,
        "layers": 4,
        "kv_heads": 2,
        "vocabulary_size": VOCABULARY,
    }
    return plan_pb2.ModelInfo(**values | changes)


def keep(prompt_tokens, capacity, window, spans=()):
    """The fake draft's choice, ascending: protected spans and window, then the first tokens up to the capacity."""
    must = {i for start, end in spans for i in range(start, end)} | set(range(prompt_tokens - window, prompt_tokens))
    rest = [i for i in range(prompt_tokens) if i not in must]
    return sorted([*must, *rest[: capacity - len(must)]])


def bits(indices, prompt_tokens):
    flags = np.zeros(prompt_tokens, dtype=bool)
    flags[list(indices)] = True
    return np.packbits(flags, bitorder="little").tobytes()


class FakeDraft(draft_pb2_grpc.DraftServiceServicer):
    """Coverage is the share of tokens kept, importance of token i is i. `faults` act on the calls to come, one each,
    before they are answered; `spoil` changes every reply. Nothing is answered while `gate` is closed."""

    def __init__(self, model):
        self.model = model
        self.calls, self.faults = [], deque()
        self.spoil = lambda reply, request: None
        self.gate = asyncio.Event()
        self.gate.set()

    async def Score(self, request, context):
        self.calls.append(request)
        await self.gate.wait()
        if self.faults:
            await self.faults.popleft()(context)
        policy, prompt_tokens = request.policy.spec_pc, len(request.token_ids)
        kept = keep(
            prompt_tokens, policy.capacity, policy.window, [(span.start, span.end) for span in request.protected_spans]
        )
        reply = draft_pb2.ScoreResponse(
            token_mask=plan_pb2.TokenMask(prompt_tokens=prompt_tokens, kept=bits(kept, prompt_tokens)),
            coverage=len(kept) / prompt_tokens,
            importance=range(prompt_tokens) if request.include_importance else (),
            model=self.model,
        )
        self.spoil(reply, request)
        return reply

    async def GetInfo(self, request, context):
        return draft_pb2.DraftServiceGetInfoResponse(model=self.model, supported_routes=[plan_pb2.ROUTE_SPEC_PC])


class FakeTarget(target_pb2_grpc.TargetServiceServicer):
    """Answers with the prompt reversed, a token at a time. After `pause_after` tokens it waits for `gate`; after
    `die_after` it fails. `cancelled` counts the requests that were cancelled."""

    def __init__(self, model, routes=(plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC)):
        self.model, self.routes = model, routes
        self.calls, self.faults = [], deque()
        self.pause_after = self.die_after = None
        self.with_usage = True
        self.running = self.cancelled = 0
        self.gate = asyncio.Event()

    async def Generate(self, request, context):
        self.calls.append(request)
        self.running += 1
        try:
            if self.faults:
                await self.faults.popleft()(context)
            async for event in self._answer(request, context):
                yield event
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request, context):
        answer = request.token_ids[::-1][: request.sampling.max_new_tokens]
        for number, token_id in enumerate(answer, 1):
            yield target_pb2.TargetServiceGenerateResponse(delta=target_pb2.TokenDelta(token_ids=[token_id]))
            if number == self.pause_after:
                await self.gate.wait()
            if number == self.die_after:
                raise RuntimeError("the engine died")
        if not self.with_usage:
            return
        usage = target_pb2.TargetUsage(
            prompt_tokens=len(request.token_ids),
            kv_tokens=len(request.token_ids),
            cached_tokens=3,
            completion_tokens=len(answer),
            finish_reason=target_pb2.FINISH_REASON_LENGTH,
            ttft_ms=7.0,
        )
        yield target_pb2.TargetServiceGenerateResponse(usage=usage)

    async def GetInfo(self, request, context):
        return target_pb2.TargetServiceGetInfoResponse(
            model=self.model, engine="fake", supported_routes=self.routes, running_requests=self.running
        )


def raises(error):
    """A fault: the service raises `error`."""

    async def fault(context):
        raise error

    return fault


def aborts(code):
    """A fault: a bare gRPC status, as a proxy sends it."""

    async def fault(context):
        await context.abort(code, "by the fake")

    return fault


async def hangs(context):
    """A fault: no answer until the caller gives up."""
    await asyncio.Event().wait()
